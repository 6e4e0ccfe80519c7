"""Vocabularies of words, and jieba, which splits texts into words."""

import logging
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from hanmo.errors import MissingExtra

_WORD = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]{2,}")
_SHARE = 0.05  # RoFormer, WoBERT and T5-PEGASUS have above 0.5, bert-base-chinese and CLUE none


def holds_words(tokens: Sequence[str]) -> bool:
    """Tell whether more than 5 % of a vocabulary's tokens are words of several Chinese characters."""
    return sum(1 for token in tokens if _WORD.fullmatch(token)) > _SHARE * len(tokens)


def jieba_words(text: str, *, hmm: bool) -> Iterable[str]:
    """Split a text into words, which joined are the text.

    hmm: let jieba guess words missing in its dictionary. CPM does; bert4keras's and transformers' RoFormer do not.
    Raises MissingExtra if jieba is not installed.
    """
    jieba: Any = sys.modules.get("jieba")
    if jieba is None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # jieba 0.42.1 causes deprecation warnings
                jieba = import_module("jieba")
        except ImportError:
            raise MissingExtra(
                "cutting Chinese texts into words, as CPM's tokenizer and vocabularies of words (RoFormer, WoBERT, "
                "T5-PEGASUS) need it, takes jieba, which is not installed; pip install 'hanmo[cpm]'"
            ) from None
        jieba.setLogLevel(logging.WARNING)  # it logs how long its dictionary took to load
    words: Iterable[str] = jieba.cut(text, HMM=hmm)
    return words


split_words = partial(jieba_words, hmm=False)
