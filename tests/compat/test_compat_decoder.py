"""AutoRegressiveDecoder against what bert4keras's own computed: tests/data/goldens/decoder.json and snippets.json."""

import json
from pathlib import Path

import numpy as np
import pytest

from hanmo.compat.bert4keras.snippets import AutoRegressiveDecoder, softmax
from hanmo.errors import CheckpointError, ConfigError, Unsupported

GOLDENS = Path(__file__).parent.parent / "data" / "goldens"
DATA = json.loads((GOLDENS / "decoder.json").read_text(encoding="utf-8"))
OLD = json.loads((GOLDENS / "snippets.json").read_text(encoding="utf-8"))["set_rtype"]
A, B, C, D = (np.array(DATA[name]) for name in "ABCD")


def toy_logits(inputs, output_ids, states=None):
    """Score as the goldens' `toy_logits` says."""
    rows = []
    for r, output in enumerate(output_ids):
        last = output[-1] if len(output) else inputs[0][r][-1]
        logits = A[last] + B[len(output) % 8] + C[int(inputs[0][r].sum() + output.sum()) % 5]
        if len(inputs) > 1:
            logits = logits + 0.1 * inputs[1][r, 0] * B[1]
        rows.append(logits if states is None else logits + D[states % 6])
    return np.array(rows)


def toy_decoder(case, scores=toy_logits):
    default, use_states = case["default_rtype"], case["use_states"]

    class Toy(AutoRegressiveDecoder):
        @AutoRegressiveDecoder.wraps(default_rtype=default, use_states=use_states)
        def predict(self, inputs, output_ids, states):
            self.calls.append(output_ids)
            assert all(len(one) == len(output_ids) for one in inputs)
            result = scores(inputs, output_ids, states if use_states else None)
            result = softmax(result) if default == "probas" else result
            result.flags.writeable = False  # the original would fail; its results do not hang on it
            return (result, states + 1) if use_states else result

    decoder = Toy(case["start_id"], DATA["END"], case["maxlen"], case["minlen"])
    decoder.calls = []
    return decoder


def arguments(case, *names):
    return {name: case[name] for name in names if case.get(name) is not None}


def test_there_are_as_many_goldens_as_were_recorded():
    counts = {name: len(DATA[name]) for name in ("beam", "sets", "sample_seeded", "wraps")}
    assert counts == {"beam": 304, "sets": 340, "sample_seeded": 20, "wraps": 12}
    assert len(OLD) == 72


def test_every_recorded_beam_search_gives_the_same_ids_by_the_same_calls():
    compared = 0
    for case in DATA["beam"]:
        decoder = toy_decoder(case)
        out = decoder.beam_search(case["inputs"], case["topk"], **arguments(case, "states", "temperature", "min_ends"))
        assert isinstance(out, np.ndarray) and out.tolist() == case["out"], case
        assert [len(ids) for ids in decoder.calls] == case["batch_sizes"], case
        assert len(decoder.calls) == case["n_predict"]
        steps = case.get("predict_output_ids_per_step_sorted")
        assert steps is None or [sorted(ids.tolist()) for ids in decoder.calls] == steps
        compared += 1
    assert compared == 304


def test_every_seeded_sample_is_the_recorded_one():
    for case in DATA["sample_seeded"]:
        decoder = toy_decoder(case)
        states = {"states": 2} if case["use_states"] else {}
        np.random.seed(case["seed"])
        out = decoder.random_sample(
            case["inputs"], case["n"], **states, **arguments(case, "topk", "topp", "temperature", "min_ends")
        )
        assert [ids.tolist() for ids in out] == case["out"], case
        assert str(type(out)) + str(type(out[0])) == case["types"]
        assert [len(ids) for ids in decoder.calls] == case["batch_sizes"]


def test_every_recorded_set_is_what_may_be_drawn_with_its_chances(monkeypatch):
    compared = 0
    for case in DATA["sets"]:
        fixed = np.array([case.get("logits") or case["probas"]], dtype=float)
        default = "logits" if "logits" in case else "probas"

        class Fixed(AutoRegressiveDecoder):
            @AutoRegressiveDecoder.wraps(default_rtype=default)
            def predict(self, inputs, output_ids, states, fixed=fixed):
                return fixed

        settings = {"topk": case["topk"], "topp": case["topp"], "temperature": case["temperature"]}
        allowed = {}
        for column in range(fixed.size if case["topk"] is None else case["topk"]):
            chances = []
            monkeypatch.setattr(
                np.random, "choice", lambda size, p, chances=chances, at=column: chances.extend(p) or at
            )
            [ids] = Fixed(None, None, 1).random_sample([[0]], 1, **settings)
            assert sum(chances) == pytest.approx(1)
            if chances[column] > 0:
                allowed[str(ids[0])] = chances[column]
        assert allowed == pytest.approx(case["allowed"], rel=1e-9), case
        compared += 1
    assert compared == 340


def test_wraps_turns_predictions_into_the_recorded_scores():
    for case in DATA["wraps"]:
        decoder = toy_decoder({**case, "use_states": False, "start_id": None, "maxlen": 1, "minlen": 1})
        scores, states = decoder.predict(
            [np.array([[5, 6, 7]])], np.empty((1, 0), dtype=int), None, case["temperature"], case["rtype"]
        )
        assert np.allclose(scores, case["scores"], rtol=1e-9, atol=0) and states is case["states"] is None


def test_a_topk_above_the_vocabulary_is_a_value_error_that_names_both():
    case = {"default_rtype": "logits", "use_states": False, "start_id": None, "maxlen": 3, "minlen": 1}
    assert DATA["topk_gt_vocab"].startswith("ValueError")
    for call in ("beam_search", "random_sample"):
        with pytest.raises(ConfigError, match="topk is 15, but predict scores only 14 ids; lower topk") as caught:
            getattr(toy_decoder(case), call)([[5, 6, 7]], *([15] if call == "beam_search" else [1, 15]))
        assert isinstance(caught.value, ValueError)


def test_the_decoder_of_version_0_6_takes_step_and_gives_its_results():
    compared = 0
    for case in OLD:
        default, steps = case["default"], []

        class Old(AutoRegressiveDecoder):
            @AutoRegressiveDecoder.set_rtype(default)
            def predict(self, inputs, output_ids, step, default=default, steps=steps):
                steps.append(step)
                logits = toy_logits(inputs, output_ids)
                return softmax(logits) if default == "probas" else logits

        decoder = Old(start_id=case["start_id"], end_id=3, maxlen=case["maxlen"], minlen=case["minlen"])
        if case["fn"] == "beam_search":
            assert decoder.beam_search(case["inputs"], case["topk"]).tolist() == case["out"], case
        else:
            np.random.seed(case["seed"])
            out = decoder.random_sample(case["inputs"], case["n"], case["topk"])
            assert [ids.tolist() for ids in out] == case["out"], case
        assert steps == list(range(len(steps))) and steps
        compared += 1
    assert compared == 72


def test_predict_of_version_0_6_may_be_called_alone_and_gives_scores_without_states():
    class Old(AutoRegressiveDecoder):
        @AutoRegressiveDecoder.set_rtype("probas")
        def predict(self, inputs, output_ids, step):
            return np.array([[0.25, 0.75]])

    decoder = Old(None, 1, 5)
    assert decoder.predict([], [], 0).tolist() == [[0.25, 0.75]]
    assert np.allclose(decoder.predict([], [], 0, "logits"), np.log([[0.25, 0.75]]))
    with pytest.raises(
        Unsupported, match=r"temperature is 0\.5, but predict is decorated with set_rtype, which knows none"
    ):
        decoder.random_sample([[1]], 2, temperature=0.5)


def test_a_predict_without_decorator_may_follow_either_version():
    class WithStates(AutoRegressiveDecoder):
        def predict(self, inputs, output_ids, states, temperature=1, rtype="probas"):
            return np.log([[0.1, 0.9]] * len(output_ids)), states

    class WithStep(AutoRegressiveDecoder):
        def predict(self, inputs, output_ids, step, rtype="logits"):
            return np.log([[0.1, 0.9]] * len(output_ids))

    for kind in (WithStates, WithStep):
        assert kind(None, 1, 5, minlen=3).beam_search([[1]], 1).tolist() == [1, 1, 1]


def test_states_are_lost_after_the_first_step_unless_they_are_used():
    seen = []

    class Forgetful(AutoRegressiveDecoder):
        @AutoRegressiveDecoder.wraps()
        def predict(self, inputs, output_ids, states):
            seen.append(states)
            return np.array([[0.5, 0.5]] * len(output_ids))

    Forgetful(None, None, 3).random_sample([[1]], 2, states="start")
    assert seen == ["start", None, None]


class ToyModel:
    def __init__(self, outputs):
        self.outputs = outputs

    def predict(self, x):
        arrays = [np.asarray(x)[..., None] * (place + 1) for place in range(self.outputs)]
        return arrays if self.outputs > 1 else arrays[0]


def test_last_token_keeps_the_last_position_of_every_output_and_is_made_once():
    decoder, one, two = AutoRegressiveDecoder(None, 1, 5), ToyModel(1), ToyModel(2)
    ids = np.array([[1, 2, 3], [4, 5, 6]])
    assert decoder.last_token(one).predict(ids).tolist() == [[3], [6]]
    assert decoder.last_token(one).predict_on_batch(ids).tolist() == [[3], [6]]
    assert [out.tolist() for out in decoder.last_token(two).predict(ids, batch_size=8, verbose=0)] == [
        [[3], [6]],
        [[6], [12]],
    ]
    assert decoder.last_token(one) is decoder.last_token(one) is not decoder.last_token(two)


def test_last_token_leaves_it_to_a_model_that_can_compute_the_last_position_alone():
    class Quick:
        def predict_last(self, x):
            return ("last", x)

    assert AutoRegressiveDecoder(None, 1, 5).last_token(Quick()).predict([[1]]) == ("last", [[1]])


def test_the_article_s_loop_samples_from_an_ever_longer_prefix():
    class Model:
        def predict(self, token_ids):
            scores = np.full((*token_ids.shape, 20), 1e-9, dtype=np.float32)
            np.put_along_axis(scores, ((token_ids + 1) % 20)[..., None], 1, axis=2)
            return scores / scores.sum(-1, keepdims=True)

    model = Model()

    class Completion(AutoRegressiveDecoder):
        @AutoRegressiveDecoder.set_rtype("probas")
        def predict(self, inputs, output_ids, step):
            token_ids = np.concatenate([inputs[0], output_ids], 1)
            return model.predict(token_ids)[:, -1]

    completion = Completion(start_id=None, end_id=11, maxlen=256, minlen=25)
    results = completion.random_sample([[3, 4]], 2, 5)
    # 11 comes after 7 steps, but is no end before minlen; then the second one is.
    assert [ids.tolist() for ids in results] == [[id % 20 for id in range(5, 32)]] * 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda toy: toy.random_sample([[1]], 0), "n is 0; expected 1 or more"),
        (lambda toy: toy.random_sample([[1]], 1, -1), "topk is -1; expected 0 or more"),
        (lambda toy: toy.beam_search([[1]], 0), "topk is 0; expected 1 or more"),
        (lambda toy: toy.predict([], [], None, 1, "scores"), "rtype is 'scores'; expected 'probas' or 'logits'"),
        (lambda toy: AutoRegressiveDecoder.wraps("x"), "rtype is 'x'; expected 'probas' or 'logits'"),
        (lambda toy: AutoRegressiveDecoder.set_rtype("y"), "rtype is 'y'"),
    ],
)
def test_settings_out_of_range_are_named(call, message):
    case = {"default_rtype": "logits", "use_states": False, "start_id": None, "maxlen": 3, "minlen": 1}
    with pytest.raises(ConfigError, match=message):
        call(toy_decoder(case))


def test_a_topk_of_zero_keeps_every_id_as_in_the_original():
    case = {"default_rtype": "logits", "use_states": False, "start_id": None, "maxlen": 40, "minlen": 41}
    np.random.seed(1)
    [ids] = toy_decoder(case).random_sample([[5, 6, 7]], 1, topk=0)
    assert len(set(ids.tolist())) > 7


@pytest.mark.parametrize("call", ["beam_search", "random_sample"])
def test_predictions_of_nan_are_one_clear_error(call):
    case = {"default_rtype": "probas", "use_states": False, "start_id": None, "maxlen": 3, "minlen": 1}
    broken = toy_decoder(case, lambda inputs, ids, states: np.full((len(ids), 14), np.nan))
    with pytest.raises(CheckpointError, match="predict returned 14 NaN among 14 scores at step 0"):
        getattr(broken, call)([[1]], 1)


def test_a_decoder_without_predict_says_what_to_write():
    with pytest.raises(Unsupported, match="AutoRegressiveDecoder has no predict; write one, decorated with"):
        AutoRegressiveDecoder(None, 1, 5).beam_search([[1]], 1)
