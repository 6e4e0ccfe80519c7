"""The tokenizer files and special ids of a Hugging Face folder; existing files are kept, missing ones are written."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hanmo.checkpoint.save import CODE
from hanmo.config import ModelConfig
from hanmo.errors import ConfigError
from hanmo.files import read_json
from hanmo.generate.sampling import TOP_K
from hanmo.tokenizers.byte_bpe import ByteBPE
from hanmo.tokenizers.lossless import Lossless
from hanmo.tokenizers.prompt import marks_of
from hanmo.tokenizers.protocol import Tokenizer
from hanmo.tokenizers.rust import rust_tokenizer
from hanmo.tokenizers.sentence_piece import SentencePiece
from hanmo.tokenizers.wordpiece import WordPiece

_RUST = "PreTrainedTokenizerFast"
_CPM, _CPM_CODE = "CpmJiebaTokenizer", "tokenization_cpm"
_CPM_MAP = {"AutoTokenizer": [f"{_CPM_CODE}.{_CPM}", None]}  # the class in Python, and none in Rust
_TOKENS = {"pad": "pad_token", "unk": "unk_token", "start": "cls_token", "end": "sep_token", "mask": "mask_token"}


def huggingface_files(
    config: ModelConfig, tokenizer: Tokenizer, files: Sequence[Path]
) -> dict[str, Path | dict[str, Any]]:
    """Return the files beside the weights by their names in transformers: a file to copy, or JSON to write.

    files: as `tokenizer_files` lists them.   "config.json": what to add to the model's.
    generation_config.json gets the special ids and the way of drawing that it does not name, since transformers then
    reads them nowhere else.
    """
    copied = {file.name: file for file in files}
    written: dict[str, dict[str, Any]] = {}
    if not config.generation:
        special, marks = tokenizer.special, marks_of(config, tokenizer)
        ids = {"pad_token_id": special.pad}
        if config.can_generate:
            ids |= {"bos_token_id": special.start, "eos_token_id": next(iter(marks.ends), None)}
        if config.is_encoder_decoder:
            ids["decoder_start_token_id"] = marks.start
        if ids := {name: number for name, number in ids.items() if number is not None}:
            written["config.json"] = ids
            if config.can_generate:
                own = copied.pop("generation_config.json", None)
                kept = {} if own is None else read_json(own, error=ConfigError)
                drawing = {} if "do_sample" in kept or {"top_k", "top_p"} & set(kept) else {"top_k": TOP_K}
                written["generation_config.json"] = {"do_sample": True} | drawing | ids | kept
    own = copied.get("tokenizer_config.json")
    said = {} if own is None else read_json(own, error=ConfigError)
    named = (config.generation | said).get("tokenizer_class")
    cpm = isinstance(tokenizer, SentencePiece) and tokenizer.cpm
    described = "tokenizer.json" in copied or named not in (("CpmTokenizer", _CPM, None) if cpm else (None,))
    if not described and (found := _tokenizer_config(config, tokenizer)):
        written["tokenizer_config.json"] = content = found | said
        content["tokenizer_class"] = named or found["tokenizer_class"]
        if content.get("auto_map") == _CPM_MAP:
            copied[f"{_CPM_CODE}.py"] = CODE / f"{_CPM_CODE}.py"
        if found["tokenizer_class"] == _RUST and isinstance(tokenizer, WordPiece | Lossless):
            written["tokenizer.json"] = json.loads(rust_tokenizer(config, tokenizer).to_str())
        if isinstance(tokenizer, SentencePiece):
            copied = {"spiece.model" if name.endswith(".model") else name: file for name, file in copied.items()}
    return {**copied, **written}


def _tokenizer_config(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return a tokenizer_config.json, or {} where transformers finds the class by model_type or has none.

    RoBERTa, XLM-R and CamemBERT are found. `CpmTokenizer` splits no words by jieba, so that its ids are not CPM's; a
    folder that names it gets our class in auto_map beside it.
    """
    found: dict[str, Any] = {}
    start = tokenizer.special.start
    if isinstance(tokenizer, WordPiece | Lossless):
        jieba = isinstance(tokenizer, WordPiece) and tokenizer.pre_tokenizes
        found = {"tokenizer_class": "RoFormerTokenizer" if jieba else _RUST, "clean_up_tokenization_spaces": False}
        if isinstance(tokenizer, WordPiece):
            found["do_lower_case"] = tokenizer.lowercase
        if config.main.segments:
            found["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
        found |= _special_tokens(config, tokenizer)
    elif isinstance(tokenizer, SentencePiece) and start is not None and tokenizer.id_to_token(start) == "[CLS]":
        found = {"tokenizer_class": "AlbertTokenizer"}
    elif isinstance(tokenizer, SentencePiece) and tokenizer.cpm:
        if not marks_of(config, tokenizer).after:
            found = {"tokenizer_class": _CPM, "auto_map": _CPM_MAP} | _special_tokens(config, tokenizer)
    elif isinstance(tokenizer, SentencePiece) and start is None:
        found = {"tokenizer_class": "T5Tokenizer", "extra_ids": tokenizer.extra_ids}
    elif isinstance(tokenizer, ByteBPE) and start is None:
        found = {"tokenizer_class": "GPT2Tokenizer"}
    if found and config.main.context is not None:
        found["model_max_length"] = config.main.context
    return found


def _special_tokens(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, str]:
    names = _TOKENS | ({"end": "eos_token"} if config.can_generate else {})
    ids = {name: getattr(tokenizer.special, kind) for kind, name in names.items()}
    return {name: tokenizer.id_to_token(number) for name, number in ids.items() if number is not None}
