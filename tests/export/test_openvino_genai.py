"""A decoder written for OpenVINO GenAI: its inputs give the logits of ours, prompts padded and continued included."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from typer.testing import CliRunner

import hanmo
from hanmo.checkpoint.open import locate
from hanmo.checkpoint.save import save
from hanmo.cli.app import app
from hanmo.errors import CheckpointError
from hanmo.export.openvino import MODEL, export_openvino
from hanmo.pipeline import SMALL
from hanmo.tokenizers.load import tokenizer_files

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


@pytest.fixture
def folder(request: pytest.FixtureRequest, data: Path, tmp_path: Path) -> Path:
    return export_openvino(data / "goldens" / request.param, tmp_path / "genai")


def step(run: ov.InferRequest, ids: list[list[int]], past: int, mask: list[list[int]]) -> np.ndarray:
    real = np.array(mask)
    places = (real.cumsum(1) - 1).clip(0)[:, past : past + len(ids[0])]
    feed = {"input_ids": np.array(ids), "position_ids": places, "attention_mask": real}
    run.infer(
        {name: array.astype(np.int64) for name, array in feed.items()} | {"beam_idx": np.arange(2, dtype=np.int32)}
    )
    return run.get_output_tensor(0).data.copy()


@pytest.mark.parametrize("folder", ["gpt2_ml_original", "gpt2", "gpt"], indirect=True)
def test_logits_are_ours(folder: Path, request: pytest.FixtureRequest, data: Path) -> None:
    ours = hanmo.load(data / "goldens" / request.node.callspec.params["folder"])
    run = ov.compile_model(folder / MODEL, "CPU", EXACT).create_infer_request()
    prompts, written = [[5, 9, 7, 11], [8, 6]], [[12, 3], [4, 10]]
    found = [step(run, [prompts[0], [0, 0, *prompts[1]]], 0, [[1] * 4, [0, 0, 1, 1]])[:, -1]]
    for at, ids in enumerate(written):
        found.append(step(run, [[number] for number in ids], 4 + at, [[1] * (5 + at), [0, 0, *[1] * (3 + at)]])[:, -1])
    for row, prompt in enumerate(prompts):
        ids = prompt + [ids[row] for ids in written]
        with torch.no_grad():
            expected = ours.model(torch.tensor([ids])).logits[0, len(prompt) - 1 :].numpy()
        assert np.abs(np.array(found)[:, row] - expected).max() < 1e-4 * max(1, np.abs(expected).max())


@pytest.mark.parametrize(("kind", "reason"), [("t5_1.1", "it has an encoder"), ("bert", "it is an encoder")])
def test_what_genai_cannot_run_is_refused_and_nothing_is_left(
    kind: str, reason: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=f"cannot go to OpenVINO GenAI: {reason}"):
        export_openvino(data / "goldens" / kind, tmp_path / "genai")
    assert list(tmp_path.iterdir()) == []


def test_files_beside_the_graph_and_a_folder_that_exists(data: Path, tmp_path: Path) -> None:
    source = data / "goldens" / "gpt2"
    files = {"config.json": {"eos_token_id": 3}}
    made = export_openvino(source, tmp_path / "genai", weights="int8", files=lambda _: files)
    assert json.loads((made / "config.json").read_text())["eos_token_id"] == 3
    with pytest.raises(CheckpointError, match="is not empty"):
        export_openvino(source, made)


def test_convert_makes_folders_above_keeps_special_ids_and_never_replaces_what_is_read(
    data: Path, tmp_path: Path
) -> None:
    config = hanmo.load(data / "goldens" / "gpt2").config
    said = {"eos_token_id": 3, "pad_token_id": 0, "tokenizer_class": "BertTokenizer"}
    source = save(hanmo.load(data / "goldens" / "gpt2").model, tmp_path / "source", form="huggingface").path
    described = json.loads((source / "config.json").read_text()) | said
    (source / "config.json").write_text(json.dumps(described))
    run = partial(CliRunner().invoke, app)
    result = run(["convert", str(source), str(source), "--to", "openvino", "--force"])
    assert result.exit_code == 1 and "is what is read; give another place" in result.stderr
    made = tmp_path / "a" / "b" / "genai"
    assert run(["convert", str(source), str(made), "--to", "openvino"]).exit_code == 0
    written = json.loads((made / "config.json").read_text())
    assert written["vocab_size"] == config.vocab_size and {key: written[key] for key in said} == said
    assert run(["convert", str(source), str(made), "--to", "openvino", "--force"]).exit_code == 0
    assert not [file for file in made.iterdir() if file.is_dir()]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["PA", "SDPA"])
def test_genai_writes_the_greedy_ids_of_ours(backend: str, tmp_path: Path) -> None:
    genai = pytest.importorskip("openvino_genai")
    ours = hanmo.load()
    assert ours.tokenizer is not None
    files = {file.name: file for file in tokenizer_files(SMALL)}
    ends = {"generation_config.json": {"eos_token_id": ours.tokenizer.special.end}}
    folder = export_openvino(locate(SMALL), tmp_path / "genai", files=lambda _: files | ends)
    ids = [ours.tokenizer.special.end, *ours.tokenizer.encode("今天天气不错", ends=False).ids]
    expected = list(ids)
    with torch.no_grad():
        for _ in range(24):
            expected.append(int(ours.model(torch.tensor([expected])).logits[0, -1].argmax()))
    config = genai.GenerationConfig(max_new_tokens=24, do_sample=False, ignore_eos=True)
    pipeline = genai.LLMPipeline(str(folder), "CPU", ATTENTION_BACKEND=backend, **EXACT)
    assert list(pipeline.generate(ov.Tensor(np.array([ids], np.int64)), config).tokens[0]) == expected[len(ids) :]
