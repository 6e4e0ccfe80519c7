"""Converted folders in transformers: its Auto classes load tokenizer and model, with equal ids, outputs and texts."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

import hanmo
from hanmo.checkpoint.save import save
from hanmo.cli.app import app
from hanmo.export.huggingface import huggingface_files
from hanmo.families import FAMILIES
from hanmo.model import Model
from hanmo.model_pipeline import ModelPipeline
from hanmo.tokenizers.byte_bpe import _BYTES, ByteBPE
from hanmo.tokenizers.sentence_piece import SentencePiece

transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

HAN = "今天气不错可以去跑步床前明月光疑是地上霜"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *HAN, "hello", "##lo", "b", "##y", "，", "。"]
TEXTS = ["今天天气不错", "hello，床前b明月光", "Hellolo by。", "霜é地", "今天[MASK]气"]
SIZES = {"vocab_size": len(WORDS), "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}


def randomise(model: Any) -> Any:
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float(parameter.ndim == 1 and name.endswith("weight")), 0.3)
    return model.eval()


def convert(source: Path, target: Path, *more: str) -> Path:
    """Run `hanmo convert SOURCE TARGET --to huggingface` in this process."""
    with pytest.raises(SystemExit) as ended:
        app(["convert", str(source), str(target), "--to", "huggingface", *more])
    assert not ended.value.code
    return target


def tokenizer_of(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


def greedy(model: Any, ids: list[int]) -> list[int]:
    with torch.no_grad():
        return list(model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0].tolist())


# From Hugging Face's form


def gpt2(folder: Path, generation: dict[str, Any]) -> type:
    sizes = {"vocab_size": len(WORDS), "n_positions": 40, "n_embd": 32, "n_layer": 2, "n_head": 4}
    randomise(transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"tokenizer_class": "BertTokenizer", "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    config["task_specific_params"] = {"text-generation": {"do_sample": True, "max_length": 320}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return transformers.AutoModelForCausalLM


def t5(folder: Path, generation: dict[str, Any]) -> type:
    said = {"decoder_start_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "tokenizer_class": "BertTokenizer"}
    randomise(transformers.MT5ForConditionalGeneration(transformers.MT5Config(**SIZES, **said))).save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "[SEP]", "bos_token": "[CLS]"}))
    (folder / "added_tokens.json").write_text("{}")
    return transformers.AutoModelForSeq2SeqLM


KEPT = ("tokenizer_class", "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


@pytest.mark.parametrize("through", ["safetensors", None])
@pytest.mark.parametrize(
    ("make", "generation"),
    [
        (gpt2, {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}),
        (gpt2, {"eos_token_id": [3, 7, 9, 11], "pad_token_id": 0}),
        (t5, {"decoder_start_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}),
        (t5, {"decoder_start_token_id": 2, "eos_token_id": [3, 8, 10], "pad_token_id": 0}),
    ],
)
def test_what_a_folder_of_transformers_says_of_tokens_is_kept(
    make: Any, generation: dict[str, Any], through: str | None, tmp_path: Path
) -> None:
    first, last = tmp_path / "first", tmp_path / "last"
    kind = make(first, generation)
    (first / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    if through:
        hanmo.load(first).save(tmp_path / "between", form=through)
    convert(tmp_path / "between" if through else first, last)
    one, two = (json.loads((folder / "config.json").read_text()) for folder in (first, last))
    # What generation_config.json says goes before config.json, in transformers too.
    assert {key: two.get(key) for key in KEPT} == {key: generation.get(key, one.get(key)) for key in KEPT}
    assert two.get("task_specific_params") == one.get("task_specific_params")
    for file in ("generation_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (first / file).is_file():
            assert (last / file).read_bytes() == (first / file).read_bytes()
    texts = [tokenizer_of(folder)(TEXTS).input_ids for folder in (first, last)]
    assert texts[0] == texts[1] and all(texts[0])
    ids = texts[0][0]
    assert greedy(kind.from_pretrained(first), ids) == greedy(kind.from_pretrained(last), ids)


# From an original's form


def original(family: str, folder: Path) -> ModelPipeline:
    """Save a small random model as the family's TensorFlow checkpoint with a vocab.txt beside it, and load it."""
    names = FAMILIES[family].tensorflow
    assert names is not None
    sizes = {
        "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 40,
    }  # fmt: skip
    if family == "albert":
        sizes["embedding_size"] = 8
    model = Model(names.config(sizes)).initialize(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8) if parameter.ndim > 1 else None
    save(model, folder / "model.ckpt", form="tensorflow")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    return hanmo.load(folder / "model.ckpt", family=family)


@pytest.mark.parametrize("family", ["bert", "albert", "electra", "gpt2", "t5.1.0", "t5.1.1", "mt5.1.1"])
def test_an_original_s_folder_is_told_to_transformers(family: str, tmp_path: Path) -> None:
    loaded = original(family, tmp_path)
    assert loaded.tokenizer is not None
    folder = convert(tmp_path / "model.ckpt", tmp_path / "converted")
    tokenizer = tokenizer_of(folder)
    marked = family != "gpt2"
    expected = [loaded.tokenizer.encode(text, special=True, ends=marked).ids for text in TEXTS]
    assert tokenizer(TEXTS).input_ids == expected
    assert [tokenizer.decode(ids, skip_special_tokens=True) for ids in expected] == [
        loaded.tokenizer.decode(ids) for ids in expected
    ]
    (ids,) = tokenizer(TEXTS[:1]).input_ids
    if not loaded.config.can_generate:
        with torch.no_grad():
            theirs = transformers.AutoModel.from_pretrained(folder)(torch.tensor([ids])).last_hidden_state
            ours = loaded.model(torch.tensor([ids])).hidden
        assert (theirs - ours).abs().max() < 1e-5
        return
    kind = transformers.AutoModelForSeq2SeqLM if loaded.config.is_encoder_decoder else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(folder)
    banned = [[number] for number in (0, 1, 2, 4)]
    with torch.no_grad():
        found = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, bad_words_ids=banned)
    (answer,) = loaded.write_detailed(TEXTS[0], temperature=0, max_tokens=8, stop=None, max_chars=None)
    assert found[0].tolist()[1 if loaded.config.is_encoder_decoder else len(ids) :] == list(answer.ids)


def test_a_tokenizer_config_that_names_no_class_gets_one_and_keeps_the_rest(tmp_path: Path) -> None:
    loaded = original("gpt2", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pre_tokenize": False, "model_max_length": 24}))
    folder = convert(tmp_path / "model.ckpt", tmp_path / "converted")
    tokenizer = tokenizer_of(folder)
    assert loaded.tokenizer is not None and tokenizer.model_max_length == 24
    assert tokenizer(TEXTS).input_ids == [loaded.tokenizer.encode(text, special=True, ends=False).ids for text in TEXTS]
    assert json.loads((folder / "tokenizer_config.json").read_text())["pre_tokenize"] is False


def test_force_replaces_what_convert_wrote_but_no_readme_that_was_changed(tmp_path: Path) -> None:
    original("gpt2_ml", tmp_path)
    folder = tmp_path / "converted"
    convert(tmp_path / "model.ckpt", folder)
    convert(tmp_path / "model.ckpt", folder, "--force")
    with (folder / "README.md").open("a") as card:
        card.write("Licence: mine")
    with pytest.raises(SystemExit) as ended:
        app(["convert", str(tmp_path / "model.ckpt"), str(folder), "--to", "huggingface", "--force"])
    assert ended.value.code == 1 and "mine" in (folder / "README.md").read_text()


def test_no_class_is_named_whose_ids_would_differ(tmp_path: Path) -> None:
    tokenizer = ByteBPE({**_BYTES, "<s>": 256, "</s>": 257}, [], start="<s>", end="</s>")
    assert "tokenizer_config.json" not in huggingface_files(original("gpt2", tmp_path).config, tokenizer, [])


def cpm(folder: Path, said: dict[str, Any] | None = None) -> ModelPipeline:
    """Save a GPT-2 with a vocabulary of CPM's kind and, if given, a tokenizer_config.json; load it."""
    original("gpt2", folder)
    (folder / "vocab.txt").unlink()
    with (folder / "chinese.model").open("wb") as written:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["今天 ▂ 天气 ▃ 不错"] * 20), model_writer=written, vocab_size=24,
            hard_vocab_limit=False, control_symbols=["<cls>", "<pad>", "<mask>", "<eod>"],
            user_defined_symbols=["<eop>", "▂", "▃"], minloglevel=2,
        )  # fmt: skip
    if said is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return hanmo.load(folder / "model.ckpt", family="gpt2")


def test_cpm_gets_a_class_with_its_words_spaces_and_line_ends(tmp_path: Path) -> None:
    loaded, draw = cpm(tmp_path), random.Random(0)
    ours = loaded.tokenizer
    assert isinstance(ours, SentencePiece) and ours.cpm
    parts = [*"今天气不错龘▂▃ \n", "  ", "今天天气", "hello", "<eod>", "<eop>", "<s>", "<mas"]
    texts = ["", *("".join(draw.choices(parts, k=draw.randrange(1, 12))) for _ in range(200))]
    expected = [ours.encode(text, special=True).ids for text in texts]
    folder = convert(tmp_path / "model.ckpt", tmp_path / "converted")
    convert(tmp_path / "model.ckpt", folder, "--force")
    tokenizer_of(folder).save_pretrained(tmp_path / "saved")
    for place in (folder, tmp_path / "saved", convert(folder, tmp_path / "again")):
        tokenizer = tokenizer_of(place)
        assert dict(tokenizer(texts)) == {
            "input_ids": expected,
            "attention_mask": [[1] * len(ids) for ids in expected],
        }
        for skipped in (True, False):
            assert tokenizer.batch_decode(expected, skip_special_tokens=skipped) == [
                ours.decode(ids, special=not skipped) for ids in expected
            ]
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (ours.special.pad, ours.special.end)
        assert len(tokenizer) == ours.vocab_size and tokenizer.model_max_length == loaded.config.main.context
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.eos_token_id == ours.token_to_id("<eod>")
    (answer,) = loaded.write_detailed("今天", temperature=0, max_tokens=8, stop=None, max_chars=None)
    ids = ours.encode("今天").ids
    assert greedy(model, ids)[len(ids) :] == list(answer.ids)


def test_what_a_cpm_folder_says_of_its_tokenizer_is_kept(tmp_path: Path) -> None:
    said = {"tokenizer_class": "CpmTokenizer", "pad_token": "<cls>", "additional_special_tokens": ["<eop>"]}
    loaded = cpm(tmp_path, said)
    assert loaded.tokenizer is not None
    expected = loaded.tokenizer.encode("今天 天气\n").ids
    folder = convert(tmp_path / "model.ckpt", tmp_path / "converted")
    assert json.loads((folder / "tokenizer_config.json").read_text()).items() >= said.items()
    tokenizer = tokenizer_of(folder)
    assert tokenizer("今天 天气\n").input_ids == expected and tokenizer.pad_token == "<cls>"
    assert tokenizer.decode(tokenizer("<eop>今天<eod>").input_ids, skip_special_tokens=True) == "今天"


def test_a_class_that_a_cpm_folder_names_gets_none_beside_it(tmp_path: Path) -> None:
    cpm(tmp_path, {"tokenizer_class": "LlamaTokenizer"})
    folder = convert(tmp_path / "model.ckpt", tmp_path / "converted")
    assert json.loads((folder / "tokenizer_config.json").read_text()) == {"tokenizer_class": "LlamaTokenizer"}
    assert not (folder / "tokenization_cpm.py").exists()


def test_saving_in_python_tells_transformers_too(tmp_path: Path) -> None:
    loaded = original("bert", tmp_path)
    folder = loaded.save(tmp_path / "saved", form="huggingface")
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer_of(folder)(TEXTS[0]).input_ids == [2, *(WORDS.index(each) for each in TEXTS[0]), 3]


def test_a_tokenizer_that_hanmo_does_not_read_is_copied_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original("bert", tmp_path)
    (tmp_path / "other.model").write_bytes(b"x")
    folder = convert(tmp_path / "model.ckpt", tmp_path / "converted")
    assert (folder / "vocab.txt").is_file() and not (folder / "tokenizer_config.json").exists()
    assert "the tokenizer's files are copied as they are" in capsys.readouterr().err
