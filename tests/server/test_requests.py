"""The bodies of requests."""

import pytest
from pydantic import ValidationError

from hanmo.server.errors import RequestError
from hanmo.server.requests import Chat, Completion, Embeddings, Predict, parse

MANY = 50_000
USER = {"role": "user", "content": "a"}
WRONG = [
    (Completion, {"prompt": [1] * MANY + ["a"]}),
    (Completion, {"prompt": ["a"] * MANY}),
    (Completion, {"prompt": ["a", *[1] * MANY]}),
    (Completion, {"prompt": [[-1] * MANY]}),
    (Completion, {"prompt": [[1], *["a"] * MANY]}),
    (Completion, {"prompt": [None] * MANY}),
    (Completion, {"prompt": "a", "stop": [1] * MANY}),
    (Completion, {"prompt": "a", **{f"x{number}": 1 for number in range(MANY)}}),
    (Completion, {"prompt": "a", "stream_options": {f"x{number}": 1 for number in range(MANY)}}),
    (Chat, {"messages": [USER] * MANY}),
    (Chat, {"messages": [{}] * MANY}),
    (Chat, {"messages": [USER | {f"x{number}": 1 for number in range(MANY)}]}),
    (Embeddings, {"input": [1] * MANY + ["a"]}),
    (Embeddings, {"input": [["a"]] * MANY}),
    (Predict, {"input": [1] * MANY}),
    (Predict, {"input": [["a"] * MANY]}),
]


@pytest.mark.parametrize(("kind", "body"), WRONG)
def test_many_wrong_items_are_few_errors(kind, body):
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    assert caught.value.error_count() <= 5


def test_many_wrong_biases_are_no_more_errors_than_there_may_be_biases():
    with pytest.raises(ValidationError) as caught:
        Completion.model_validate({"prompt": "a", "logit_bias": {str(number): "x" for number in range(MANY)}})
    assert caught.value.error_count() <= 1025
    with pytest.raises(RequestError, match=r"logit_bias is \{.*at most 1024 items"):
        parse(
            b'{"prompt": "a", "logit_bias": {%b}}' % b",".join(b'"%d": 1' % number for number in range(2000)),
            Completion,
        )


def test_of_unknown_fields_the_first_is_named_and_nulls_count_as_left_out():
    with pytest.raises(RequestError, match="'b' is no field of this request; it has model"):
        parse(b'{"prompt": "a", "a": null, "b": 1, "c": 2}', Completion)
