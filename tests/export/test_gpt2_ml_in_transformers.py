"""A GPT2_ML written for transformers: its own code gives the same logits, texts and tensors as Hanmo."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hanmo
from hanmo.checkpoint.save import save
from hanmo.families.gpt2_ml import gpt2_ml_config
from hanmo.model import Model
from hanmo.model_pipeline import ModelPipeline
from hanmo.tokenizers.lossless import NEWLINE, SPACE_TOKEN

transformers = pytest.importorskip("transformers", minversion="5.5")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

SMALL = Path(hanmo.__file__).parent / "assets" / "small"
POSITIONS, LENGTHS = 48, (5, 12, 9)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> ModelPipeline:
    folder = tmp_path_factory.mktemp("ours") / "model"
    config = gpt2_ml_config(vocab_size=8000, num_layers=3, hidden_size=64, positions=POSITIONS, head_dim=16)
    model = Model(config).initialize(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) / 8)
    save(model, folder, tokenizer=[SMALL / "vocab.txt"])
    return hanmo.load(folder)


@pytest.fixture(scope="module")
def folder(loaded: ModelPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return loaded.save(tmp_path_factory.mktemp("theirs") / "model", form="huggingface")


@pytest.fixture
def theirs(folder: Path) -> Any:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True
    )
    assert not any(info.values())
    return model.eval()


def some_ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(10, 8000, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_and_rows_padded_on_the_left_are_ours(loaded: ModelPipeline, theirs: Any, attention: str) -> None:
    theirs.set_attn_implementation(attention)
    ids, longest = some_ids(3, POSITIONS), max(LENGTHS)
    mask = torch.tensor([[0] * (longest - length) + [1] * length for length in LENGTHS])
    padded = torch.zeros_like(mask)
    for row, length in enumerate(LENGTHS):
        padded[row, longest - length :] = ids[row, :length]
    with torch.no_grad():
        assert (theirs(ids).logits - loaded.model(ids).logits).abs().max() < 1e-4
        found = theirs(padded, attention_mask=mask).logits[:, -1]
        for row, length in enumerate(LENGTHS):
            assert (found[row] - loaded.model(ids[row : row + 1, :length]).logits[0, -1]).abs().max() < 1e-4


def test_generate_writes_the_greedy_ids_of_ours_with_and_without_a_cache(loaded: ModelPipeline, theirs: Any) -> None:
    (ids,) = some_ids(1, 8).tolist()
    expected = list(ids)
    with torch.no_grad():
        for _ in range(16):
            expected.append(int(loaded.model(torch.tensor([expected])).logits[0, -1].argmax()))
    options = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None}
    for cache in (True, False):
        assert theirs.generate(torch.tensor([ids]), use_cache=cache, **options)[0].tolist() == expected
    assert theirs.generate(torch.tensor([ids]), num_beams=3, num_return_sequences=2, **options).shape == (2, 24)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_it_trains_with_gradient_checkpointing_and_resizes(theirs: Any) -> None:
    ids = some_ids(2, 10)
    with torch.enable_grad():
        plain = theirs.train()(ids, labels=ids).loss
        plain.backward()
        name = "model.layers.0.self_attn.q_proj.weight"
        expected = theirs.get_parameter(name).grad.clone()
        theirs.zero_grad()
        theirs.gradient_checkpointing_enable()
        theirs(ids, labels=ids).loss.backward()
    assert torch.allclose(theirs.get_parameter(name).grad, expected, atol=1e-6) and expected.any()
    theirs.resize_token_embeddings(8008)
    assert theirs.lm_head.weight is theirs.model.embed_tokens.weight and len(theirs.lm_head.weight) == 8008


def test_a_text_beyond_the_last_position_is_one_clear_error(theirs: Any) -> None:
    with pytest.raises(ValueError, match=rf"has {POSITIONS + 1} tokens, the model {POSITIONS} positions"):
        theirs(some_ids(1, POSITIONS + 1))


def test_it_comes_back_bit_for_bit_from_us_and_from_save_pretrained(
    loaded: ModelPipeline, folder: Path, theirs: Any, tmp_path: Path
) -> None:
    theirs.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"].endswith("modeling_gpt2_ml.GPT2MLForCausalLM")
    for path in (folder, tmp_path / "again"):
        back = hanmo.load(path)
        assert back.config.main == loaded.config.main
        ours = dict(loaded.model.named_parameters())
        assert all(torch.equal(ours.pop(name), value) for name, value in back.model.named_parameters()) and not ours


TEXTS = ["今天天气不错", "他说：“你好……”\n\n　　Hello world, 3.14 of x", "a b  c\tRock'n'roll，好 的\r\n"]


def test_the_tokenizer_of_a_lossless_vocabulary_has_its_ids_and_its_text(loaded: ModelPipeline, folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    ours = loaded.tokenizer
    assert ours is not None and (ours.tokens.index(NEWLINE), ours.tokens.index(SPACE_TOKEN)) != (0, 0)
    for text in TEXTS:
        ids = ours.encode(text, ends=False).ids
        assert tokenizer(text).input_ids == [ours.special.end, *ids]
        assert tokenizer.decode(ids, skip_special_tokens=True) == ours.decode(ids)


def test_generation_config_draws_as_we_do_and_knows_the_end(loaded: ModelPipeline, folder: Path) -> None:
    found = transformers.GenerationConfig.from_pretrained(folder)
    assert loaded.tokenizer is not None
    assert (found.do_sample, found.top_k, found.eos_token_id) == (True, 5, loaded.tokenizer.special.end)
