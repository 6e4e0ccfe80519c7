"""A prompt as ids, or the reason why it cannot be written on from.

Knows what is wrong with a prompt. Knows no model: whether the prompt is too long is the model's to say.
"""

from hanmo.errors import PromptError
from hanmo.tokenizers.protocol import Tokenizer

__all__ = ["encode_prompt", "special_tokens_in"]


def encode_prompt(tokenizer: Tokenizer, text: str, *, ends: bool | None = None, special: bool = False) -> list[int]:
    """Return the ids of a prompt that a model is to continue.

    ends, special: as Tokenizer.encode.
    Raises PromptError for a prompt that is empty, holds U+0000 or lone surrogates, or has no character that the
    vocabulary knows.
    """
    if "\0" in text:
        raise PromptError(
            f"the prompt holds the character U+0000 at position {text.index(chr(0))}; is it a binary file? Remove it"
        )
    plain = tokenizer.encode(text, ends=False, special=special).ids
    if not plain:
        shown = "is empty" if not text else f"is {text[:20]!r} and holds nothing but white space or control characters"
        raise PromptError(f"the prompt {shown}; give at least one character to begin with")
    if all(number == tokenizer.special.unk for number in plain):
        raise PromptError(
            f"the prompt {text[:20]!r} has no character that the vocabulary of {tokenizer.vocab} "
            "tokens knows; write it "
            "in the characters the model was trained on, or use the vocabulary that belongs to the model"
        )
    return tokenizer.encode(text, ends=ends, special=special).ids


def special_tokens_in(tokenizer: Tokenizer, text: str) -> list[str]:
    """List the special tokens, such as [CLS], that are written out in a text and that special=True reads, in order."""
    ids = dict.fromkeys(tokenizer.encode(text, ends=False, special=True).ids)
    names = {number: tokenizer.id_to_token(number) for number in ids if not tokenizer.decode([number])}
    return [name for name in names.values() if name in text]
