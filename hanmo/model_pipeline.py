"""The pipeline that `hanmo.load` returns: generates, scores, encodes and fills with a network and a tokenizer."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
import torch

from hanmo.checkpoint.load import Report
from hanmo.checkpoint.save import save
from hanmo.config import ModelConfig
from hanmo.errors import CheckpointError, ConfigError, PromptError
from hanmo.export.huggingface import huggingface_files
from hanmo.generate.rules import check_count
from hanmo.generate.text import search
from hanmo.inference.cuda.blocks import Int8Linear
from hanmo.inference.cuda.engine import StaticEngine
from hanmo.inference.torch_engine import TorchEngine
from hanmo.model import Model
from hanmo.pipeline import Pipeline, Texts
from hanmo.tokenizers.load import tokenizer_files
from hanmo.tokenizers.prompt import as_texts, encode_prompt
from hanmo.tokenizers.protocol import Tokenizer
from hanmo.tokenizers.sentence_piece import sentinel_ids
from hanmo.training.score import Bits, bits_per_character, distinct_unknown_of, token_logprobs

if TYPE_CHECKING:
    from typing_extensions import Self

SPAN = 16  # maximum mean length of a span in `fill`, in ids; T5 was trained on spans of 3
QUEUED = ("cuda",)  # device types for StaticEngine


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text.

    bits_per_char: -log2 of the text's probability, divided by the number of predicted characters.
    tokens: the predicted tokens: all but the first.   logprobs: natural logarithm of the probability of each.
    """

    bits_per_char: float
    logprobs: list[float]
    tokens: list[str]


@dataclass(frozen=True)
class Candidate:
    """A token (for T5 a text) for a [MASK], and its probability."""

    token: str
    probability: float


class ModelPipeline(Pipeline):
    """A pipeline with its network; see `hanmo.load`.   report: the tensors that loading used and left out."""

    def __init__(
        self, config: ModelConfig, model: Model, tokenizer: Tokenizer | None, report: Report, path: Path
    ) -> None:
        super().__init__(config, tokenizer, path)
        self.model, self.report = model, report
        self._kept: tuple[int, StaticEngine] | None = None

    @property
    def engine(self) -> TorchEngine:
        """The torch engine; on a GPU the one of static shapes, kept for its memory and its graphs.

        Raises CheckpointError if the model cannot generate text.
        """
        weight = self.model.token.weight
        start = 0 if self.tokenizer is None else self.marks.start
        if weight.device.type not in QUEUED:
            return TorchEngine(self.model, start=start)
        kept = self._kept  # a model that was moved or replaced needs another
        if kept is None or kept[0] != weight.data_ptr() or kept[1].model is not self.model:
            self._kept = kept = weight.data_ptr(), StaticEngine(self.model, start=start)
        return kept[1]

    def use_openvino(self, *, weights: str = "float32", threads: int | None = None) -> "Self":
        """Compute the encoder by OpenVINO on this CPU from now on: for `encode`, and for `predict` of a task.

        weights: of the checkpoint's matrices: "float32", which equals torch up to rounding, "bfloat16" or "int8". They
        are converted once and kept as `open_writer` keeps them.   threads: None leaves it to OpenVINO.
        Raises CheckpointError for a model with a decoder, ConfigError for an unsupported network or kind of weights,
        for one on a GPU, and for one that is not as the checkpoint says.
        """
        from hanmo.inference.openvino.engine import open_weights
        from hanmo.inference.openvino.model import OpenVinoModel

        if (device := self.model.token.weight.device.type) != "cpu":
            raise ConfigError(
                f"the model is on {device!r}, and OpenVINO computes on the CPU; load it with device='cpu'"
            )
        self.model = OpenVinoModel(self.model, open_weights(self.path, weights=weights), threads=threads)
        return self

    def save(self, path: str | Path, *, form: str = "safetensors", overwrite: bool = False) -> Path:
        """Save network and vocabulary and return the path to load; form and errors as for `hanmo.save`.

        Raises CheckpointError also for int8 weights, which no form supports.
        """
        if any(isinstance(layer, Int8Linear) for layer in self.model.modules()):
            raise CheckpointError(
                f"the weights of {self.path} are held as int8, which no form of checkpoint has; "
                "load it again and save that"
            )
        beside = tokenizer_files(self.path if self.path.is_dir() else self.path.parent)
        described = form == "huggingface" and self.tokenizer is not None and bool(beside)
        files = huggingface_files(self.config, self._tokenizer(), beside) if described else beside
        return save(self.model, path, form=form, tokenizer=files, overwrite=overwrite).path

    @overload
    def score(self, text: str, *, distinct_unknown: int | None = ..., parse_special: bool = ...) -> Score: ...
    @overload
    def score(self, text: Texts, *, distinct_unknown: int | None = ..., parse_special: bool = ...) -> list[Score]: ...
    @torch.inference_mode()
    def score(
        self, text: str | Texts, *, distinct_unknown: int | None = None, parse_special: bool = False
    ) -> Score | list[Score]:
        """Measure how well a causal model predicts a text, in windows that overlap by half.

        text: one, or a list of texts, which gives a list. A model that Hanmo trained also predicts the end mark.
        distinct_unknown: number of distinct unknown characters in training; each [UNK] then costs log2 of it + 1 more
        bits. None is the number in the model's training.json, or 0.   parse_special: as for `generation_config`.
        Raises PromptError for a text of fewer than two tokens, CheckpointError for a model that is not causal.
        """
        if not isinstance(text, str):
            how: dict[str, Any] = {"distinct_unknown": distinct_unknown, "parse_special": parse_special}
            return [self.score(each, **how) for each in as_texts(text)]
        tokenizer = self._tokenizer()
        if not self.config.can_generate or self.config.main.mask != "causal" or self.config.is_encoder_decoder:
            raise CheckpointError("scores need a model that reads from left to right; load a BERT with mask='causal'")
        marks = self.marks.before
        ids = [*marks, *encode_prompt(tokenizer, text, special=parse_special), *marks]
        if len(ids) < 2:
            raise PromptError(f"the text {text!r} is one token; nothing predicts the first, give a longer text")
        logprobs = token_logprobs(self._logprobs, ids, window=self.config.main.context or len(ids))
        tokens = [tokenizer.id_to_token(i) for i in ids[1:]]
        first = 0 if marks else len(tokenizer.decode(ids[:1])) or 1
        unknown = sum(i == tokenizer.special.unk for i in ids[1:])
        spent = Bits(-sum(logprobs), len(logprobs), max(1, len(text) - first), unknown)
        distinct = distinct_unknown_of(self.path) if distinct_unknown is None else distinct_unknown
        return Score(bits_per_character(spent, distinct_unknown=distinct), logprobs, tokens)

    def _logprobs(self, ids: Sequence[int]) -> list[float]:
        part = torch.tensor([ids], device=self.model.token.weight.device)
        logits = self.model(part).logits[0, :-1].float()
        return logits.log_softmax(-1).gather(-1, part[0, 1:, None])[:, 0].tolist()

    def encode(self, texts: str | Sequence[str], *, pool: str = "mean", batch: int = 32) -> npt.NDArray[np.float32]:
        """Encode texts as vectors [texts, hidden_size]; one text counts as a list of one.

        Texts longer than the model's positions are truncated at their end.
        pool: "mean" of all tokens, "first" token, or "pooler" (the trained one).   batch: texts at once.
        Raises CheckpointError if the model lacks `pool`, ConfigError for another `pool`, PromptError for an item that
        is no text.
        """
        encodings = self._tokenizer().encode_batch(as_texts(texts), limit=self.config.main.context)
        return self.encode_ids([encoding.ids for encoding in encodings], pool=pool, batch=batch)

    @torch.inference_mode()
    def encode_ids(
        self, texts: Sequence[Sequence[int]], *, pool: str = "mean", batch: int = 32
    ) -> npt.NDArray[np.float32]:
        """Encode texts that are given as their ids, marks such as [CLS] included; see `encode`.

        Raises PromptError for a text without ids, with one that the model lacks, or with too many, else as `encode`.
        """
        if pool not in ("mean", "first", "pooler"):
            raise ConfigError(f"pool is {pool!r}; expected 'mean', 'first' or 'pooler'")
        if pool == "pooler" and self.model.pooler is None:
            raise CheckpointError("this checkpoint has no pooler; use pool='mean' or 'first'")
        if self.config.main.mask == "prefix":
            raise CheckpointError("this model was loaded to write (mask='prefix'); load it without a mask for vectors")
        context, vocab_size = self.config.main.context, self.config.vocab_size
        for number, row in enumerate(texts):
            if not row or (context is not None and len(row) > context):
                raise PromptError(f"text {number} has {len(row)} ids; expected 1 to {context or 'any number'}")
            if (wrong := next((id for id in row if not 0 <= id < vocab_size), None)) is not None:
                raise PromptError(f"text {number} holds id {wrong}; the vocabulary has ids 0 to {vocab_size - 1}")
        vectors = np.zeros((len(texts), self.config.main.hidden_size), np.float32)
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            rows = [torch.tensor(texts[place], dtype=torch.long) for place in places]
            lengths, device = torch.tensor([len(row) for row in rows]), self.model.token.weight.device
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).to(device)
            if self.config.is_encoder_decoder:
                hidden = self.model.encode(ids, mask=mask)
            else:
                output = self.model(ids, mask=mask, logits="none")
                hidden = output.hidden if pool != "pooler" else output.pooled[:, None]
            if pool == "mean":
                weights = mask[..., None].to(hidden.dtype)
                hidden = ((hidden * weights).sum(1) / weights.sum(1))[:, None]
            vectors[places] = hidden[:, 0].float().cpu().numpy()
        return vectors

    @torch.inference_mode()
    def fill(self, text: str, *, k: int = 5) -> list[list[Candidate]]:
        """Return the k likeliest tokens for each [MASK] in a text, in order.

        T5: texts of any length for each <extra_id_0>, <extra_id_1> …, or each [MASK] if there is none of these; from
        the k best answers of a beam search, each with the total probability of the answers that contain it.
        k: 1 or more; vocab_size or more returns all tokens.
        Raises PromptError if there is no [MASK] or the text is too long, ConfigError for a k below 1, CheckpointError
        if the model cannot fill.
        """
        check_count("k", k)
        tokenizer = self._tokenizer()
        if self.config.is_encoder_decoder:
            return self._fill_spans(text, k)
        mask = tokenizer.special.mask
        if self.config.output == "none" or self.config.main.mask != "full" or mask is None:
            raise CheckpointError("filling needs a masked language model: a BERT-like encoder with its MLM head")
        ids = tokenizer.encode(text, special=True).ids
        places = [i for i, token in enumerate(ids) if token == mask]
        if not places:
            name = tokenizer.id_to_token(mask)
            raise PromptError(f"the text {text[:20]!r} has no {name}; write one where a token is to be found")
        context = self.config.main.context
        if context is not None and len(ids) > context:
            raise PromptError(
                f"the text has {len(ids)} tokens with its marks, the model knows {context} positions; shorten it"
            )
        logits = self.model(torch.tensor([ids], device=self.model.token.weight.device)).logits[0, places].float()
        logits[:, tokenizer.vocab_size :] = -torch.inf
        best = logits.softmax(-1).topk(min(k, tokenizer.vocab_size))
        return [
            [Candidate(tokenizer.id_to_token(i), p) for p, i in zip(values, found, strict=True)]
            for values, found in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def _fill_spans(self, text: str, k: int) -> list[list[Candidate]]:
        tokenizer, sentinels = self._tokenizer(), sentinel_ids(self._tokenizer())
        if not sentinels:
            raise CheckpointError("this T5's vocabulary has no <extra_id_0>, which filling needs")
        if "<extra_id_" not in text:
            numbers = count()
            text = re.sub(r"\[MASK\]", lambda _: f"<extra_id_{next(numbers)}>", text)
        asked = [i for i in tokenizer.encode(text, ends=False, special=True).ids if i in sentinels]
        if not asked:
            raise PromptError(
                f"the text {text[:20]!r} has no <extra_id_0> and no [MASK]; write one where a text is due"
            )
        config = self.generation_config(stop=None, max_chars=None, max_tokens=SPAN * (len(asked) + 1))
        banned = tuple(i for i in config.sampling.banned if i not in sentinels)
        config = replace(config, sampling=replace(config.sampling, banned=banned))
        found: list[dict[str, float]] = [{} for _ in asked]
        for answer in search(self.engine, tokenizer, text, k, config=config):
            marks = [at for at, i in enumerate(answer.ids) if i in {*sentinels, *config.limits.end_ids}]
            parts = [answer.ids[start:stop] for start, stop in pairwise([*marks, len(answer.ids)])]
            for sentinel, candidates in zip(asked, found, strict=True):
                part = next((part for part in parts if part[0] == sentinel), None)  # it should occur only once
                if part is not None:
                    span = tokenizer.decode(part[1:])
                    candidates[span] = candidates.get(span, 0.0) + math.exp(answer.score or 0.0)
        return [sorted((Candidate(*item) for item in each.items()), key=lambda c: -c.probability) for each in found]


Loaded = ModelPipeline  # the name in 0.1
