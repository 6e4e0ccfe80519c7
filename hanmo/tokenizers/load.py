"""Find and load the tokenizer at a path, by the names of the files there."""

import json
import shutil
from pathlib import Path
from typing import Any

from hanmo.errors import MissingFile, TokenizerError
from hanmo.files import read_bytes
from hanmo.tokenizers.added import read_added, read_object
from hanmo.tokenizers.bert_rules import PreTokenize
from hanmo.tokenizers.byte_bpe import ByteBPE
from hanmo.tokenizers.lossless import NEWLINE, SPACE_TOKEN, Lossless
from hanmo.tokenizers.protocol import Tokenizer
from hanmo.tokenizers.sentence_piece import CPM_NEWLINE, CPM_SPACE, SentencePiece, as_fairseq, sentinel_ids
from hanmo.tokenizers.tokenizer_json import TokenizerJson, read_tokenizer_json
from hanmo.tokenizers.vocab import read_vocab, tokens_in_order
from hanmo.tokenizers.wordpiece import WordPiece
from hanmo.tokenizers.words import holds_words, split_words

_BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)
_TOKENIZER = ("vocab.txt", *_BESIDE, "vocab.json", "merges.txt", "encoder.json", "vocab.bpe")
_FAIRSEQ = "sentencepiece.bpe.model"
_WORD_CLASSES = ("RoFormerTokenizer", "RoFormerTokenizerFast")


def tokenizer_files(folder: Path) -> list[Path]:
    """List a folder's tokenizer files of any kind, and generation_config.json, without reading them.

    For a vocabulary file instead of a folder: the file, and those beside it that describe its use.
    """
    if folder.is_file():
        file, folder = folder, folder.parent
        if file.name not in ("vocab.json", "merges.txt"):
            return [file, *(folder / name for name in _BESIDE if (folder / name).is_file() and name != file.name)]
    named = [folder / name for name in _TOKENIZER if (folder / name).is_file()]
    return named + sorted(file for file in folder.glob("*.model") if file.is_file())


def copy_tokenizer(tokenizer: Path, folder: Path, *, pre_tokenize: bool | None = None) -> None:
    """Copy a vocabulary, a file or a folder, and the files beside it, under the names that loading looks for.

    pre_tokenize: written to tokenizer_config.json unless None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in tokenizer_files(tokenizer):
        shutil.copyfile(file, folder / ("vocab.txt" if file == tokenizer and file.suffix == ".txt" else file.name))
    if pre_tokenize is not None:
        config = folder / "tokenizer_config.json"
        content = read_object(config) | {"pre_tokenize": pre_tokenize}
        config.write_text(json.dumps(content, ensure_ascii=False) + "\n", "utf-8")


def load_tokenizer(
    path: str | Path,
    *,
    lowercase: bool | None = None,
    ends: bool | None = None,
    pre_tokenize: bool | PreTokenize | None = None,
) -> Tokenizer:
    """Load the tokenizer at a path: a file, or a folder that contains one.

    vocab.txt (or any *.txt)     WordPiece; with [NL] and [SP] in it, Lossless
    sentencepiece.bpe.model      XLM-R's or CamemBERT's; a tokenizer.json beside it takes precedence
    *.model                      SentencePiece: CPM's if it has '▂' and '▃', ALBERT's if [CLS] and [SEP], else T5's
    vocab.json and merges.txt    byte-level BPE; RoBERTa's if it has <s> and </s>
    tokenizer.json               as it says; used only if none of the others is there

    Added tokens that tokenizer_config.json, added_tokens.json or tokenizer.json list beside a vocab.txt or vocab.json
    have the ids that transformers gives them; special ones are read in a text only with special=True.

    lowercase: for WordPiece; None follows tokenizer_config.json, else folds if no token has a capital.
    ends: whether encode adds the start and end marks by default; None is the kind's default. GPT2_ML: False.
    pre_tokenize: for WordPiece: split texts into words first, True by jieba without its HMM, as for RoFormer, WoBERT
    and T5-PEGASUS. None does so if tokenizer_config.json has "pre_tokenize": true, as finetune writes it, or names
    RoFormerTokenizer, or if the vocabulary contains words.
    Raises MissingFile if there is no tokenizer, TokenizerError if there are several or the file is damaged.
    """
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise MissingFile(
            f"there is no tokenizer at {path}; name a vocab.txt, a *.model, a tokenizer.json, or their folder"
        )
    if path.name in ("vocab.json", "merges.txt"):
        return ByteBPE.from_files(path.with_name("vocab.json"), path.with_name("merges.txt"), ends=ends)
    if path.suffix == ".model":
        return _sentence_piece(path, ends)
    if path.suffix == ".txt":
        return _word_piece(path, None, lowercase, ends, pre_tokenize)
    if path.suffix != ".json":
        raise TokenizerError(
            f"{path} is none of the files that hold a tokenizer: *.txt, *.model, vocab.json with merges.txt, "
            "tokenizer.json"
        )
    described = read_tokenizer_json(path)
    if described["model"].get("type") != "WordPiece" or not isinstance(described["model"].get("vocab"), dict):
        return TokenizerJson(path, ends=ends)
    return _word_piece(path, described, lowercase, ends, pre_tokenize)


def _in_folder(folder: Path) -> Path:
    """Return the file of the one tokenizer in a folder."""
    found = [folder / "vocab.txt"] if (folder / "vocab.txt").is_file() else []
    found += sorted(folder.glob("*.model"))
    described = folder / "tokenizer.json"
    if found == [folder / _FAIRSEQ] and described.is_file():
        found = []  # tokenizer.json has the ids, the .model has not
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        found.append(folder / "vocab.json")
    if not found and described.is_file():
        found.append(described)
    if not found:
        raise MissingFile(
            f"the folder {folder} holds no vocab.txt, *.model, vocab.json with merges.txt, or tokenizer.json; "
            "put the model's vocabulary there, or name its file"
        )
    if len(found) > 1:
        names = ", ".join(each.name for each in found)
        raise TokenizerError(
            f"the folder {folder} holds several tokenizers: {names}; name the file to use, or leave only the "
            "tokenizer's files beside the model"
        )
    return found[0]


def _word_piece(
    path: Path,
    described: dict[str, Any] | None,
    lowercase: bool | None,
    ends: bool | None,
    pre_tokenize: bool | PreTokenize | None,
) -> Tokenizer:
    """Load a vocab.txt, or a tokenizer.json if its content is given."""
    config = read_object(path.with_name("tokenizer_config.json"))
    if described is None:
        tokens, folds = read_vocab(path), config.get("do_lower_case")
    else:
        tokens, normalizer = tokens_in_order(described["model"]["vocab"], str(path)), described.get("normalizer")
        folds = normalizer.get("lowercase") if isinstance(normalizer, dict) else None
    if NEWLINE in tokens and SPACE_TOKEN in tokens:
        return Lossless(tokens, ends=bool(ends))
    if lowercase is None:
        capitals = any(token.isalpha() and token.isascii() and token != token.lower() for token in tokens)
        lowercase = folds if isinstance(folds, bool) else not capitals
    added = read_added(path.parent, {token: number for number, token in enumerate(tokens)}, described)
    if ends is None:
        ends = {"[CLS]", "[SEP]"} <= {*tokens, *(token.content for token in added.values())}
    start, end = ("[CLS]", "[SEP]") if ends else (None, None)
    if pre_tokenize is None:
        named, chosen = config.get("tokenizer_class"), config.get("pre_tokenize")
        pre_tokenize = chosen if isinstance(chosen, bool) else named in _WORD_CLASSES or holds_words(tokens)
    split = split_words if pre_tokenize is True else pre_tokenize or None
    return WordPiece(tokens, lowercase=lowercase, start=start, end=end, pre_tokenize=split, added=added)


def _sentence_piece(path: Path, ends: bool | None) -> SentencePiece:
    """Load a .model with the marks of its kind."""
    config, adds = read_object(path.with_name("tokenizer_config.json")), ends is not False
    if path.name == _FAIRSEQ:
        named = config.get("tokenizer_class") or read_object(path.parent / "config.json").get("model_type")
        kind = str(named).lower().replace("-", "").removesuffix("fast").removesuffix("tokenizer")
        if kind not in ("xlmroberta", "camembert"):
            raise TokenizerError(
                f"the ids of {path} depend on the model, and nothing beside it says that it is XLM-R's or CamemBERT's "
                f"(found {named!r}); put the tokenizer.json or tokenizer_config.json there that it came with"
            )
        model = as_fairseq(read_bytes(path, error=TokenizerError), camembert=kind == "camembert")
        return SentencePiece(model, start="<s>", end="</s>", ends=adds, between=2)
    plain = SentencePiece(path, end=None, ends=False)
    end = next((name for name in ("<eod>", "</s>") if plain.token_to_id(name) is not None), None)
    if plain.token_to_id(CPM_SPACE) is not None and plain.token_to_id(CPM_NEWLINE) is not None:
        return SentencePiece(path, end=end, ends=bool(ends), cpm=True)
    if plain.token_to_id("[CLS]") is not None and plain.token_to_id("[SEP]") is not None:
        return SentencePiece(path, start="[CLS]", end="[SEP]", ends=adds)
    end = "</s>" if plain.token_to_id("</s>") is not None else None
    extra = config.get("extra_ids")  # the number of sentinels behind a T5's .model
    if sentinel_ids(plain):
        extra = 0
    elif not isinstance(extra, int) or not 0 <= extra <= 1000:
        listed = [*(config.get("additional_special_tokens") or ()), *(config.get("extra_special_tokens") or ())]
        extra = sum("<extra_id_" in str(token) for token in listed)
    return SentencePiece(path, end=end, ends=adds, extra_ids=extra)
