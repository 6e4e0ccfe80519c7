"""NEZHA and RoFormerV2 written for transformers, which lacks them: outputs and tensors are ours, both ways."""

from pathlib import Path
from typing import Any

import pytest
import torch

import hanmo
from hanmo.model_pipeline import ModelPipeline

transformers = pytest.importorskip("transformers", minversion="5.5")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

REAL = (11, 7, 4)  # tokens of each row; the rest is padding


@pytest.fixture(scope="module", params=["nezha", "roformer_v2"])
def loaded(request: pytest.FixtureRequest, data: Path) -> ModelPipeline:
    return hanmo.load(data / "goldens" / request.param)


@pytest.fixture(scope="module")
def folder(loaded: ModelPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return loaded.save(tmp_path_factory.mktemp("theirs") / "model", form="huggingface")


def theirs(folder: Path, kind: str) -> Any:
    found, info = getattr(transformers, kind).from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    return found.eval()


def test_logits_and_hidden_states_are_ours(loaded: ModelPipeline, folder: Path) -> None:
    ids = torch.randint(1, loaded.config.vocab_size, (3, max(REAL)), generator=torch.Generator().manual_seed(0))
    segments = (torch.arange(max(REAL)) > 2).long().expand(3, -1)
    mask = torch.arange(max(REAL))[None] < torch.tensor(REAL)[:, None]
    given = {"attention_mask": mask.long(), "token_type_ids": segments}
    with torch.no_grad():
        expected = loaded.model(ids, mask=mask, segments=segments)
        logits = theirs(folder, "AutoModelForMaskedLM")(ids, **given).logits
        found = theirs(folder, "AutoModel")(ids, output_hidden_states=True, **given)
    assert (logits - expected.logits)[mask].abs().max() < 1e-5 * max(1, expected.logits.abs().max())
    assert (found.last_hidden_state - expected.hidden)[mask].abs().max() < 1e-5
    assert len(found.hidden_states) == loaded.config.main.num_layers + 1
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state)


def test_it_trains_and_comes_back_bit_for_bit(loaded: ModelPipeline, folder: Path, tmp_path: Path) -> None:
    model = theirs(folder, "AutoModelForMaskedLM")
    ids = torch.randint(1, loaded.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    model.train()(ids, labels=ids).loss.backward()
    assert all(
        parameter.grad is not None and parameter.grad.any() for parameter in model.parameters() if parameter.ndim > 1
    )
    model.save_pretrained(tmp_path / "again")
    ours = dict(loaded.model.named_parameters())
    for path in (folder, tmp_path / "again"):
        back = dict(hanmo.load(path).model.named_parameters())
        assert set(back) <= set(ours) and (path != folder or set(back) == set(ours))
        assert all(torch.equal(ours[name], value) for name, value in back.items())


def test_a_plain_network_loads_under_the_class_that_its_config_names(loaded: ModelPipeline, folder: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert type(config).__name__ in ("NezhaConfig", "RoFormerV2Config")
    assert config.architectures in (["NezhaForPreTraining"], ["RoFormerV2ForMaskedLM"])
