"""Training a task: what is refused, early stopping by the dev score, resuming, rates, wrapped losses, notes."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_pairs import question_rows
from toy_tasks import entity_rows, model_folder, pair_rows, sky_rows

import hanmo
from hanmo.checkpoint.save import save
from hanmo.errors import CheckpointError, ConfigError, DataError, MissingFile, TokenizerError
from hanmo.families import FAMILIES
from hanmo.loading import load as load_model
from hanmo.model import Model
from hanmo.tasks import TaskArgs, TaskConfig, fit
from hanmo.tasks.adversarial import Fgm, Vat
from hanmo.tasks.compress import Distill
from hanmo.tasks.finetune import make_optimizer, prepare, task_loss
from hanmo.tasks.network import build
from hanmo.tasks.pipeline import open_task
from hanmo.tasks.rows import Row
from hanmo.tasks.table import make_task
from hanmo.tasks.wrappers import describe
from hanmo.tokenizers import WordPiece
from hanmo.tokenizers.load import tokenizer_files
from hanmo.training.args import TrainArgs
from hanmo.training.checkpoints import read_state
from hanmo.training.step import Updates

ROWS, DEV = sky_rows(48), sky_rows(24, seed=1)
CONFIG = TaskConfig(kind="classify", form="single", labels=("earth", "sky"), head="linear")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return model_folder(tmp_path_factory.mktemp("base") / "model")


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def evaluations(out: Path) -> list[dict]:
    records = map(json.loads, (out / "log.jsonl").read_text("utf-8").splitlines())
    return [record for record in records if "evaluation" in record]


def test_the_dev_file_is_named_in_the_score(base, tmp_path):
    dev = lines(tmp_path / "dev.jsonl", DEV)
    fitted = fit(base, train=ROWS, dev=dev, kind="classify", out=tmp_path / "run", args=TrainArgs(batch=16, steps=2))
    assert fitted.score.on == str(dev)
    assert fitted.steps == 2
    assert json.loads((fitted.folder / "task.json").read_text("utf-8"))["score"]["on"] == str(dev)


@pytest.mark.parametrize("given", [{}, {"kind": "classify", "config": CONFIG}])
def test_a_kind_or_a_configuration_is_needed(base, tmp_path, given):
    with pytest.raises(ConfigError, match="give either kind"):
        fit(base, train=ROWS, out=tmp_path / "run", **given)


@pytest.mark.parametrize(
    ("train", "dev", "message"),
    [
        ([], DEV, r"train.jsonl is empty"),
        (ROWS, [], r"dev.jsonl is empty"),
        ([*ROWS, {"text": "天"}], DEV, r"^train.jsonl:49: 'label' is missing"),
        (ROWS, [*DEV, {"text": "天", "label": "sea"}], r"^dev.jsonl:25: the label 'sea' is not in the training data, "),
    ],
)
def test_wrong_data_is_refused_before_anything_is_written(base, tmp_path, train, dev, message):
    train, dev = lines(tmp_path / "train.jsonl", train), lines(tmp_path / "dev.jsonl", dev)
    with pytest.raises(DataError, match=message):
        fit(base, train=train, dev=dev, kind="classify", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_duplicates_are_counted_and_stay_on_one_side():
    data = prepare(TaskConfig(kind="classify"), ROWS + ROWS[:5], DEV + ROWS[:3])
    assert any("3 of the 27 dev rows" in note for note in data.notes)
    assert any("5 of the 53 training rows" in note for note in data.notes)
    held = prepare(TaskConfig(kind="classify"), ROWS + ROWS, None, held_out=0.2)
    assert {row.data["text"] for row in held.train}.isdisjoint(row.data["text"] for row in held.dev)
    assert held.measured_on == "held out"


def test_a_window_longer_than_the_positions_is_refused(base, tmp_path):
    config = TaskConfig(kind="classify", max_length=65)
    with pytest.raises(ConfigError, match=r"max_length is 65; the model of .* knows 64 positions"):
        fit(base, train=ROWS, dev=DEV, config=config, out=tmp_path / "run")


def test_a_decoder_is_refused(base, tmp_path):
    loaded = load_model(base)
    config = FAMILIES["gpt2_ml"].tensorflow.config(
        {"vocab_size": loaded.config.vocab_size, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 64, "max_position_embeddings": 16, "hidden_act": "gelu"}
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"this gpt2_ml reads from left to right; .* attention 'full' or 'causal'"):
        make_task(CONFIG, loaded.tokenizer).network(config)


@pytest.mark.parametrize("attention", ["full", "causal"])
def test_a_decoder_becomes_an_encoder_with_the_attention_that_is_chosen(tmp_path, attention):
    decoder = model_folder(tmp_path / "gpt2_ml", family="gpt2_ml")
    config = TaskConfig(kind="classify", attention=attention, dropout=0.25)
    fitted = fit(decoder, train=ROWS, dev=DEV, config=config, out=tmp_path / "run", args=TrainArgs(batch=16, steps=2))
    task = open_task(fitted.folder)
    assert (task.config.main.mask, task.config.main.dropout) == (attention, 0.25)
    assert task.task.pooling == ("last" if attention == "causal" else "pooler")
    ids = torch.tensor([[5, 6, 7], [5, 6, 8]])
    of_first = task.model(ids).hidden[:, 0]
    assert torch.equal(*of_first) == (attention == "causal")
    loaded = load_model(decoder)
    started = build(loaded.model, make_task(task.task.config, loaded.tokenizer)).backbone.eval()
    assert torch.equal(started(ids).hidden, loaded.model(ids).hidden) == (attention == "causal")


@pytest.mark.parametrize("pooling", ["pooler", "first"])
def test_the_first_of_tokens_that_see_no_later_one_is_refused(base, tmp_path, pooling):
    config = TaskConfig(kind="classify", attention="causal", pooling=pooling)
    with pytest.raises(ConfigError, match=f"pooling is '{pooling}' and attention is 'causal'"):
        fit(base, train=ROWS, dev=DEV, config=config, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "message"), [({"attention": "none"}, "attention"), ({"dropout": 1}, "dropout is '1'")]
)
def test_an_unknown_attention_or_dropout_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        TaskConfig(kind="classify", **settings)


@pytest.mark.parametrize("kind", ["classify", "tag"])
def test_training_ends_without_a_better_score_and_keeps_the_best(base, tmp_path, kind):
    args = TrainArgs(batch=16, epochs=30, lr=2e-3 if kind == "classify" else 6e-3, early_stopping=2)
    config = TaskConfig(kind=kind, pooling="mean" if kind == "classify" else "")
    make, name = (sky_rows, "accuracy") if kind == "classify" else (entity_rows, "f1")
    dev = make(24, seed=1)
    fitted = fit(base, train=make(200), dev=dev, config=config, out=tmp_path / "run", args=args)
    found = evaluations(tmp_path / "run")
    scores = [record["evaluation"][name] for record in found]
    best = scores.index(max(scores))
    assert fitted.steps < 30 * 13
    assert best > 0 and len(scores) == best + 3
    assert fitted.score.value == max(scores) and fitted.score.name == name
    assert fitted.folder.name == f"best-{found[best]['step']:08d}"
    assert open_task(tmp_path / "run").evaluate(dev)[name] == max(scores)


def test_the_score_before_training_neither_ends_a_run_nor_is_kept_for_an_equal_one(base, tmp_path):
    args = TrainArgs(batch=16, epochs=9, lr=1e-12, early_stopping=1)
    fitted = fit(base, train=ROWS, dev=DEV, kind="classify", out=tmp_path / "run", args=args)
    found = [(record["step"], record["evaluation"]["accuracy"]) for record in evaluations(tmp_path / "run")]
    assert [step for step, _ in found] == [0, 3, 6] and len({score for _, score in found}) == 1
    assert fitted.folder.name == "best-00000003"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train": [*ROWS[1:], ROWS[0]]}, "last-00000002 was trained with other training data; resume with the same"),
        ({"head_lr": 3.0}, "with other head_lr; resume with the same, or begin in another"),
        ({"wrap": "fgm"}, "with other wrap; resume with the same, or begin in another"),
        ({"dev": DEV[1:]}, "last-00000002 was trained with other dev data; resume with the same"),
        ({"config": TaskConfig(kind="classify", options={"class_weights": {"sky": 2}})}, "with other task; resume"),
        (
            {"args": TaskArgs(batch=8, steps=4)},
            "was trained with other batch; resume with the same, or begin in another",
        ),
    ],
)
def test_a_run_is_not_resumed_with_other_data(base, tmp_path, change, says):
    given = {"train": ROWS, "dev": DEV, "config": TaskConfig(kind="classify"), "args": TaskArgs(steps=2)}
    fit(base, out=tmp_path, **given)
    with pytest.raises(CheckpointError, match=says):
        fit(base, out=tmp_path, resume=True, **{**given, "args": TaskArgs(steps=4), **change})
    assert fit(base, out=tmp_path, resume=True, **{**given, "args": TaskArgs(steps=4)}).steps == 4


def test_tricks_are_told_apart_by_their_teachers_and_texts(base, tmp_path):
    fits = [
        fit(base, train=ROWS, dev=DEV, kind="classify", out=tmp_path / name, args=TaskArgs(steps=1, seed=seed))
        for seed, name in enumerate(("one", "two"))
    ]
    teachers = [str(fitted.folder) for fitted in fits]
    told = [describe(Distill(teacher)) for teacher in (*teachers, teachers[0])]
    assert told[0] == told[2] != told[1]
    texts = [describe(Vat(texts)) for texts in ([{"text": "天"}], [{"text": "地"}], [{"text": "天"}])]
    assert texts[0] == texts[2] != texts[1]
    assert describe(["fgm", Vat(["天"], weight=2)]).startswith("fgm {}, Vat {'rows': ")
    own = Fgm()
    own.layers = [1, 2]
    assert describe(own) == describe(Fgm())


def test_a_longer_run_keeps_the_warmup_that_it_began_with(base, tmp_path):
    fit(base, train=ROWS, dev=DEV, kind="classify", out=tmp_path, args=TaskArgs(steps=20))
    fit(base, train=ROWS, dev=DEV, kind="classify", out=tmp_path, args=TaskArgs(steps=40), resume=True)
    assert read_state(next(tmp_path.glob("last-00000040")))["settings"]["warmup"] == 2


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"precision": "bfloat16"}, "precision is 'bfloat16', whose weights are too coarse .* use 'mixed'"),
        ({"sequence": 64}, "sequence is 64, which has no effect on a task; give max_length of TaskConfig"),
        ({"restore_slots": True}, "restore_slots is True, which has no effect on a task; leave it out"),
    ],
)
def test_an_argument_without_effect_on_a_task_is_refused(base, tmp_path, args, says):
    with pytest.raises(ConfigError, match=says):
        fit(base, train=ROWS, dev=DEV, kind="classify", out=tmp_path / "run", args=TaskArgs(steps=1, **args))
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_mix_its_files_with_a_model_s(base, tmp_path):
    before = sorted(path.name for path in base.iterdir())
    with pytest.raises(
        ConfigError, match=r"out is '.*model', which holds a model; expected a new folder, or that of a run"
    ):
        fit(base, train=ROWS, dev=DEV, kind="classify", out=base, args=TaskArgs(steps=1))
    assert sorted(path.name for path in base.iterdir()) == before
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"out is '.*file', a file; expected a folder"):
        fit(base, train=ROWS, dev=DEV, kind="classify", out=tmp_path / "file", args=TaskArgs(steps=1))


def test_a_model_without_its_vocabulary_is_refused(base, tmp_path):
    hanmo.save(load_model(base).model, tmp_path / "bare")
    for model in (tmp_path / "bare", hanmo.load(tmp_path / "bare", tokenizer=base)):
        with pytest.raises(MissingFile, match=r"no vocabulary beside .*, which a task needs; put its vocab\.txt or"):
            fit(model, train=ROWS, dev=DEV, kind="classify", out=tmp_path / "run", args=TaskArgs(steps=1))


def test_the_tokenizer_that_was_trained_with_goes_along_or_is_refused(base, tmp_path):
    def trained(**options):
        loaded = hanmo.load(base, **options)
        return fit(loaded, train=ROWS, dev=DEV, kind="classify", out=tmp_path / "run", args=TaskArgs(steps=1)).folder

    tokens = (base.parent / "model-vocab.txt").read_text("utf-8").split()
    with pytest.raises(
        ConfigError, match=r"the model was loaded with another tokenizer than the files in .*model hold"
    ):
        trained(tokenizer=WordPiece([*tokens[:6], *reversed(tokens[6:])]))
    with pytest.raises(
        ConfigError, match=r"pre_tokenize is a function, which .*; load the model with pre_tokenize=True"
    ):
        trained(pre_tokenize=lambda text: [text[::-1]])
    assert not (tmp_path / "run").exists()
    task = hanmo.load(trained(pre_tokenize=True))
    assert task.tokenizer.pre_tokenizes
    task = hanmo.load(task.save(tmp_path / "copy"))
    assert task.tokenizer.pre_tokenizes and not hanmo.load(base).tokenizer.pre_tokenizes
    with pytest.raises(ConfigError, match="pre_tokenize is a function"):
        hanmo.load(tmp_path / "copy", pre_tokenize=list).save(tmp_path / "other")
    folder = task.path.parent
    task = hanmo.load(folder, tokenizer=folder / "vocab.txt")
    (folder / "a.model").touch()
    with pytest.raises(TokenizerError, match="or leave only the tokenizer's files beside the model"):
        task.save(tmp_path / "other")


@pytest.mark.parametrize("lora", [None, 4])
def test_a_resumed_run_equals_one_that_was_not_stopped(base, tmp_path, lora):
    def run(name, steps, **options):
        args = TrainArgs(batch=8, steps=steps, lr=2e-3, lora=lora, schedule="constant", warmup=0, evaluate_every=100)
        fit(base, train=ROWS, dev=DEV, kind="classify", out=tmp_path / name, args=args, **options)
        return tensors_of(next((tmp_path / name).glob("last-*")))

    whole = run("whole", 10)
    run("parts", 4)
    parts = run("parts", 10, resume=True)
    assert whole.keys() == parts.keys()
    assert any(name.startswith("head.") for name in whole)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*.safetensors")))


def test_rates_fall_from_the_head_to_the_embeddings(base):
    loaded = load_model(base)
    network = build(loaded.model, make_task(CONFIG, loaded.tokenizer))
    args = TrainArgs(steps=1, lr=1.0, optimizer="adamw", weight_decay=0.1)
    optimizer = make_optimizer(network, args, layer_decay=0.5, head_lr=10)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: rates[id(parameter)] for name, parameter in network.named_parameters()}
    assert named["head.linear.weight"] == 10
    assert named["backbone.pooler.dense.weight"] == 1
    assert named["backbone.encoder.blocks.1.feed_forward.input.weight"] == 1
    assert named["backbone.encoder.blocks.0.feed_forward.input.weight"] == 0.5
    assert named["backbone.token.weight"] == named["backbone.encoder.embedding.norm.weight"] == 0.25
    with pytest.raises(ConfigError, match="optimizer is 'muon'; layer_decay and head_lr need 'adamw'"):
        make_optimizer(network, TrainArgs(steps=1, optimizer="muon"), head_lr=10)


def test_a_wrapped_loss_is_trained_on(base, tmp_path):
    seen = []

    def wrap(loss, network):
        def doubled(model, batch):
            assert model is network
            seen.append(float(loss(model, batch).detach()))
            return 2 * loss(model, batch)

        return doubled

    args = TrainArgs(batch=16, steps=1, log_every=1)
    fit(base, train=ROWS, dev=DEV, kind="classify", out=tmp_path / "run", args=args, wrap=wrap)
    record = json.loads((tmp_path / "run" / "log.jsonl").read_text("utf-8").splitlines()[1])
    assert record["loss"] == pytest.approx(2 * seen[0], rel=1e-6)


def test_a_batch_in_parts_has_the_gradient_of_the_batch(base):
    loaded = load_model(base)
    task = make_task(TaskConfig(**CONFIG.to_dict() | {"max_length": 10, "score": None}), loaded.tokenizer)
    rows = [Row("", row) for row in (*ROWS[:4], {"text": "天" * 20, "label": "sky"})]
    examples = [task.encode(row) for row in rows]
    arrays = task.collate([(example, window) for example in examples for window in example.windows])
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    assert len(set(batch["weight"].tolist())) > 1
    gradients = []
    for parts in (1, 3):
        network = build(loaded.model, task, seed=3)
        args = TrainArgs(steps=1, accumulate=parts, batch=len(batch["ids"]), lr=0.1, warmup=0, clip=None).for_loop()
        updates = Updates(network, args, task_loss, lambda net: torch.optim.SGD(net.parameters(), lr=0.1))
        updates.make(batch, 0, 1)
        gradients.append([parameter.detach().clone() for parameter in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_caller_s_model_is_not_changed(base, tmp_path):
    loaded = load_model(base)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    fit(loaded, train=ROWS, dev=DEV, kind="classify", out=tmp_path / "run", args=TrainArgs(batch=16, steps=2, lr=1e-2))
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded.model.state_dict().items())


def test_a_task_folder_is_a_model_to_start_from(base, tmp_path):
    args = TrainArgs(batch=16, steps=1)
    first = fit(base, train=ROWS, dev=DEV, kind="classify", out=tmp_path / "one", args=args)
    assert type(load_model(first.folder)).__name__ == "ModelPipeline"
    fit(first.folder, train=ROWS, dev=DEV, kind="classify", out=tmp_path / "two", args=args)
    assert open_task(tmp_path / "two").labels == ("earth", "sky")


@pytest.mark.parametrize(
    ("rows", "other", "says"),
    [
        (ROWS, pair_rows(2), "a pair; the task is one of single texts"),
        (pair_rows(32), ROWS, "a text; the task is one of pairs, 'a' and 'b'"),
    ],
)
def test_a_task_of_pairs_takes_no_single_texts_nor_one_of_these_pairs(base, tmp_path, rows, other, says):
    with pytest.raises(DataError, match=f"^row {len(rows) + 1}: it is {says}"):
        prepare(TaskConfig(kind="classify"), [*rows, other[0]], rows)
    fit(base, train=rows, dev=rows[:8], kind="classify", out=tmp_path / "run", args=TaskArgs(steps=1))
    task = open_task(tmp_path / "run")
    with pytest.raises(DataError, match=f"^text 1: it is {says}"):
        task.predict(other[:1])
    assert task.predict(rows[:1])[0]["label"] in ("earth", "sky")


def test_a_folder_of_a_model_is_not_a_task(base):
    assert type(hanmo.load(base)).__name__ == "ModelPipeline"
    with pytest.raises(MissingFile, match=r"task\.json is missing, so .* is not the folder of a task"):
        open_task(base)


def test_a_task_is_saved_in_one_form(base, tmp_path):
    fitted = fit(base, train=ROWS, dev=DEV, kind="classify", out=tmp_path / "run", args=TrainArgs(batch=16, steps=1))
    with pytest.raises(ConfigError, match="form is 'huggingface'; expected 'safetensors'"):
        hanmo.load(fitted.folder).save(tmp_path / "out", form="huggingface")
    with pytest.raises(ConfigError, match="form is 'tensorflow', which has no place for the head"):
        hanmo.save(load_model(base).model, tmp_path / "out", form="tensorflow", head=torch.nn.Linear(1, 1))


def test_labels_that_are_whole_numbers_become_strings(base, tmp_path):
    rows = [{**row, "label": int(row["label"] == "sky")} for row in ROWS]
    fitted = fit(base, train=rows, dev=rows[:8], kind="classify", out=tmp_path / "run", args=TaskArgs(steps=1))
    loaded = open_task(fitted.folder)
    assert loaded.labels == ("0", "1")
    assert loaded.evaluate(lines(tmp_path / "dev.jsonl", rows[:8])) == fitted.score.scores
    several = [{"text": row["text"], "labels": [row["label"]]} for row in rows]
    assert prepare(TaskConfig(kind="classify"), several, several).config.labels == ("0", "1")


def test_items_that_are_no_texts_are_named(base, tmp_path):
    fit(base, train=ROWS, dev=DEV, kind="classify", out=tmp_path / "run", args=TrainArgs(batch=16, steps=1))
    loaded = open_task(tmp_path / "run")
    with pytest.raises(DataError, match="text 2: 'text' is empty"):
        loaded.predict(["天", ""])
    with pytest.raises(DataError, match="text 1 is a int"):
        loaded.predict([1])
    with pytest.raises(ConfigError, match="batch is 0"):
        loaded.predict(["天"], batch=0)
    with pytest.raises(DataError, match="row 1: the label 'sea' is not in the task of"):
        loaded.evaluate([{"text": "天", "label": "sea"}])
    assert loaded.predict([]) == []


def test_results_of_a_stream_come_before_its_end(base, tmp_path):
    fit(base, train=ROWS, dev=DEV, kind="classify", out=tmp_path / "run", args=TrainArgs(batch=16, steps=1))
    taken = []

    def texts():
        for number in range(1000):
            taken.append(number)
            yield "天地"

    next(open_task(tmp_path / "run").stream_results(texts(), batch=2))
    assert 0 < len(taken) < 100


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"options": {"transitions_rate": 5}}, "the option 'transitions_rate' is unknown; kind 'classify' has class_w"),
        ({"options": {"class_weights": {"sky": "x"}}}, "class_weights is .*; expected labels of the task, each with a"),
        ({"options": {"class_weights": {"sky": -1}}}, "class_weights is .*; expected labels of the task, each with a"),
        ({"options": {"class_weights": {"sky": math.nan}}}, "class_weights is .*; expected labels of the task, each"),
        ({"options": {"class_weights": {"sea": 1}}}, "class_weights is .*; these are earth, sky"),
        ({"form": "BIO"}, "form is 'BIO'; expected one of single, multi, regression for kind 'classify'"),
        ({"kind": "embed", "options": {"scale": "x"}}, "scale is 'x'; expected a number"),
        ({"kind": "embed", "options": {"scale": math.inf}}, "scale is 'inf'; expected a number"),
        (
            {"kind": "embed", "options": {"margin": 0.3}},
            "the option 'margin' has no effect here, only with head, form",
        ),
        (
            {"kind": "embed", "pooling": "mean", "options": {"pooler": "linear"}},
            "'pooler' has no effect here, only with",
        ),
        (
            {"kind": "embed", "labels": ("sky",)},
            "labels is .*'sky'.*, which kind 'embed' does not use; leave labels out",
        ),
        ({"kind": "tag", "pooling": "mean"}, "pooling is 'mean', which kind 'tag' does not use; leave pooling out"),
        ({"form": "regression", "labels": ("sky",)}, "form 'regression' predicts a number, leave labels out"),
        ({"max_length": 10, "stride": 9}, "stride is 9; expected at most 8, the tokens that a window has room for"),
    ],
)
def test_a_setting_of_another_kind_or_a_wrong_one_is_refused(base, tmp_path, settings, message):
    config = TaskConfig(**{"kind": "classify", **settings})
    rows = sky_rows(8) if config.kind == "classify" else [{"a": "天", "b": c, "score": 1} for c in "日月盈昃"]
    with pytest.raises(ConfigError, match=message):
        fit(base, train=rows, dev=rows, config=config, out=tmp_path / "run", args=TaskArgs(steps=1))


@pytest.mark.parametrize(("name", "value"), [("layer_decay", -1.0), ("layer_decay", math.inf), ("head_lr", math.nan)])
def test_a_factor_of_the_rate_is_a_number_above_0(base, tmp_path, name, value):
    rows = sky_rows(8)
    with pytest.raises(ConfigError, match=f"{name} is {value}; expected a factor of the rate above 0"):
        fit(base, train=rows, dev=rows, kind="classify", out=tmp_path / "run", args=TaskArgs(steps=1), **{name: value})


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("classify", {"text": "天", "score": 10**400}, "row 1: 'score' is 1000*; expected a finite number"),
        ("embed", {"a": "天", "b": "地", "score": 10**400}, "row 1: 'score' is '1000*'; expected a finite number"),
        ("classify", {"text": "天", "label": ""}, "row 1: a label is empty; expected a name"),
        ("classify", {"text": "天", "labels": []}, "row 1: no row has a label; expected a label"),
    ],
)
def test_a_row_that_cannot_be_learned_is_named(kind, row, message):
    with pytest.raises(DataError, match=message):
        prepare(TaskConfig(kind=kind), [row, row], [row])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 999}, "task.json: max_length is 999; the model knows 64 positions"),
        ({"head": "crf"}, "task.json: head is 'crf'; expected one of linear"),
        ({"score": {"name": "accuracy", "value": "x", "on": "dev"}}, "task.json: score is .* a number as its value"),
    ],
)
def test_a_changed_task_json_is_refused_by_its_name(base, tmp_path, change, message):
    rows = sky_rows(8)
    folder = fit(base, train=rows, dev=rows, kind="classify", out=tmp_path, args=TaskArgs(steps=1)).folder
    path = folder / "task.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **change}), "utf-8")
    with pytest.raises(ConfigError, match=message):
        hanmo.load(folder)


def test_pairs_are_read_by_a_model_of_one_segment(tmp_path):
    bert = load_model(model_folder(tmp_path / "bert"))
    config = replace(bert.config, nsp=False, encoder=replace(bert.config.main, segments=1))
    save(Model(config).initialize(0), tmp_path / "one", tokenizer=tokenizer_files(bert.path.parent))
    rows = pair_rows(24)
    args = TaskArgs(steps=2, batch=8)
    fitted = fit(tmp_path / "one", train=rows, dev=rows[:8], kind="classify", out=tmp_path / "run", args=args)
    found = hanmo.load(fitted.folder).predict([(row["a"], row["b"]) for row in rows[:2]])
    assert [set(each["probabilities"]) for each in found] == [{"earth", "sky"}] * 2
    with pytest.raises(ConfigError, match="mask is 'prefix' but segments is 1; the prefix is told by two segment ids"):
        fit(tmp_path / "one", train=question_rows(4), kind="read_seq2seq", out=tmp_path / "other", args=args)
