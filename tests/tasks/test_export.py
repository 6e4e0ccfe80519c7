"""Tasks that were exported, in transformers and in ONNX Runtime, against `predict` and the network."""

import json
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from toy_tasks import model_folder, sky_rows, texts
from untrained import untrained

from hanmo.errors import CheckpointError, ConfigError
from hanmo.tasks import TaskConfig
from hanmo.tasks.export import columns, export
from hanmo.tasks.finetune import fit
from hanmo.tasks.pipeline import open_task
from hanmo.tasks.rows import as_rows

LABELS = ("体育", "财经", "a b")
SINGLE = TaskConfig(kind="classify", form="single", labels=LABELS, head="linear", max_length=40)
MULTI = replace(SINGLE, form="multi")
NUMBER = replace(SINGLE, form="regression", labels=())
TAG = TaskConfig(kind="tag", form="BIO", labels=("地名", "PER"), head="softmax", max_length=40)
CRF, MEMM = replace(TAG, head="crf"), replace(TAG, head="memm")
READ = TaskConfig(kind="read", head="linear", max_length=40)
EMBED = TaskConfig(kind="embed", form="cosent", head="linear", pooling="mean", max_length=40)
WHITENED = replace(EMBED, options={"whitening": 5})
RELATE = TaskConfig(kind="relate", labels=LABELS, head="gplinker", max_length=40)
EVENTS = TaskConfig(kind="events", labels=("买", "买|人"), head="gplinker", max_length=40)
SPANS = TaskConfig(kind="spans", labels=LABELS, head="global_pointer", max_length=40)
TEXTS = [*texts(3), "天", "日月盈昃abc12"]


def outputs_of(pipeline, batch):
    """Run the network on each window alone: a list of tuples of arrays."""
    found = []
    for ids in batch:
        row = torch.tensor([ids])
        arrays = {"ids": row, "segments": torch.zeros_like(row), "mask": torch.ones_like(row, dtype=torch.bool)}
        several = pipeline.task.config.kind == "embed"  # whose batches have an axis of texts
        with torch.inference_mode():
            outputs = pipeline.network({name: array[None] for name, array in arrays.items()} if several else arrays)
        outputs = torch.nn.functional.normalize(outputs[0], dim=-1) if several else outputs
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        found.append([each.numpy() for each in outputs if each is not None])
    return found


@pytest.mark.parametrize(
    ("family", "config", "name"),
    [
        ("bert", SINGLE, "BertForSequenceClassification"),
        ("bert", MULTI, "BertForSequenceClassification"),
        ("bert", NUMBER, "BertForSequenceClassification"),
        ("bert", TAG, "BertForTokenClassification"),
        ("albert", SINGLE, "AlbertForSequenceClassification"),
        ("albert", TAG, "AlbertForTokenClassification"),
        ("roberta", SINGLE, "RobertaForSequenceClassification"),
        ("roberta", TAG, "RobertaForTokenClassification"),
        ("xlm_roberta", SINGLE, "XLMRobertaForSequenceClassification"),
        ("camembert", SINGLE, "CamembertForSequenceClassification"),
        ("electra", SINGLE, "ElectraForSequenceClassification"),
        ("electra", TAG, "ElectraForTokenClassification"),
        ("roformer", SINGLE, "RoFormerForSequenceClassification"),
        ("roformer", TAG, "RoFormerForTokenClassification"),
        ("bert", READ, "BertForQuestionAnswering"),
        ("roformer", READ, "RoFormerForQuestionAnswering"),
    ],
)
def test_transformers_gives_equal_logits_labels_and_ids(tmp_path, family, config, name):
    import transformers

    pipeline = untrained(tmp_path, config, family=family)
    saved = export(pipeline, tmp_path / "out")
    auto = {"tag": "TokenClassification", "classify": "SequenceClassification", "read": "QuestionAnswering"}
    model = getattr(transformers, f"AutoModelFor{auto[config.kind]}").from_pretrained(saved.path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved.path)
    assert type(model).__name__ == name
    labels = columns(pipeline.task)
    assert model.config.id2label == dict(enumerate(labels))
    assert model.config.label2id == {label: number for number, label in enumerate(labels)}
    batch = [pipeline.task.tokenizer.encode(text).ids for text in TEXTS]
    padded = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model(**padded)
    logits = (torch.stack((found.start_logits, found.end_logits), -1) if config is READ else found.logits).numpy()
    for row, (ids, (expected, *_)) in enumerate(zip(batch, outputs_of(pipeline, batch), strict=True)):
        assert padded["input_ids"][row, : len(ids)].tolist() == ids
        unpadded = logits[row] if config.kind == "classify" else logits[row, : len(ids)]
        np.testing.assert_allclose(unpadded, expected[0], rtol=0, atol=1e-4)
    assert abs(logits[0] - logits[1]).max() > 1e-2


def test_pairs_get_the_label_and_the_probability_of_predict(tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    pipeline = untrained(tmp_path, SINGLE)
    saved = export(pipeline, tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(saved.path).eval()
    tokenizer = AutoTokenizer.from_pretrained(saved.path)
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    for pair in pairs:
        with torch.no_grad():
            odds = model(**tokenizer(*pair, return_tensors="pt")).logits[0].softmax(-1)
        (expected,) = pipeline.predict([pair])
        assert model.config.id2label[int(odds.argmax())] == expected["label"]
        assert float(odds.max()) == pytest.approx(expected["probability"], abs=1e-4)


def test_labels_survive_training_export_and_reload(tmp_path):
    from transformers import AutoConfig

    rows = [row | {"label": f"{row['label']} 天"} for row in sky_rows(64)]
    fitted = fit(model_folder(tmp_path / "base"), train=rows, kind="classify", out=tmp_path / "run")
    saved = export(open_task(fitted.folder), tmp_path / "out")
    assert AutoConfig.from_pretrained(saved.path).id2label == {0: "earth 天", 1: "sky 天"}
    assert any("temperature" in note for note in saved.notes)


@pytest.mark.parametrize("config", [CRF, MEMM], ids=["crf", "memm"])
def test_transitions_are_left_out_on_request_alone(tmp_path, config):
    from transformers import AutoModelForTokenClassification

    pipeline = untrained(tmp_path, config)
    with pytest.raises(ConfigError, match=rf"head is '{config.head}', and transformers has no transitions .*drop_tran"):
        export(pipeline, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    saved = export(pipeline, tmp_path / "out", drop_transitions=True)
    assert any(f"the {config.head}'s transitions are left out" in note for note in saved.notes)
    model = AutoModelForTokenClassification.from_pretrained(saved.path)
    expected = pipeline.network.head.linear.weight
    assert torch.equal(model.classifier.weight, expected)
    assert [model.config.id2label[n] for n in range(5)] == ["O", "B-地名", "I-地名", "B-PER", "I-PER"]


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        (
            "bert",
            replace(SINGLE, pooling="mean"),
            r"pooling is 'mean', and BertForSequenceClassification has a pooler ",
        ),
        (
            "bert",
            replace(TAG, attention="causal"),
            r"attention is 'causal', and 'full' in transformers' bert; use form='onnx'",
        ),
        ("nezha", SINGLE, r"transformers has no class of nezha with a head, only of bert, albert, "),
        ("bert", SPANS, r"transformers has no class for kind 'spans', only for 'classify', 'tag' and 'read'; use"),
    ],
)
def test_what_transformers_has_no_class_for_is_refused(tmp_path, family, config, message):
    with pytest.raises(CheckpointError, match=message):
        export(untrained(tmp_path, config, family=family), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pooler_that_transformers_has_not_is_refused(tmp_path):
    pipeline = untrained(tmp_path, SINGLE, family="electra")
    pipeline.config = replace(pipeline.config, pool="tanh")
    message = r"activation is 'tanh', and ElectraForSequenceClassification has a pooler with 'gelu_erf' alone"
    with pytest.raises(CheckpointError, match=message):
        export(pipeline, tmp_path / "out")


FEW = {"words": {"sky": "天", "earth": "地"}}
MASKS = [
    (TaskConfig(kind="few", form="single", labels=("earth", "sky"), max_length=60, options=FEW), TEXTS),
    (TaskConfig(kind="read_mlm", max_length=60), [{"text": text, "question": "天"} for text in TEXTS]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("config", "rows"), MASKS, ids=["few", "read_mlm"])
def test_words_at_masks_equal_torch_in_onnx(tmp_path, config, rows):
    pipeline = untrained(tmp_path, replace(config, head="linear"))
    saved = export(pipeline, tmp_path / "out", form="onnx")
    examples = [pipeline.task.encode(row) for row in as_rows(rows)]
    batch = pipeline.task.collate([(each, each.windows[0]) for each in examples], targets=False)
    assert len({len(each.windows[0]) for each in examples}) > 3
    names = {"input_ids": "ids", "attention_mask": "mask", "token_type_ids": "segments"}
    session = onnxruntime.InferenceSession(saved.path / "model.onnx", providers=["CPUExecutionProvider"])
    given = {each.name: batch[names[each.name]].astype(np.int64) for each in session.get_inputs()}
    with torch.inference_mode():
        expected = pipeline.network({name: torch.from_numpy(each) for name, each in batch.items()}).numpy()
    np.testing.assert_allclose(session.run(None, given)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "name"),
    [(replace(RELATE, head="casrel"), "relate' of CasRel"), (replace(READ, kind="read_seq2seq"), "read_seq2seq'")],
)
def test_a_network_that_runs_twice_is_refused_for_onnx(tmp_path, config, name):
    with pytest.raises(CheckpointError, match=f"kind '{name} runs its network more than once"):
        export(untrained(tmp_path, config), tmp_path / "out", form="onnx")


def test_an_unknown_form_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"form is 'keras'; expected one of huggingface, onnx"):
        export(untrained(tmp_path, SINGLE), tmp_path / "out", form="keras")


ONNX = [
    *(
        ("bert", config)
        for config in (
            SINGLE,
            MULTI,
            NUMBER,
            TAG,
            CRF,
            MEMM,
            SPANS,
            READ,
            EMBED,
            WHITENED,
            RELATE,
            EVENTS,
            replace(SINGLE, pooling="mean"),
        )
    ),
    *((family, SINGLE) for family in ("albert", "roberta", "electra", "nezha", "roformer")),
    ("gpt2_ml", replace(SINGLE, attention="causal", pooling="last")),
    ("gpt2_ml", replace(CRF, attention="full")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "config"), ONNX)
def test_onnx_equals_torch_for_texts_of_unequal_length_in_one_batch(tmp_path, family, config):
    pipeline = untrained(tmp_path, config, family=family)
    for buffer in pipeline.network.head.buffers():  # of the whitening
        buffer.normal_(generator=torch.Generator().manual_seed(0))
    saved = export(pipeline, tmp_path / "out", form="onnx")
    assert any("windows" in note for note in saved.notes)
    assert any("Viterbi" in note for note in saved.notes) == (config.kind == "tag")
    session = onnxruntime.InferenceSession(saved.path / "model.onnx", providers=["CPUExecutionProvider"])
    batch = [pipeline.task.tokenizer.encode(text).ids for text in TEXTS]
    assert len({len(ids) for ids in batch}) > 3
    ids = np.zeros((len(batch), max(map(len, batch))), np.int64)
    mask = np.zeros_like(ids)
    for row, each in enumerate(batch):
        ids[row, : len(each)], mask[row, : len(each)] = each, 1
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    found = session.run(None, {each.name: given[each.name] for each in session.get_inputs()})
    if config.kind == "embed":
        assert [each.name for each in session.get_outputs()] == ["vector"]
        np.testing.assert_allclose(found[0], pipeline.encode(TEXTS), rtol=0, atol=1e-4)
    for row, expected in enumerate(outputs_of(pipeline, batch)):
        assert len(expected) == len(found)
        for whole, alone in zip(found, expected, strict=True):
            real = whole if whole.shape == alone.shape else whole[row : row + 1][tuple(map(slice, alone.shape))]
            np.testing.assert_allclose(real, alone, rtol=1e-4, atol=1e-4)
    named = session.get_modelmeta().custom_metadata_map
    assert json.loads(named["columns"]) == list(columns(pipeline.task))
    assert TaskConfig.read(saved.path / "task.json") == config
    assert (saved.path / "vocab.txt").is_file()
