"""The bodies of requests: what each may hold, its types and ranges. Knows no model.

Fields of OpenAI's that Hanmo does not carry are refused where they would change the answer.
"""

from itertools import islice
from reprlib import Repr
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from hanmo.files import parse_json
from hanmo.server.errors import RequestError

MAX_SAMPLES = 128  # of a prompt
MAX_BEAMS = 64
_MAX_STOPS, _MAX_BIASES = 16, 1024
_LARGEST_ID = 2**31 - 1

Item = TypeVar("Item")
Id = Annotated[int, Field(ge=0, le=_LARGEST_ID)]
Text = Annotated[str, Field(min_length=1)]
Ids = Annotated[list[Id], Field(min_length=1, fail_fast=True)]
Many = Annotated[list[Item], Field(max_length=2048, fail_fast=True)]
Several = Annotated[Many[Item], Field(min_length=1)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Count = Annotated[int, Field(ge=1, le=2**31)]
Bias = Annotated[float, Field(ge=-100, le=100)]
_shorten = Repr()
_shorten.maxstring = _shorten.maxother = 60


def _shortened(data: Any) -> Any:
    """Keep of a dictionary that is too long what is refused: its length is checked after each value."""
    return dict(islice(data.items(), _MAX_BIASES + 1)) if isinstance(data, dict) else data


class Fields(BaseModel):
    """An object in a request; null is as if the field were left out."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _prepared(cls, data: Any) -> Any:
        """Leave out nulls, and of unknown fields all but one, as each would be an error of its own."""
        if not isinstance(data, dict):
            return data
        given = {name: value for name, value in data.items() if value is not None}
        unknown = next((name for name in given if name not in cls.model_fields), None)
        return {name: value for name, value in given.items() if name in cls.model_fields or name == unknown}


class Request(Fields):
    """What every request may hold."""

    model: str | None = Field(None, description="Name of the model; may be left out if one is served.")
    user: str | None = Field(None, description="Accepted and not used.")


class StreamOptions(Fields):
    """Options of a stream."""

    include_usage: bool = Field(False, description="Send the number of tokens before the end.")


class Generating(Request):
    """What completions and dialogues share."""

    n: int = Field(1, ge=1, le=MAX_SAMPLES, description="Texts for each prompt.")
    max_tokens: int | None = Field(
        None, ge=0, le=2**31, description="Default 16; no limit if max_chars or stop_at_sentence is given."
    )
    temperature: float | None = Field(None, ge=0, description="0 takes the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1)
    stop: Stop | Annotated[Many[Stop], Field(max_length=_MAX_STOPS)] = Field([], description="End before one of these.")
    seed: int | None = Field(None, ge=0, lt=2**64)
    logit_bias: Annotated[dict[str, Bias], BeforeValidator(_shortened)] = Field(
        {}, max_length=_MAX_BIASES, description="Number to add to the logit of a token, by its id."
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    presence_penalty: float = Field(0, description="Not supported; see repetition_penalty.")
    frequency_penalty: float = Field(0, description="Not supported; see repetition_penalty.")
    # What OpenAI's API does not have.
    top_k: Count | None = Field(None, description="Sample from the k likeliest tokens.")
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    no_repeat_ngram: int | None = Field(None, ge=0, le=2**31, description="Never repeat a run of so many tokens.")
    stop_at_sentence: bool = Field(False, description="End with the first sentence after min_chars.")
    min_chars: int | None = Field(None, ge=0, le=2**31, description="Default 128, or max_chars if less.")
    max_chars: Count | None = None
    sample: int = Field(0, ge=0, le=2**63, description="Number of the first text among those of the seed.")
    keep_last: bool = Field(False, description="Truncate a prompt that is too long on the left.")

    @model_validator(mode="after")
    def _effects(self) -> "Generating":
        """Refuse fields that contradict each other, or would have no effect."""
        penalty = self.presence_penalty or self.frequency_penalty
        _require(not penalty, "presence_penalty and frequency_penalty are not supported; give repetition_penalty")
        _require(self.stream or self.stream_options is None, "stream_options is for a stream; give stream=true")
        _require(self.stop_at_sentence or self.min_chars is None, "min_chars is for stop_at_sentence; give it too")
        fits = self.min_chars is None or self.max_chars is None or self.min_chars <= self.max_chars
        _require(fits, f"min_chars is {self.min_chars}, max_chars {self.max_chars}; expected no more than max_chars")
        return self


class Completion(Generating):
    """POST /v1/completions."""

    prompt: Ids | Several[str] | Several[Ids] | str = Field(description="A text, its ids, or a list of either.")
    best_of: int | None = Field(
        None, ge=1, le=MAX_SAMPLES, description="Generate so many, return the n likeliest by mean log-probability."
    )
    echo: bool = Field(False, description="Put the prompt before the text.")
    logprobs: int | None = Field(None, ge=0, le=5, description="Log-probabilities, with so many likeliest tokens.")
    suffix: str | None = Field(None, description="Not supported.")
    beams: int | None = Field(None, ge=1, le=MAX_BEAMS, description="Beam search instead of sampling.")
    length_penalty: float | None = Field(None, description="With beams.")
    parse_special: bool = Field(False, description="Read [CLS] and its like in a prompt as special tokens.")

    @model_validator(mode="after")
    def _together(self) -> "Completion":
        """Refuse fields that contradict each other, or would have no effect."""
        _require(not self.suffix, "suffix is not supported: these models continue a text; leave it out")
        _require(self.candidates >= self.n, f"best_of is {self.best_of}, n is {self.n}; expected best_of of at least n")
        _require(
            not (self.stream and self.candidates > self.n), "best_of cannot be streamed; leave stream out, or best_of"
        )
        if self.beams is None:
            _require(self.length_penalty is None, "length_penalty is for beams; give beams too")
            return self
        drawing = ("seed", "temperature", "top_p", "top_k", "best_of", "logprobs", "stream", "logit_bias")
        given = [name for name in drawing if name in self.model_fields_set and getattr(self, name) is not False]
        _require(not given, f"beams cannot be combined with {', '.join(given)}; leave one out")
        ids = isinstance(self.prompt, list) and not isinstance(self.prompt[0], str)
        _require(not ids, "beams continue texts; give the prompt as text")
        _require(self.max_tokens != 0, "max_tokens is 0, and beams generate; give 1 or more")
        _require(self.n <= self.beams, f"n is {self.n}, beams is {self.beams}; expected n of at most beams")
        return self

    @property
    def candidates(self) -> int:
        """Texts that are generated for each prompt, without beams."""
        return self.n if self.best_of is None else self.best_of


class Message(Fields):
    """A message of a dialogue."""

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str


class Chat(Generating):
    """POST /v1/chat/completions; max_tokens is without limit if it is not given."""

    messages: Several[Message]
    max_completion_tokens: int | None = Field(None, ge=0, le=2**31, description="The same as max_tokens.")

    def completion(self, prompt: str) -> Completion:
        """Return the request that continues a prompt."""
        given = {name: getattr(self, name) for name in Generating.model_fields if name in self.model_fields_set}
        if self.max_completion_tokens is not None:
            given["max_tokens"] = self.max_completion_tokens
        if "max_tokens" not in given:
            given.setdefault("max_chars", 2**31)  # no limit but the model's positions
        return Completion(prompt=prompt, parse_special=True, **given)


class Embeddings(Request):
    """POST /v1/embeddings."""

    input: Text | Several[Text] | Ids | Several[Ids] = Field(
        description="A text, its ids with their marks, or a list of either."
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, description="The model's own number of features.")
    pool: Literal["mean", "first", "pooler"] | None = Field(None, description="Default: the task's own, or mean.")


class Fill(Request):
    """POST /v1/fill."""

    input: Text = Field(description="A text with [MASK]; T5 also <extra_id_0> …")
    k: int = Field(5, ge=1, le=1000, description="Candidates for each; T5 up to 64.")


class Predict(Request):
    """POST /v1/tasks/{name}."""

    input: (
        Text | dict[str, Any] | Many[Text | Annotated[list[Text], Field(min_length=2, max_length=2)] | dict[str, Any]]
    ) = Field(description="A text, or a list of texts, pairs of texts or rows as in the task's data.")


Kind = TypeVar("Kind", bound=Request)


def parse(body: bytes, kind: type[Kind]) -> Kind:
    """Read the body of a request. Raises RequestError naming the field that is wrong."""
    data = parse_json(body, "the body", error=RequestError, unique=True)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _explained(error, data, kind) from None


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _explained(error: ValidationError, data: dict[str, Any], kind: type[Request]) -> RequestError:
    first, *others = error.errors(include_url=False, include_context=False, include_input=False)
    if not first["loc"]:
        return RequestError(first["msg"].removeprefix("Value error, "))
    name, where = str(first["loc"][0]), ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        known = f"; it has {', '.join(kind.model_fields)}" if name == where else ""
        return RequestError(f"{where!r} is no field of this request{known}", param=name)
    if first["type"] == "missing":
        return RequestError(f"{where} is missing", param=name)
    told = dict.fromkeys(each["msg"] for each in (first, *others) if str(each["loc"][0]) == name)
    reasons = " or ".join(list(told)[:3]).replace("Input should", "input should")
    return RequestError(f"{name} is {_shorten.repr(data.get(name))}: {reasons}", param=name)
