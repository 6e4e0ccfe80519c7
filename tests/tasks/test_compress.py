"""Smaller networks: blocks of another model, distillation by its formula, and blocks trained in a teacher's place."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_pairs import similar_rows
from toy_relations import relation_rows
from toy_tasks import entity_rows, key_rows, model_folder, sky_rows

import hanmo
from hanmo.errors import ConfigError
from hanmo.model import Model
from hanmo.model_pipeline import ModelPipeline
from hanmo.tasks import TaskArgs, TaskConfig, fit
from hanmo.tasks.compress import Distill, Theseus, fewer_blocks
from hanmo.tasks.network import build
from hanmo.tasks.rows import Row
from hanmo.tasks.steps import task_loss
from hanmo.tasks.table import make_task

ROWS, DEV = sky_rows(400), sky_rows(40, seed=1)
BY_MEAN = TaskConfig(kind="classify", pooling="mean")


def train(model, out, rows=ROWS, dev=DEV, config=BY_MEAN, **options):
    args = TaskArgs(batch=16, epochs=options.pop("epochs", 6), lr=2e-3)
    return fit(model, train=rows, dev=dev, config=config, out=out, args=args, **options)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def teacher(base, tmp_path_factory):
    return hanmo.load(train(base, tmp_path_factory.mktemp("teacher") / "run").folder)


def student_and_batch(teacher, blocks=1):
    task = make_task(replace(teacher.task.config, score=None), teacher.tokenizer)
    network = build(fewer_blocks(teacher, blocks).model, task, seed=1).train()
    arrays = task.collate([(e := task.encode(Row("", row)), e.windows[0]) for row in DEV[:6]])
    return network, {name: torch.from_numpy(array) for name, array in arrays.items()}


# Fewer blocks


@pytest.mark.parametrize(("blocks", "numbers"), [(1, [0]), ([1], [1]), ([1, 0], [1, 0]), (2, [0, 1])])
def test_a_smaller_model_has_the_chosen_blocks(teacher, blocks, numbers):
    smaller = fewer_blocks(teacher, blocks)
    assert smaller.config.main.num_layers == len(smaller.model.main.blocks) == len(numbers)
    ids = torch.tensor([[2, 7, 8, 9, 3]])
    stack = teacher.model.main
    x = teacher.model.vectors(stack, ids, None)
    with torch.no_grad():
        from array_api_compat import torch as xp

        from hanmo.nn.position import Tokens

        tokens = Tokens().append("full", x, xp, segments=None, mask=None, positions=None)
        inputs = {"attention": stack.attention_inputs(tokens, 5)}
        x = stack.embedding(x, tokens.positions, None, None)
        for number in numbers:
            x, _ = stack.blocks[number](x, inputs)
        torch.testing.assert_close(smaller.model(ids).hidden, x)


def test_shared_blocks_are_computed_fewer_times(tmp_path):
    loaded = hanmo.load(model_folder(tmp_path / "albert", family="albert"))
    assert fewer_blocks(loaded, 1).model(torch.tensor([[2, 7, 3]])).hidden.shape == (1, 3, 32)


@pytest.mark.parametrize("blocks", [0, 3, [2], []])
def test_blocks_that_are_not_there_are_refused(teacher, blocks):
    with pytest.raises(ConfigError, match="expected some of the model's 2, counted from 0"):
        fewer_blocks(teacher, blocks)


# Distillation


def test_distillation_is_its_formula(teacher):
    network, batch = student_and_batch(teacher)
    batch["weight"] = torch.tensor([1.0, 0.5, 1.0, 2.0, 1.0, 1.0])
    found = float(Distill(teacher, temperature=3.0, weight=0.3)(task_loss, network)(network, batch).detach())
    with torch.no_grad():
        logits = [each(batch).double().numpy() / 3 for each in (teacher.network, network)]
        plain = float(task_loss(network, batch))
    q, p = (np.exp(each) / np.exp(each).sum(-1, keepdims=True) for each in logits)
    apart, weight = (q * np.log(q / p)).sum(-1), batch["weight"].numpy()
    assert found == pytest.approx(0.7 * plain + 0.3 * 9 * (apart * weight).sum() / weight.sum(), rel=1e-5)


@pytest.mark.slow
def test_the_teacher_s_probabilities_alone_teach_a_student(base, teacher, tmp_path):
    fitted = train(fewer_blocks(hanmo.load(base), 1), tmp_path / "student", wrap=Distill(teacher, weight=1.0))
    assert fitted.score.value >= 0.9
    assert hanmo.load(fitted.folder).config.main.num_layers == 1


@pytest.mark.parametrize("kind", ["tag", "classify"])
def test_other_kinds_are_distilled_from_a_folder(tmp_path, kind):
    rows = (entity_rows if kind == "tag" else key_rows)(40)
    options = {"rows": rows, "dev": rows, "config": TaskConfig(kind=kind), "epochs": 1}
    first = train(model_folder(tmp_path / "model"), tmp_path / "teacher", **options)
    small = fewer_blocks(hanmo.load(first.folder), 1)
    assert train(small, tmp_path / "student", wrap=Distill(tmp_path / "teacher"), **options).steps == 3


# Theseus


def test_theseus_computes_the_teacher_or_the_student_or_a_mixture(teacher):
    network, batch = student_and_batch(teacher)
    other = build(teacher.model, network.task, seed=1).train()
    other.head.load_state_dict(teacher.network.head.state_dict())
    with torch.no_grad():
        for parameter in network.backbone.main.parameters():
            parameter.mul_(1.5)
        loss = Theseus(teacher)(task_loss, network)
        seen = {round(float(loss(network, batch)), 6) for _ in range(60)}
        network.eval()
        own = {round(float(task_loss(network, batch)), 6) for _ in range(5)}
        assert len(own) == 1
        assert len(seen) == 4 and own < seen  # two draws: embeddings, and one block
        assert round(float(task_loss(other, batch)), 6) in seen


def test_theseus_trains_neither_head_nor_teacher(teacher):
    network, batch = student_and_batch(teacher)
    before = [parameter.clone() for parameter in teacher.network.parameters()]
    loss = Theseus(teacher, rate=1.0)(task_loss, network)
    loss(network, batch).backward()
    trained = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert trained and not [name for name in trained if name.startswith(("head", "backbone.pooler"))]
    assert all(torch.equal(*pair) for pair in zip(before, teacher.network.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in teacher.network.parameters())
    assert torch.equal(network.head.linear.weight, teacher.network.head.linear.weight)


@pytest.mark.slow
def test_theseus_gives_a_folder_to_train_on_and_to_load(teacher, tmp_path):
    first = train(fewer_blocks(teacher, 1), tmp_path / "theseus", wrap=Theseus(teacher))
    loaded = hanmo.load(first.folder)
    assert loaded.config.main.num_layers == 1
    assert first.score.value == loaded.evaluate(DEV)["accuracy"] >= 0.75
    assert train(tmp_path / "theseus", tmp_path / "small").score.value >= 0.9


def test_a_gradient_reaches_blocks_below_the_teacher_s(teacher):
    network, batch = student_and_batch(teacher, blocks=2)
    trick = Theseus(teacher)
    draws = iter([False, False, True])  # embeddings and the first block are the student's, the second the teacher's
    trick._teachers = lambda module: next(draws)
    trick(task_loss, network)(network, batch).backward()
    main = network.backbone.main
    assert main.blocks[0].feed_forward.input.weight.grad.abs().sum() > 0
    assert main.blocks[1].feed_forward.input.weight.grad.abs().sum() == 0


# What is refused


def test_a_teacher_of_another_task_is_refused(teacher, tmp_path):
    small, rows = fewer_blocks(teacher, 1), [row | {"label": f"{row['label']}!"} for row in ROWS[:32]]
    for wrap in (Distill(teacher), Theseus(teacher)):
        with pytest.raises(ConfigError, match=r"labels of the teacher .* is \('earth', 'sky'\); expected"):
            train(small, tmp_path / "run", rows, rows, wrap=wrap)
    spans, config = entity_rows(32), TaskConfig(kind="tag")
    with pytest.raises(ConfigError, match=r"kind of the teacher .* is classify; expected the student's tag"):
        train(small, tmp_path / "run", spans, spans, config, wrap=Distill(teacher))
    with pytest.raises(ConfigError, match=r"pooling of the teacher .* is mean; expected the student's first"):
        train(small, tmp_path / "run", config=replace(BY_MEAN, pooling="first"), wrap=Theseus(teacher))


def test_a_student_that_does_not_fit_its_teacher_is_refused(teacher, tmp_path):
    with pytest.raises(ConfigError, match="the student has 3 blocks and the teacher 2"):
        train(fewer_blocks(teacher, [0, 1, 1]), tmp_path / "run", wrap=Theseus(teacher))
    with pytest.raises(ConfigError, match="blocks that share no weights"):
        train(model_folder(tmp_path / "albert", family="albert"), tmp_path / "run", wrap=Theseus(teacher))
    other = Model(replace(teacher.config, vocab_size=99)).initialize()
    loaded = ModelPipeline(other.config, other, teacher.tokenizer, teacher.report, teacher.path)
    with pytest.raises(ConfigError, match="has 77 tokens; expected the student's vocabulary of 99"):
        train(loaded, tmp_path / "run", wrap=Distill(teacher))


def test_a_teacher_of_other_outputs_is_refused(base, tmp_path):
    rows = similar_rows(8)
    config = TaskConfig(kind="embed", pooling="mean", form="cosent")
    teacher = hanmo.load(train(base, tmp_path / "embed", rows, rows, config, epochs=1).folder)
    teacher.whiten([row["a"] for row in similar_rows(40)], size=5)
    message = (
        r"the outputs of the teacher .* are \[\(8, 2, 5\)\], the student's \[\(8, 2, 32\)\]; give both the same head"
    )
    with pytest.raises(ConfigError, match=message):
        train(base, tmp_path / "student", rows, rows, config, wrap=Distill(teacher))
    rows = relation_rows(8)
    heads = [TaskConfig(kind="relate", head=head) for head in ("casrel", "gplinker")]
    folder = train(base, tmp_path / "casrel", rows, rows, heads[0], epochs=1).folder
    with pytest.raises(ConfigError, match=r"the outputs of the teacher .* give both the same head and size of vectors"):
        train(base, tmp_path / "gplinker", rows, rows, heads[1], wrap=Distill(folder))


def test_theseus_is_refused_in_several_processes(teacher, monkeypatch):
    monkeypatch.setattr("hanmo.training.distributed.world", lambda: 2)
    with pytest.raises(ConfigError, match="Theseus runs in one process, not 2; start it without torchrun"):
        Theseus(teacher).check(TaskArgs())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda teacher: Distill(teacher, temperature=0), "temperature is 0"),
        (lambda teacher: Distill(teacher, weight=2), "weight is 2; expected above 0 and at most 1"),
        (lambda teacher: Theseus(teacher, rate=0), "rate is 0; expected above 0 and at most 1"),
    ],
)
def test_wrong_options_are_named(teacher, make, message):
    with pytest.raises(ConfigError, match=message):
        make(teacher)
