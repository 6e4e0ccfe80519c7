"""Step wrappers: each against plain formulas, in the loop with all its arguments, and what is refused."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from toy_pairs import question_rows, similar_rows
from toy_relations import event_rows, nested_rows, relation_rows
from toy_tasks import entity_rows, key_rows, model_folder, number_rows, sky_rows

import hanmo
from hanmo.errors import ConfigError, DataError
from hanmo.model import Model
from hanmo.model_pipeline import ModelPipeline
from hanmo.tasks import TaskArgs, TaskConfig, fit
from hanmo.tasks.adversarial import Fgm, GradientPenalty, Pgd, Vat
from hanmo.tasks.finetune import prepare
from hanmo.tasks.network import build
from hanmo.tasks.regularize import Focal, RDrop
from hanmo.tasks.steps import task_loss
from hanmo.tasks.table import make_task
from hanmo.tasks.task import TaskNetwork
from hanmo.tasks.wrappers import WRAPPERS, make_wrapper, wrapped
from hanmo.training.step import Updates

ROWS, DEV = sky_rows(48), sky_rows(24, seed=1)
TEXTS = [row["text"] for row in sky_rows(20, seed=2)]
KINDS = {
    "classify": (TaskConfig(kind="classify"), sky_rows),
    "several labels": (TaskConfig(kind="classify"), key_rows),
    "regression": (TaskConfig(kind="classify"), number_rows),
    "tag": (TaskConfig(kind="tag"), entity_rows),
    "spans": (TaskConfig(kind="spans"), nested_rows),
    "relations": (TaskConfig(kind="relate"), relation_rows),
    "relations by CasRel": (TaskConfig(kind="relate", head="casrel"), relation_rows),
    "events": (TaskConfig(kind="events"), event_rows),
    "few": (TaskConfig(kind="few", options={"words": {"sky": "天", "earth": "地"}}), sky_rows),
    "embed": (TaskConfig(kind="embed"), similar_rows),
    "read": (TaskConfig(kind="read"), question_rows),
    "read by masks": (TaskConfig(kind="read_mlm", options={"max_answer": 3}), question_rows),
    "read by UniLM": (TaskConfig(kind="read_seq2seq", options={"max_answer": 3}), question_rows),
}
TRICKS = {
    "fgm": Fgm(epsilon=0.1),
    "fgm and the plain loss": Fgm(epsilon=0.1, clean=1.0),
    "pgd": Pgd(epsilon=0.1, rate=0.06, steps=2),
    "gradient penalty": GradientPenalty(),
    "gradient penalty by occurrence": GradientPenalty(by_occurrence=True),
    "r-drop": RDrop(),
    "vat": Vat(TEXTS, batch=4, epsilon=0.1),
    "focal": Focal(),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("base") / "model")


def with_dropout(base) -> ModelPipeline:
    """Open a model that has dropout."""
    loaded = hanmo.load(base)
    main = replace(loaded.config.encoder, dropout=0.2, attention_dropout=0.2)
    model = Model(replace(loaded.config, encoder=main))
    model.load_state_dict(loaded.model.state_dict())
    return ModelPipeline(model.config, model, loaded.tokenizer, loaded.report, loaded.path)


def network_and_batch(loaded, rows=None, *, kind="classify", count=6) -> tuple[TaskNetwork, dict[str, torch.Tensor]]:
    config, make_rows = KINDS[kind]
    rows = rows or make_rows(48)
    data = prepare(replace(config, max_length=64), rows, rows)
    task = make_task(data.config, loaded.tokenizer)
    arrays = task.collate([(e, w) for row in data.train[:count] for e in [task.encode(row)] for w in e.windows])
    network = build(loaded.model, task, seed=3).train()
    return network, {name: torch.from_numpy(array) for name, array in arrays.items()}


def gradients(network, loss, batch):
    for parameter in network.parameters():
        parameter.grad = None
    value = loss(network, batch)
    value.backward()
    return float(value.detach()), {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def moved(network, delta):
    """Copy a network and add to its table of token vectors."""
    copied = copy.deepcopy(network)
    with torch.no_grad():
        copied.backbone.token.weight += delta
    return copied


def assert_equal_gradients(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in found[1].items():
        torch.testing.assert_close(gradient, expected[1][name], rtol=1e-4, atol=1e-6)


def test_fgm_is_the_gradient_at_the_moved_table(base):
    network, batch = network_and_batch(hanmo.load(base))
    table = gradients(network, task_loss, batch)[1]["backbone.token.weight"]
    expected = gradients(moved(network, 0.7 * table / table.norm()), task_loss, batch)
    before = network.backbone.token.weight.detach().clone()
    found = gradients(network, Fgm(epsilon=0.7)(task_loss, network), batch)
    assert_equal_gradients(found, expected)
    assert torch.equal(network.backbone.token.weight, before)
    assert found[0] > gradients(network, task_loss, batch)[0]


def test_pgd_is_projected_gradient_ascent(base):
    network, batch = network_and_batch(hanmo.load(base))
    delta, outside = torch.zeros_like(network.backbone.token.weight), 0
    for _ in range(4):
        table = gradients(moved(network, delta), task_loss, batch)[1]["backbone.token.weight"]
        delta = delta + 0.3 * table / table.norm()
        if delta.norm() > 0.5:
            delta, outside = 0.5 * delta / delta.norm(), outside + 1
    assert outside >= 2
    expected = gradients(moved(network, delta), task_loss, batch)
    assert_equal_gradients(gradients(network, Pgd(epsilon=0.5, rate=0.3, steps=4)(task_loss, network), batch), expected)


def test_the_plain_loss_can_be_added_to_an_adversarial_one(base):
    network, batch = network_and_batch(hanmo.load(base))
    plain, adversarial = (gradients(network, loss, batch) for loss in (task_loss, Fgm()(task_loss, network)))
    both = gradients(network, Fgm(clean=2.0)(task_loss, network), batch)
    assert both[0] == pytest.approx(2 * plain[0] + adversarial[0], rel=1e-6)
    for name in both[1]:
        torch.testing.assert_close(both[1][name], 2 * plain[1][name] + adversarial[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "roformer", "nezha", "albert"])
def test_the_penalty_has_the_gradient_of_finite_differences(tmp_path, family):
    network, batch = network_and_batch(hanmo.load(model_folder(tmp_path / family, family=family)))
    network.double()
    loss = GradientPenalty(epsilon=2.0)(task_loss64, network)
    value, found = gradients(network, loss, batch)
    table = gradients(network, task_loss64, batch)[1]["backbone.token.weight"]
    assert value == pytest.approx(float(task_loss64(network, batch).detach()) + float((table**2).sum()), rel=1e-10)
    generator = torch.Generator().manual_seed(0)
    ways = {n: torch.randn(p.shape, dtype=p.dtype, generator=generator) for n, p in network.named_parameters()}
    step, around = 1e-5, []
    for sign in (step, -2 * step):
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter += sign * ways[name]
        around.append(float(loss(network, batch).detach()))
    slope = sum(float((found[name] * ways[name]).sum()) for name in found)
    assert (around[0] - around[1]) / (2 * step) == pytest.approx(slope, rel=1e-5)


def task_loss64(network, batch):
    """Compute the loss of single labels in the network's dtype."""
    return F.cross_entropy(network(batch), batch["label"])


def test_a_penalty_by_occurrence_differs_where_a_token_repeats(base):
    network, batch = network_and_batch(hanmo.load(base))
    once, by_occurrence = (
        gradients(network, GradientPenalty(by_occurrence=each)(task_loss, network), batch)[0] for each in (False, True)
    )
    assert once != pytest.approx(by_occurrence, rel=1e-3)
    rows = [{"text": "天地玄黄", "label": "sky"}, *ROWS]  # one row, in which each token is there once
    network, batch = network_and_batch(hanmo.load(base), rows, count=1)
    once, by_occurrence = (
        gradients(network, GradientPenalty(by_occurrence=each)(task_loss, network), batch)[0] for each in (False, True)
    )
    assert once == pytest.approx(by_occurrence, rel=1e-6)


@pytest.mark.parametrize("kind", list(KINDS)[:4])
def test_r_drop_is_its_formula(base, kind):
    network, batch = network_and_batch(with_dropout(base), kind=kind)
    torch.manual_seed(5)
    found = float(RDrop(alpha=3.0)(task_loss, network)(network, batch).detach())
    torch.manual_seed(5)
    with torch.no_grad():
        outputs = [network(batch) for _ in range(2)]
        losses = [network.task.losses(each, batch) for each in outputs]
    if kind == "tag":
        outputs = [each.scores for each in outputs]
    one, two = (each.double().numpy() for each in outputs)
    if kind == "several labels":
        p, q = 1 / (1 + np.exp(-one)), 1 / (1 + np.exp(-two))
        apart = ((p - q) * np.log(p / q) + (q - p) * np.log((1 - p) / (1 - q))).sum(-1)
    elif kind == "regression":
        apart = ((one - two) ** 2).sum(-1)
    else:
        p, q = (np.exp(each) / np.exp(each).sum(-1, keepdims=True) for each in (one, two))
        apart = ((p - q) * np.log(p / q)).sum(-1)
    if kind == "tag":
        mask = batch["mask"].numpy()
        apart = (apart * mask).sum(1) / mask.sum(1)
    weight = batch["weight"].numpy()
    both = (losses[0] + losses[1]).numpy() / 2 + 3 / 4 * apart
    assert apart.min() > 0
    assert found == pytest.approx((both * weight).sum() / weight.sum(), rel=1e-5)


def test_focal_loss_is_its_formula_with_class_weights(base):
    network, batch = network_and_batch(hanmo.load(base))
    batch["weight"] = torch.tensor([1.0, 3.0, 1.0, 3.0, 0.5, 1.0])
    right = network(batch).softmax(-1).gather(1, batch["label"][:, None])[:, 0].double()
    expected = (batch["weight"] * (1 - right) ** 1.5 * -right.log()).sum() / batch["weight"].sum()
    found = Focal(gamma=1.5)(task_loss, network)(network, batch)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_loss_of_0_has_a_focal_gradient(base):
    network, batch = network_and_batch(hanmo.load(base))
    with torch.no_grad():
        network.head.linear.bias += 200.0 * (2 * batch["label"][0] - 1) * torch.tensor([-1.0, 1.0])
    _, found = gradients(network, Focal(gamma=0.5)(task_loss, network), batch)
    assert all(torch.isfinite(gradient).all() for gradient in found.values())


def test_vat_adds_the_divergence_of_unlabeled_texts(base):
    network, batch = network_and_batch(hanmo.load(base))
    wrapped_loss = Vat(TEXTS, batch=5, weight=2.0)(task_loss, network)
    torch.manual_seed(4)
    found = gradients(network, wrapped_loss, batch)
    torch.manual_seed(4)
    places = torch.randint(len(TEXTS), (5,)).tolist()
    noise = torch.randn_like(network.backbone.token.weight)
    rows = [{"text": TEXTS[place], "label": "sky"} for place in places]
    _, drawn = network_and_batch(hanmo.load(base), rows + ROWS, count=5)
    target = network(drawn).softmax(-1).detach()

    def apart(network, batch):
        return F.kl_div(network(batch).log_softmax(-1), target, reduction="batchmean")

    way = gradients(moved(network, 10 * noise / noise.norm()), apart, drawn)[1]["backbone.token.weight"]
    far = moved(network, way / way.norm())
    expected = float((task_loss(network, batch) + 2 * apart(far, drawn)).detach())
    assert found[0] == pytest.approx(expected, rel=1e-5)
    plain, unlabeled = gradients(network, task_loss, batch)[1], gradients(far, apart, drawn)[1]
    for name, gradient in found[1].items():
        torch.testing.assert_close(gradient, plain[name] + 2 * unlabeled[name], rtol=1e-3, atol=1e-5)


# In the loop


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_takes_every_trick(base, kind, trick):
    network, batch = network_and_batch(with_dropout(base), kind=kind)
    torch.manual_seed(1)
    plain = gradients(network, task_loss, batch)
    torch.manual_seed(1)
    chosen = TRICKS[trick]
    if trick == "vat":
        chosen = Vat(KINDS[kind][1](20, seed=2), batch=4, epsilon=0.1)
        if kind == "read by UniLM":
            with pytest.raises(ConfigError, match="kind 'read_seq2seq' computes its outputs from 'answer' of labelled"):
                wrapped(task_loss, network, chosen, TaskArgs())
            return
    value, found = gradients(network, wrapped(task_loss, network, chosen, TaskArgs()), batch)
    assert np.isfinite(value)
    if trick != "focal" or plain[0] < 10:  # the factor is 1 where the loss of a window is large
        assert value != plain[0]
    assert found.keys() == plain[1].keys()
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    assert network.training and not network._forward_hooks and not network.backbone.token._forward_hooks


@pytest.mark.parametrize("trick", [name for name in TRICKS if name not in ("vat", "r-drop")])
def test_mixed_precision_gives_the_gradient_up_to_its_rounding(base, trick):
    network, batch = network_and_batch(hanmo.load(base))
    loss = TRICKS[trick](task_loss, network)
    expected = gradients(network, loss, batch)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(network, batch)
    for parameter in network.parameters():
        parameter.grad = None
    value.backward()
    found = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    exact = torch.cat([gradient.flatten() for gradient in expected[1].values()])
    assert float(value.detach()) == pytest.approx(expected[0], rel=0.05)
    assert F.cosine_similarity(found, exact, dim=0) > 0.98


def test_predictions_without_a_gradient_leave_the_weights_theirs_in_mixed_precision(base):
    network, batch = network_and_batch(hanmo.load(base))
    with torch.autocast("cpu", torch.bfloat16):
        Vat(TEXTS, batch=4)(task_loss, network)(network, batch).backward()
    missing = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in missing if "weight" in name] == []


@pytest.mark.parametrize("trick", [name for name in TRICKS if name not in ("vat", "r-drop")])
def test_update_in_backward_equals_whole_gradients(base, trick):
    tables = []
    for in_backward in (False, True):
        network, batch = network_and_batch(hanmo.load(base))
        args = TaskArgs(steps=1, lr=0.1, warmup=0, clip=None, in_backward=in_backward).for_loop()
        loss = wrapped(task_loss, network, TRICKS[trick], args)
        updates = Updates(network, args, loss, lambda net: torch.optim.SGD(net.parameters(), lr=0.1))
        updates.make(batch, 0, 1)
        tables.append({name: p.detach().clone() for name, p in network.named_parameters()})
    for name, weight in tables[0].items():
        torch.testing.assert_close(weight, tables[1][name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("trick", "lora"),
    [
        ("fgm", None),
        ("vat", 4),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("fgm", 4), ("vat", None), ("r-drop", None))),
        ("r-drop", 4),
    ],
)
def test_a_resumed_run_equals_one_that_was_not_stopped(base, tmp_path, trick, lora):
    loaded = with_dropout(base)

    def run(name, steps, **options):
        args = TaskArgs(
            batch=8, steps=steps, lr=2e-3, accumulate=2, lora=lora, schedule="constant", warmup=0, evaluate_every=100
        )
        fitted = fit(
            loaded, train=ROWS, dev=DEV, kind="classify", out=tmp_path / name, args=args, wrap=TRICKS[trick], **options
        )
        return hanmo.load(fitted.folder).predict(TEXTS[:3])

    whole = run("whole", 8)
    run("parts", 3)
    assert run("parts", 8, resume=True) == whole


def test_wrappers_are_given_by_name_and_nested_in_order(base, tmp_path):
    loaded, records = with_dropout(base), []
    for wrap in ("fgm", ["focal", "r_drop", Fgm()], ["focal", lambda loss, network: lambda n, b: 2 * loss(n, b)]):
        out, args = tmp_path / str(len(records)), TaskArgs(batch=16, steps=2, log_every=1, lr=1e-3)
        fit(loaded, train=ROWS, dev=DEV, kind="classify", out=out, args=args, wrap=wrap)
        records.append(json.loads((out / "log.jsonl").read_text("utf-8").splitlines()[1])["loss"])
    assert len({round(loss, 4) for loss in records}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("trick", TRICKS)
def test_the_rule_is_learned_with_every_trick(base, tmp_path, trick):
    loaded = with_dropout(base) if trick == "r-drop" else base
    train, dev, config = sky_rows(400), sky_rows(60, seed=1), TaskConfig(kind="classify", pooling="mean")
    args = TaskArgs(batch=16, epochs=6, lr=2e-3)
    fitted = fit(loaded, train=train, dev=dev, config=config, out=tmp_path / "run", args=args, wrap=TRICKS[trick])
    assert fitted.score.value >= 0.95


# What is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_wrapper("fmg"), "wrap is 'fmg'; expected one of fgm, pgd"),
        (lambda: make_wrapper("fgm", rate=1), "wrap 'fgm': got an unexpected keyword argument 'rate'"),
        (lambda: make_wrapper("vat"), "wrap 'vat': missing a required argument: 'unlabeled'"),
        (lambda: Fgm(epsilon=0), "epsilon is 0; expected above 0 and a finite number"),
        (lambda: Fgm(clean=-1), "clean is -1; expected above 0"),
        (lambda: Fgm(epsilon="big"), "epsilon is 'big'; expected above 0 and a finite number"),
        (lambda: Pgd(steps=1.5), "steps is 1.5"),
        (lambda: Pgd(steps=0), "steps is 0; expected"),
        (lambda: GradientPenalty(epsilon=-1), "epsilon is -1"),
        (lambda: RDrop(alpha=0), "alpha is 0"),
        (lambda: Focal(gamma=0), "gamma is 0"),
        (lambda: Vat(TEXTS, weight=0), "weight is 0"),
    ],
)
def test_wrong_options_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_every_wrapper_has_a_name():
    assert {type(trick) for trick in TRICKS.values()} <= set(WRAPPERS.values())


def test_texts_without_labels_are_checked(tmp_path):
    with pytest.raises(DataError, match="unlabeled has no texts"):
        Vat([])
    (tmp_path / "texts.jsonl").write_text('{"text": "天"}\n{"txt": "地"}\n', "utf-8")
    loaded = hanmo.load(model_folder(tmp_path / "model"))
    network, _ = network_and_batch(loaded)
    with pytest.raises(DataError, match=r"texts.jsonl:2: 'text' is missing"):
        Vat(tmp_path / "texts.jsonl")(task_loss, network)


@pytest.mark.parametrize(
    ("wrap", "changes", "message"),
    [
        ("fgm", {"compile": True}, "compile=True and Fgm exclude each other"),
        ("gradient_penalty", {"recompute": True}, "recompute=True and a gradient penalty exclude each other"),
        (["fgm", "focal"], {}, "focal loss changes the loss of the task itself; name it first"),
        ("r_drop", {}, "the model has no dropout"),
    ],
)
def test_what_excludes_a_wrapper_is_refused(base, tmp_path, wrap, changes, message):
    args = TaskArgs(batch=16, steps=1, **changes)
    with pytest.raises(ConfigError, match=message):
        fit(base, train=ROWS, dev=DEV, kind="classify", out=tmp_path / "run", args=args, wrap=wrap)


@pytest.mark.parametrize("trick", ["fgm", "pgd", "gradient penalty", "vat"])
def test_a_moved_table_is_refused_in_several_processes(monkeypatch, trick):
    monkeypatch.setattr("hanmo.training.distributed.world", lambda: 2)
    with pytest.raises(ConfigError, match="adversarial training runs in one process, not 2"):
        TRICKS[trick].check(TaskArgs())


def test_blocks_are_recomputed_under_a_moved_table(base):
    found = []
    for recompute in (False, True):
        network, batch = network_and_batch(hanmo.load(base))
        network.backbone.main.recompute = recompute
        found.append(gradients(network, Pgd()(task_loss, network), batch))
    assert_equal_gradients(*found)
