"""What `hanmo.load` gives: one object that knows network and tokenizer, and writes, scores, encodes and fills.

Joins an engine with hanmo.generate. Knows no file.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hanmo.config import ModelConfig
from hanmo.engines.torch_engine import TorchEngine
from hanmo.errors import CheckpointError, ConfigError, MissingFile, PromptError, TokenizerError
from hanmo.generate.loop import Limits
from hanmo.generate.sampling import PRESETS, Sampling
from hanmo.generate.stop import StopRules
from hanmo.generate.text import Stream, Writing, Written, search, stream, write
from hanmo.model import Model
from hanmo.tokenizers.prompt import encode_prompt
from hanmo.tokenizers.protocol import Tokenizer
from hanmo.weights.load import Report


@dataclass(frozen=True)
class Score:
    """How well a model foretells a text.

    bits_per_char: -log2 of the text's probability, divided by the characters that were foretold.
    logprobs: natural logarithm of the probability of each token but the first, which nothing foretells.
    tokens: all tokens of the text, as the vocabulary spells them.
    """

    bits_per_char: float
    logprobs: list[float]
    tokens: list[str]


@dataclass(frozen=True)
class Candidate:
    """A token that could stand in a [MASK], and how likely the model finds it (0 to 1)."""

    token: str
    probability: float


class Loaded:
    """A model that is ready to use; see `hanmo.load`.

    config, model, tokenizer (None if no vocabulary was found), report (what loading used and left), path.
    """

    def __init__(
        self, config: ModelConfig, model: Model, tokenizer: Tokenizer | None, report: Report, path: Path
    ) -> None:
        if tokenizer is not None and tokenizer.vocab > config.vocab:
            raise TokenizerError(
                f"the vocabulary beside {path} has {tokenizer.vocab:,} words, the checkpoint {config.vocab:,} rows; "
                "they do not belong together: give the vocabulary that came with the checkpoint"
            )
        self.config, self.model, self.report, self.path = config, model, report, path
        self.tokenizer = tokenizer

    def write(
        self, text: str, *, n: int = 1, seed: int | None = None, beams: int | None = None, **how: Any
    ) -> list[str]:
        """Go on from a text n times; each result begins with it (an encoder-decoder answers instead).

        seed: repeats the results; each depends only on it and its number.   beams: search with so many instead of
        drawing, and give the n best.   how: see `writing`.
        Raises PromptError for a text that cannot be continued, ConfigError for a setting out of range.
        """
        return [self.joined(text, written) for written in self.write_detailed(text, n=n, seed=seed, beams=beams, **how)]

    def write_detailed(
        self, text: str, *, n: int = 1, seed: int | None = None, beams: int | None = None, **how: Any
    ) -> list[Written]:
        """Do as `write` does, and say why each text ended; the prompt is not part of `Written.text`."""
        engine, tokenizer, writing = self._ready(how)
        if beams is None:
            return write(engine, tokenizer, [text], n=n, writing=writing, seed=seed)[0]
        if n > beams:
            raise ConfigError(f"n is {n}, beams is {beams}; a search gives at most as many texts as it has beams")
        return search(engine, tokenizer, text, beams, writing=writing)[:n]

    def stream(self, text: str, *, seed: int | None = None, sample: int = 0, **how: Any) -> Stream:
        """Go on from a text piece by piece: an iterator of str, without the prompt; arguments as for `write`.

        sample: the number that the text would have among the n of `write`.
        """
        engine, tokenizer, writing = self._ready(how)
        return stream(engine, tokenizer, text, writing=writing, seed=seed, sample=sample)

    def writing(
        self,
        *,
        preset: str | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        no_repeat_ngram: int | None = None,
        allow_unknown: bool = False,
        min_chars: int | None = None,
        max_chars: int | None = 256,
        max_tokens: int | None = None,
        stop: str | None = "sentence",
        stop_strings: Sequence[str] = (),
        keep_last: bool = False,
    ) -> Writing:
        """Make the settings of writing.

        temperature: 0 always takes the likeliest.   top_k, top_p: draw from the likeliest only; with neither, from 5.
        preset: "article", "gpt2-ml-demo" or "greedy" draws just as that did, instead of by the settings of drawing.
        stop: "sentence" ends with the first sentence after min_chars (128, or max_chars if less); None goes on.
        max_chars: the most characters; None is no limit. Both count what is written, without the prompt.
        max_tokens: the most tokens; None is as far as the model knows positions.
        allow_unknown: let [UNK] be written.   keep_last: cut a prompt that is too long from the left.
        Raises ConfigError for a setting out of range.
        """
        if stop not in ("sentence", None):
            raise ConfigError(f"stop is {stop!r}; expected 'sentence' or None (and see stop_strings)")
        if preset is None:
            sampling = Sampling(
                temperature=temperature,
                top_k=5 if top_k is None and top_p is None else top_k,
                top_p=top_p,
                repetition_penalty=repetition_penalty,
                no_repeat_ngram=no_repeat_ngram,
                banned=self._marks(allow_unknown),
            )
        elif preset in PRESETS:
            sampling = PRESETS[preset]
        else:
            raise ConfigError(f"preset is {preset!r}; expected one of {', '.join(PRESETS)}")
        spare = range(self._tokenizer().vocab, self.config.vocab)
        least = min(128, max_chars or 128) if min_chars is None else min_chars
        if max_tokens is None and self.config.main.context is None:
            max_tokens = 4 * (max_chars or 1024)  # an end for models whose positions have none
        end = self._tokenizer().special.end
        answers = self.config.answers
        return Writing(
            sampling=replace(sampling, banned=(*sampling.banned, *spare)),
            limits=Limits(max_tokens=max_tokens, end_ids=() if end is None else (end,)),
            stop=StopRules(sentence_after=least if stop else None, strings=tuple(stop_strings), max_chars=max_chars),
            keep_last=keep_last,
            continues=not answers and self.config.main.mask == "causal",
            ends=None if answers or self.config.main.mask == "prefix" else False,
        )

    def _marks(self, allow_unknown: bool) -> tuple[int, ...]:
        """Give the special ids that are no text and end none."""
        special = self._tokenizer().special
        kept = {special.end} | ({special.unk} if allow_unknown else set())
        return tuple(sorted(special.known() - kept))

    @torch.inference_mode()
    def score(self, text: str, *, distinct_unknown: int = 0) -> Score:
        """Measure how well a model that writes foretells a text, in windows that overlap by half.

        distinct_unknown: how many unknown characters training saw; each [UNK] then costs log2 of it + 1 more bits.
        Raises PromptError for a text of fewer than two tokens, CheckpointError for a model that does not write.
        """
        tokenizer = self._tokenizer()
        if not self.config.writes or self.config.main.mask != "causal" or self.config.answers:
            raise CheckpointError("scores need a model that reads from left to right; load a BERT with mask='causal'")
        ids = encode_prompt(tokenizer, text, ends=False)
        if len(ids) < 2:
            raise PromptError(f"the text {text!r} is one token; nothing foretells the first, give a longer text")
        logprobs = self._logprobs(ids, self.config.main.context or len(ids))
        tokens = [tokenizer.id_to_token(i) for i in ids]
        bits = -sum(logprobs) / math.log(2)
        bits += sum(i == tokenizer.special.unk for i in ids[1:]) * math.log2(distinct_unknown + 1)
        first = len(tokenizer.decode(ids[:1])) or 1
        return Score(bits / max(1, len(text) - first), logprobs, tokens)

    def _logprobs(self, ids: list[int], window: int) -> list[float]:
        device = self.model.token.weight.device
        logprobs: list[float] = []
        start = 0
        while len(logprobs) < len(ids) - 1:
            part = torch.tensor([ids[start : start + window]], device=device)
            logits = self.model(part).logits[0, :-1].float()
            found = logits.log_softmax(-1).gather(-1, part[0, 1:, None])[:, 0]
            logprobs += found[len(logprobs) - start :].tolist()
            start += max(1, window // 2)
        return logprobs

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], *, pool: str = "mean", batch: int = 32) -> npt.NDArray[np.float32]:
        """Turn texts into vectors [texts, width] with an encoder.

        pool: "mean" of all tokens, "first" token, or "pooler" (the trained one, if there is).   batch: texts at once.
        Raises CheckpointError if the model lacks what `pool` names, ConfigError for another `pool`.
        """
        if pool not in ("mean", "first", "pooler"):
            raise ConfigError(f"pool is {pool!r}; expected 'mean', 'first' or 'pooler'")
        if pool == "pooler" and self.model.pooler is None:
            raise CheckpointError("this checkpoint has no pooler; use pool='mean' or 'first'")
        tokenizer = self._tokenizer()
        encodings = tokenizer.encode_batch(list(texts), limit=self.config.main.context)
        vectors = [np.zeros((0, self.config.main.width), np.float32)]
        for start in range(0, len(encodings), batch):
            ids, mask = self._padded([encoding.ids for encoding in encodings[start : start + batch]])
            if self.config.answers:
                hidden = self.model.encode(ids, mask=mask)
            else:
                output = self.model(ids, mask=mask, logits="none")
                hidden = output.hidden if pool != "pooler" else output.pooled[:, None]
            if pool == "mean":
                weights = mask[..., None].to(hidden.dtype)
                hidden = ((hidden * weights).sum(1) / weights.sum(1))[:, None]
            vectors.append(hidden[:, 0].float().cpu().numpy())
        return np.concatenate(vectors)

    @torch.inference_mode()
    def fill(self, text: str, *, k: int = 5) -> list[list[Candidate]]:
        """Name the k likeliest tokens for each [MASK] in a text: one list for each, in order.

        Raises PromptError if there is no [MASK], CheckpointError if the model cannot fill one.
        """
        tokenizer = self._tokenizer()
        mask = tokenizer.special.mask
        if self.config.output == "none" or self.config.main.mask != "full" or mask is None:
            raise CheckpointError("filling needs a masked language model: a BERT-like encoder with its MLM head")
        ids = tokenizer.encode(text, special=True).ids
        places = [i for i, token in enumerate(ids) if token == mask]
        if not places:
            raise PromptError(f"the text {text[:20]!r} has no [MASK]; write one where a token is to be found")
        logits = self.model(torch.tensor([ids], device=self.model.token.weight.device)).logits[0, places].float()
        logits[:, tokenizer.vocab :] = -torch.inf
        best = logits.softmax(-1).topk(k)
        return [
            [Candidate(tokenizer.id_to_token(i), p) for p, i in zip(values, found, strict=True)]
            for values, found in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(len(row) for row in rows)
        device = self.model.token.weight.device
        ids = torch.tensor([list(row) + [0] * (longest - len(row)) for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        return ids, torch.arange(longest, device=device) < lengths[:, None]

    def _ready(self, how: dict[str, Any]) -> tuple[TorchEngine, Tokenizer, Writing]:
        engine = TorchEngine(self.model)
        return engine, self._tokenizer(), self.writing(**how)

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise MissingFile(
                f"no vocabulary lies beside {self.path}; put its vocab.txt or *.model there, or give tokenizer=PATH"
            )
        return self.tokenizer

    def joined(self, text: str, written: Written) -> str:
        """Join a prompt and what was written on; an answer to a source stands alone."""
        return written.text if self.config.answers or self.config.main.mask == "prefix" else text + written.text
