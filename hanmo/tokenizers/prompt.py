"""Prompts as ids, and the marks that a model expects around texts."""

from collections.abc import Iterable
from dataclasses import dataclass

from hanmo.config import ModelConfig
from hanmo.errors import PromptError
from hanmo.tokenizers.lossless import Lossless
from hanmo.tokenizers.protocol import Tokenizer, check_text


@dataclass(frozen=True)
class Marks:
    """The ids around a model's texts, in generation and in training.

    before, after: around a prompt, or a source.   start: the first id of the decoder in an encoder-decoder.
    ends: the ids that end a generated text; training puts the first after a target.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    start: int
    ends: tuple[int, ...]


def marks_of(config: ModelConfig, tokenizer: Tokenizer) -> Marks:
    """Return the marks of a model.

        encoder-decoder (T5)         source </s>; 0 target </s>
        the same, BERT vocabulary    [CLS] source [SEP]; [CLS] target [SEP], as T5-PEGASUS was trained
        mask="prefix" (UniLM)        [CLS] source [SEP] target [SEP]
        any other                    no mark; Lossless: the end mark before each document

    The decoder's first id and the end ids in config.json take precedence over the tokenizer's.
    Raises ConfigError for invalid ids in config.json.
    """
    special = tokenizer.special
    end = () if special.end is None else (special.end,)
    ends = config.end_ids or end
    if not config.is_encoder_decoder and config.main.mask != "prefix":
        return Marks(before=end if isinstance(tokenizer, Lossless) else (), after=(), start=0, ends=ends)
    start = config.decoder_start if config.is_encoder_decoder else None
    if start is None:
        start = next((number for number in (special.start, special.pad) if number is not None), 0)
    return Marks(before=() if special.start is None else (special.start,), after=end, start=start, ends=ends)


def as_texts(texts: object) -> list[str]:
    """Return several texts as a list, one text as a list of one.

    Raises PromptError, naming its position, for an item that is not a str.
    """
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        texts = [texts]
        check_text(texts[0])
    found = list(texts)
    for place, text in enumerate(found):
        check_text(text, name=f"text {place} of the list")
    return found


def encode_prompt(tokenizer: Tokenizer, text: str, *, special: bool = False) -> list[int]:
    """Return the ids of a prompt, without marks.   special: as for Tokenizer.encode.

    Raises PromptError for a prompt that is no str or is empty, contains U+0000 or lone surrogates, or no character in
    the vocabulary.
    """
    check_text(text, name="the prompt")
    if "\0" in text:
        raise PromptError(
            f"the prompt holds the character U+0000 at position {text.index(chr(0))}; is it a binary file? Remove it"
        )
    ids = tokenizer.encode(text, ends=False, special=special).ids
    if not ids:
        shown = "is empty" if not text else f"is {text[:20]!r} and holds nothing but white space or control characters"
        raise PromptError(f"the prompt {shown}; give at least one character to begin with")
    if all(number == tokenizer.special.unk for number in ids):
        raise PromptError(
            f"the prompt {text[:20]!r} has no character that the vocabulary of {tokenizer.vocab_size} tokens knows; "
            "write it in the characters the model was trained on, or use the vocabulary that belongs to the model"
        )
    return ids


def special_tokens_in(tokenizer: Tokenizer, text: str) -> list[str]:
    """List the special tokens, such as [CLS], that are written in a text and that special=True reads, in order."""
    ids = dict.fromkeys(tokenizer.encode(text, ends=False, special=True).ids)
    names = {number: tokenizer.id_to_token(number) for number in ids if not tokenizer.decode([number])}
    return [name for name in names.values() if name in text]
