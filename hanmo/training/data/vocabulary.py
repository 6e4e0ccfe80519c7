"""Make a vocabulary from a corpus: special tokens, characters by frequency, pieces of ASCII words.

id  0      1      2      3      4       5      6     7     8 ...
    [PAD]  [UNK]  [CLS]  [SEP]  [MASK]  [EOS]  [NL]  [SP]  characters by frequency, then ##a ... ##9, then pieces
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from hanmo.errors import DataError, TokenizerError
from hanmo.tokenizers.codes import codes_of
from hanmo.tokenizers.lossless import END, NEWLINE, SPACE_TOKEN

_NAMED = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", END, NEWLINE, SPACE_TOKEN]
_ASCII = [chr(code) for code in range(0x21, 0x7F)]
_ALNUM = [token for token in _ASCII if token.isalnum()]
_MARKS = "，。、；：？！“”‘’（）《》〈〉【】〔〕—…·～"
_WORD = re.compile("[A-Za-z0-9]+")
_AT_ONCE = 1 << 22  # characters counted together


@dataclass
class CorpusCounts:
    """Counts of the characters and the ASCII words of a corpus; weighted if `add` is given a weight."""

    characters: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)

    def add(self, texts: Iterable[str], *, weight: float = 1.0) -> None:
        """Count the texts, each character and word `weight` times. White space is not counted."""
        held, size = list[str](), 0
        for text in texts:
            held.append(text)
            size += len(text)
            if size >= _AT_ONCE:
                self._count("\n".join(held), weight)
                held, size = [], 0
        self._count("\n".join(held), weight)

    def _count(self, text: str, weight: float) -> None:
        counts = np.bincount(codes_of(text))
        for code in np.flatnonzero(counts).tolist():
            if chr(code).isprintable() and not chr(code).isspace():
                self.characters[chr(code)] += int(counts[code]) * weight  # type: ignore[assignment]
        for word, count in Counter(_WORD.findall(text)).items():
            self.words[word] += count * weight  # type: ignore[assignment]


@dataclass(frozen=True)
class Vocabulary:
    """Tokens; the share of the counted characters that they cover; how many are characters, and pieces of words."""

    tokens: list[str]
    coverage: float
    characters: int
    pieces: int


def make_vocabulary(
    counts: CorpusCounts, *, size: int = 8000, pieces: int = 500, coverage: float = 0.999, always: str = ""
) -> Vocabulary:
    """Choose `size` tokens: named ones, characters by frequency, and `pieces` of ASCII words.

    pieces: how many pieces longer than one letter, chosen by the WordPiece trainer of the tokenizers library.
    coverage: the least share of the counted characters to hold.   always: characters that must be in.
    Raises DataError if nothing was counted, TokenizerError if `size` is too small for the coverage.
    """
    total = sum(counts.characters.values())
    if not total:
        raise DataError("the corpus holds no characters; give text files that are not empty")
    parts = _train_pieces(counts.words, pieces)
    first = dict.fromkeys([*_ASCII, *_MARKS, *sorted(always)])
    room = size - len(_NAMED) - len(_ALNUM) - len(parts)
    ranked = sorted(counts.characters, key=lambda character: (-counts.characters[character], character))
    chosen = list(first | dict.fromkeys(ranked))[: max(room, 0)]
    held = sum(counts.characters[character] for character in chosen)
    if len(first) > room or held / total < coverage:
        raise TokenizerError(
            f"{size} tokens leave {room} for characters, which hold {held / total:.4%} of the corpus, expected "
            f"at least {coverage:.4%} and {len(first)} characters that must be in; raise size or lower pieces"
        )
    chosen.sort(key=lambda character: (-counts.characters[character], character))
    tokens = [*_NAMED, *chosen, *("##" + letter for letter in _ALNUM), *parts]
    return Vocabulary(tokens=tokens, coverage=held / total, characters=len(chosen), pieces=len(parts))


def common_characters() -> str:
    """Return the 3,755 common characters of GB 2312's first level, which no modern text should lack."""
    rows = (bytes([row, column]) for row in range(0xB0, 0xD8) for column in range(0xA1, 0xFF))
    return "".join(pair.decode("gb2312", "ignore") for pair in rows)


def _train_pieces(words: Mapping[str, float], wanted: int) -> list[str]:
    """Return up to `wanted` pieces of two letters and more, sorted."""
    if not wanted or not words:
        return []
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=wanted + 2 * len(_ALNUM),
        initial_alphabet=_ALNUM,
        special_tokens=["##" + letter for letter in _ALNUM],
        continuing_subword_prefix="##",
        show_progress=False,
        min_frequency=2,
    )
    repeated = (" ".join([word] * round(count)) for word, count in sorted(words.items()) if len(word) > 1)
    tokenizer.train_from_iterator((line for line in repeated if line), trainer)
    return sorted(token for token in tokenizer.get_vocab() if len(token.removeprefix("##")) > 1)
