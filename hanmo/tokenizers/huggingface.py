"""The tokenizer files and special ids of a Hugging Face folder; existing files are kept, missing ones are written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hanmo.config import ModelConfig
from hanmo.tokenizers.byte_bpe import ByteBPE
from hanmo.tokenizers.prompt import marks_of
from hanmo.tokenizers.protocol import Tokenizer
from hanmo.tokenizers.sentence_piece import SentencePiece
from hanmo.tokenizers.wordpiece import WordPiece

_TOKENS = {"pad": "pad_token", "unk": "unk_token", "start": "cls_token", "end": "sep_token", "mask": "mask_token"}


def huggingface_files(
    config: ModelConfig, tokenizer: Tokenizer, files: Sequence[Path]
) -> dict[str, Path | dict[str, Any]]:
    """Return the files beside the weights by their names in transformers: a file to copy, or JSON to write.

    files: as `tokenizer_files` lists them.   "config.json": what to add to the model's.
    A tokenizer without a class in transformers (`Lossless`) gets no tokenizer_config.json.
    """
    copied = {file.name: file for file in files}
    written: dict[str, dict[str, Any]] = {}
    if not config.generation and (ids := _ids(config, tokenizer)):
        written["config.json"] = ids
        if config.can_generate and "generation_config.json" not in copied:
            written["generation_config.json"] = ids
    described = {"tokenizer_config.json", "tokenizer.json"} & set(copied) or "tokenizer_class" in config.generation
    if not described and (said := _tokenizer_config(config, tokenizer)):
        written["tokenizer_config.json"] = said
        if isinstance(tokenizer, SentencePiece):
            copied = {"spiece.model" if name.endswith(".model") else name: file for name, file in copied.items()}
    return {**copied, **written}


def _ids(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    special, marks = tokenizer.special, marks_of(config, tokenizer)
    ids = {"pad_token_id": special.pad}
    if config.can_generate:
        ids |= {"bos_token_id": special.start, "eos_token_id": next(iter(marks.ends), None)}
    if config.is_encoder_decoder:
        ids["decoder_start_token_id"] = marks.start
    return {name: number for name, number in ids.items() if number is not None}


def _tokenizer_config(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if isinstance(tokenizer, WordPiece):
        kind = "RoFormerTokenizer" if tokenizer.pre_tokenizes else "BertTokenizer"
        said = {"tokenizer_class": kind, "do_lower_case": tokenizer.lowercase}
        numbers = {kind: getattr(tokenizer.special, kind) for kind in _TOKENS}
        said |= {_TOKENS[kind]: tokenizer.id_to_token(number) for kind, number in numbers.items() if number is not None}
    elif isinstance(tokenizer, SentencePiece):
        albert = "AlbertTokenizer" if tokenizer.special.start is not None else "T5Tokenizer"
        said = {"tokenizer_class": "CpmTokenizer" if tokenizer.cpm else albert}
        if said["tokenizer_class"] == "T5Tokenizer":
            said["extra_ids"] = tokenizer.extra_ids
    elif isinstance(tokenizer, ByteBPE):
        said = {"tokenizer_class": "GPT2Tokenizer"}
    if said and config.main.context is not None:
        said["model_max_length"] = config.main.context
    return said
