"""What a model reads while it writes is what it reads in training, for every family; T5's marks are transformers'."""

import io
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

import hanmo
from hanmo.checkpoint.save import save
from hanmo.families import FAMILIES
from hanmo.loading import load
from hanmo.model import Model
from hanmo.model_pipeline import ModelPipeline
from hanmo.tokenizers import Lossless
from hanmo.training.data.documents import Part
from hanmo.training.data.masked import MaskedData
from hanmo.training.data.pack import TokenEncoder, pack_documents
from hanmo.training.data.packed import PackedData, PackedFile
from hanmo.training.data.pairs import PairData

HAN = "今天气不错可以去跑步床前明月光疑是地上霜"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *HAN]
SOURCE, WRITTEN = "今天天气不错", 5
ENCODERS = (
    "bert", "albert", "albert_unshared", "nezha", "roformer", "roformer_v2", "roberta", "xlm_roberta", "camembert",
)  # fmt: skip
CASES = [
    *((family, "bert", "prefix") for family in ENCODERS),
    *((family, "bert", None) for family in FAMILIES if family not in ENCODERS and family != "electra"),
    *((family, "piece", None) for family in ("t5.1.0", "t5.1.1", "mt5.1.1")),
    ("gpt2_ml", "lossless", None),
]


def sentence_piece() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([HAN] * 20), model_writer=model, vocab_size=len(set(HAN)) + 4, model_type="char",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def lossless() -> list[str]:
    letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    return ["[PAD]", "[UNK]", "[EOS]", "[NL]", "[SP]", *letters, *("##" + letter for letter in letters), *HAN]


def small(family: str, vocabulary: str, mask: str | None, folder: Path) -> ModelPipeline:
    """Save a small random model of a family in TensorFlow's form, a vocabulary beside it, and load it."""
    if vocabulary == "piece":
        (folder / "x.model").write_bytes(sentence_piece())
        count = len(set(HAN)) + 4
    else:
        words = WORDS if vocabulary == "bert" else lossless()
        (folder / "vocab.txt").write_text("\n".join(words), "utf-8")
        count = len(words)
    names = FAMILIES[family].tensorflow or FAMILIES[family].huggingface
    assert names is not None
    sizes = {
        "vocab_size": count, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 40, "type_vocab_size": 2,
        "n_vocab": count, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_ctx": 40,
    }  # fmt: skip
    model = Model(names.config(sizes)).initialize(3)
    with torch.no_grad():  # a wide spread, so that choices are not ties
        for parameter in model.parameters():
            parameter.mul_(8) if parameter.ndim > 1 else None
    save(model, folder / "model")
    return load(folder / "model", tokenizer=folder / ("x.model" if vocabulary == "piece" else "vocab.txt"), mask=mask)


def recorded(model: Model) -> list[dict[str, Any]]:
    """Record what a model is called with from now on: "ids" and all that is given by name."""
    calls: list[dict[str, Any]] = []
    model.register_forward_pre_hook(lambda _, ids, named: calls.append({"ids": ids[0], **named}), with_kwargs=True)
    return calls


def written(loaded: ModelPipeline) -> tuple[hanmo.pipeline.GeneratedText, list[dict[str, Any]]]:
    calls = recorded(loaded.model)
    kwargs = {"temperature": 0, "max_tokens": WRITTEN, "stop": None, "max_chars": None}
    return loaded.write_detailed(SOURCE, **kwargs)[0], calls


@pytest.mark.parametrize(("family", "vocabulary", "mask"), CASES)
def test_writing_feeds_the_ids_that_training_feeds(family: str, vocabulary: str, mask: str | None, tmp_path: Path):
    loaded = small(family, vocabulary, mask, tmp_path)
    assert loaded.tokenizer is not None
    answer, calls = written(loaded)
    assert len(answer.ids) > 1 or answer.reason == "end"
    fed = torch.cat([call["ids"] for call in calls], 1)
    if loaded.config.is_encoder_decoder or mask == "prefix":
        data = PairData([(SOURCE, HAN)], loaded.tokenizer, loaded.config, rows=1)
        batch = {name: torch.from_numpy(array) for name, array in data.batch(0, 0).items()}
        around = len(batch["ids"][0]) + 1 - int((batch["targets"] > 0).sum())  # what comes before the target
        assert fed[:, :around].tolist() == batch["ids"][:, :around].tolist()
        assert fed[0, around:].tolist() == list(answer.ids[: fed.shape[1] - around])
        assert batch["targets"][0, -1] in loaded.generation_config().limits.end_ids
        for name in ("source", "segments"):
            given = [call[name] for call in calls if call.get(name) is not None]
            assert bool(given) == (name in batch), name
            if given:
                size = fed.shape[1] if name == "segments" else None
                assert torch.cat(given, 1).tolist() == batch[name][:, :size].tolist(), name
    else:
        encoder = TokenEncoder(loaded.tokenizer)
        pack_documents([Part(SOURCE)], tmp_path / "packed", encoder=encoder)
        file = PackedFile(tmp_path / "packed")
        count = len(SOURCE) + isinstance(loaded.tokenizer, Lossless)  # which has an end mark before each document
        assert fed[0, :count].tolist() == file.ids[:count].tolist()
        assert fed[0, count:].tolist() == list(answer.ids[: fed.shape[1] - count])


def test_t5_pegasus_reads_and_writes_between_cls_and_sep(tmp_path: Path):
    loaded = small("mt5.1.1", "bert", None, tmp_path)
    _, calls = written(loaded)
    assert calls[0]["source"].tolist() == [[2, *(WORDS.index(character) for character in SOURCE), 3]]
    assert calls[0]["ids"].tolist() == [[2]]
    assert loaded.generation_config().limits.end_ids == (3,)


@pytest.mark.parametrize("family", ENCODERS)
def test_filling_feeds_the_ids_that_masked_training_feeds(family: str, tmp_path: Path):
    loaded = small(family, "bert", None, tmp_path)
    assert loaded.tokenizer is not None
    calls = recorded(loaded.model)
    loaded.fill("今[MASK]天气")
    pack_documents([Part("今天天气")], tmp_path / "packed", encoder=TokenEncoder(loaded.tokenizer))
    windows = PackedData(PackedFile(tmp_path / "packed"), window=8, rows=1, layout="document", shuffle=False)
    for _, _, batch in islice(MaskedData(windows, loaded.tokenizer, share=0.5).batches(), 1):
        whole = torch.where(torch.from_numpy(batch["targets"] > 0), torch.from_numpy(batch["targets"]), -1)
        ids = torch.from_numpy(batch["ids"])
    first = calls[0]["ids"]
    kept = (whole < 0)[:, : first.shape[1]] & (first != 4)
    assert first[kept].tolist() == ids[:, : first.shape[1]][kept].tolist()
    assert (first[0, 0], first[0, -1]) == (2, 3)


# T5 beside transformers


def t5(folder: Path, words: list[str], **config: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": len(words)}
    torch.manual_seed(3)
    model = transformers.MT5ForConditionalGeneration(transformers.MT5Config(**sizes, **config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float(parameter.ndim == 1 and name.endswith("weight")), 0.3)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
    return model


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize(
    ("config", "generation"),
    [
        ({"decoder_start_token_id": 0, "eos_token_id": 3, "pad_token_id": 0}, {}),
        ({"decoder_start_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}, {}),
        ({"decoder_start_token_id": 7, "eos_token_id": 9, "pad_token_id": 0}, {}),
        ({"decoder_start_token_id": 0, "eos_token_id": 3}, {"decoder_start_token_id": 2, "eos_token_id": [3, 9, 11]}),
    ],
)
def test_t5_begins_and_ends_as_transformers_does(
    config: dict[str, int], generation: dict[str, Any], engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    model = t5(folder, WORDS, **config)
    if generation:
        said = json.loads((folder / "generation_config.json").read_text()) | generation
        (folder / "generation_config.json").write_text(json.dumps(said))
        model = type(model).from_pretrained(folder).eval()
    ids = [2, *(WORDS.index(character) for character in SOURCE), 3]
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    banned = [[number] for number in range(5) if number not in ends]
    with torch.no_grad():
        found = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, bad_words_ids=banned)
    writer = load(folder) if engine == "torch" else hanmo.open_writer(folder, weights="float32")
    (answer,) = writer.write_detailed(SOURCE, temperature=0, max_tokens=12, stop=None, max_chars=None)
    assert list(answer.ids) == found[0].tolist()[1:]
    assert writer.marks.start == found[0, 0]


def test_a_rule_of_generation_config_that_is_not_followed_is_refused_by_name(tmp_path: Path):
    t5(tmp_path, WORDS, decoder_start_token_id=0)
    said = json.loads((tmp_path / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps(said | {"suppress_tokens": [7]}))
    with pytest.raises(hanmo.errors.ConfigError, match=r"suppress_tokens is \[7\], a rule of transformers"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("decoder_start_token_id", 999, "decoder_start_token_id is 999; expected one id from 0 to 24"),
        ("eos_token_id", "3", "eos_token_id is '3'; expected an id, or a list of ids"),
    ],
)
def test_ids_that_cannot_be_used_are_refused_where_they_are_needed(name: str, value: Any, message: str, tmp_path: Path):
    t5(tmp_path, WORDS, decoder_start_token_id=0)
    for file in ("config.json", "generation_config.json"):
        said = json.loads((tmp_path / file).read_text())
        (tmp_path / file).write_text(json.dumps(said | {name: value}))
    with pytest.raises(hanmo.errors.ConfigError, match=message):
        load(tmp_path).write(SOURCE)
