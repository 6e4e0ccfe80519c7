"""The plan says what torch keeps: shapes, state, activations and the peak of a step, and refuses in numbers."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from hanmo.checkpoint.inspect import inspect
from hanmo.config import ModelConfig
from hanmo.errors import ConfigError, MemoryPlanError
from hanmo.families import FAMILIES
from hanmo.model import Model
from hanmo.training import activations, args
from hanmo.training.activations import shapes
from hanmo.training.args import TrainArgs
from hanmo.training.lora import add_lora
from hanmo.training.loss import cross_entropy
from hanmo.training.memory import (
    choose,
    largest_batch,
    parse_size,
    plan,
    refuse_unless_fits,
    return_freed_memory,
    table,
)
from hanmo.training.optim.in_backward import UpdateInBackward
from hanmo.training.step import make_optimizer

GOLDENS = Path(__file__).parents[1] / "data" / "goldens"
KINDS = {
    "bert": "bert", "albert": "albert", "nezha": "nezha", "roformer": "roformer", "roformer_v2": "roformer_v2",
    "gpt": "gpt", "gpt2": "gpt2", "gpt2_ml": "gpt2_ml", "t5.1.0": "t5_1.0", "t5.1.1": "t5_1.1",
}  # fmt: skip
GIB = 2**30


def planned_as(**options) -> TrainArgs:
    """The arguments that a plan fills in, and others."""
    defaults = {"optimizer": "adafactor-gpt2-ml", "precision": "float32", "in_backward": True, "recompute": True}
    return TrainArgs(**{**defaults, "sequence": 1024, **options})


def config_of(family: str, **changes) -> ModelConfig:
    """A family's network, small but with room for what is counted."""
    data = json.loads((GOLDENS / KINDS[family] / "config.json").read_text("utf-8"))
    config = FAMILIES[family].tensorflow.config(data)
    sizes = {"hidden_size": 64, "num_heads": 4, "head_dim": 16, "key_dim": 16, "feed_forward": 256, "num_layers": 3}
    sizes |= {"dropout": 0.0, "attention_dropout": 0.0}
    if config.main.embedding_size == config.main.hidden_size:
        sizes["embedding_size"] = 64
    sides = {side: getattr(config, side) for side in ("encoder", "decoder") if getattr(config, side)}
    for side, stack in sides.items():
        positions = {} if stack.positions is None else {"positions": 256}
        sides[side] = replace(stack, **sizes | positions | (changes if stack is config.main else {}))
    return replace(config, vocab_size=500, output="mlm" if config.output == "mlm" else "lm", **sides)


def model_of(config: ModelConfig, choice: TrainArgs) -> Model:
    model = Model(config).initialize(0).train()
    for stack in (model.encoder, model.decoder):
        if stack is not None:
            stack.recompute = choice.recompute
    if choice.precision == "bfloat16":
        model.bfloat16()
    if choice.lora is not None:
        add_lora(model, choice.lora)
    return model


def loss_of(model: Model, choice: TrainArgs) -> torch.Tensor:
    ids = torch.randint(1, 500, (choice.batch, choice.sequence + 1))
    source = (
        {"source": torch.randint(1, 500, (choice.batch, choice.sequence))} if model.config.is_encoder_decoder else {}
    )
    if model.config.main.mask == "prefix":
        source["segments"] = torch.ones(choice.batch, choice.sequence, dtype=torch.long)
    if model.config.main.condition:
        source["condition"] = torch.randn(choice.batch, 6, dtype=model.token.weight.dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=choice.precision == "mixed"):
        hidden = model(ids[:, :-1], logits="none", **source).hidden
        return cross_entropy(
            model.logits, hidden, ids[:, 1:], vocab_size=500, chunk_bytes=activations.CHUNK_BYTES["cpu"]
        )


def kept(model: Model, choice: TrainArgs) -> int:
    """Bytes that autograd saves in a forward pass, parameters left out, each storage once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = loss_of(model, choice)
    assert found.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


def peak_of(step) -> int:
    """Most bytes that torch has allocated at once during a step, over what there was before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    events = found.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    assert len(changes) > 100
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


@pytest.mark.parametrize("family", sorted(KINDS))
@pytest.mark.parametrize("changes", [{}, {"condition": 6}, {"condition": 6, "condition_hidden": 3}])
def test_shapes_are_those_of_the_model(family, changes):
    config = config_of(family, **changes)
    with torch.device("meta"):
        model = Model(config)
    assert dict(shapes(config)) == {name: tuple(p.shape) for name, p in model.named_parameters()}


FAMILY_WAYS = [(family, {}) for family in sorted(KINDS)]
FAMILY_WAYS += [("bert", {"mask": "prefix"}), ("bert", {"dropout": 0.1}), ("gpt2", {"attention_dropout": 0.1})]
FAMILY_WAYS += [("gpt2_ml", {"dropout": 0.1}), ("bert", {"score_residual": "cumulative"}), ("gpt2", {"condition": 6})]
FAMILY_WAYS += [("gpt2", {"activation": name}) for name in ("relu", "softsign", "silu")]


@pytest.mark.parametrize(("family", "changes"), FAMILY_WAYS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_activations_are_within_a_tenth_of_what_autograd_saves(family, changes, precision):
    config, choice = (
        config_of(family, **changes),
        planned_as(precision=precision, recompute=False, sequence=128, batch=2),
    )
    measured = kept(model_of(config, choice), choice)
    assert plan(config, choice).activations == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("family", ["bert", "gpt", "gpt2", "gpt2_ml", "nezha"])
def test_activations_in_mixed_precision_are_within_a_tenth(family):
    config, choice = (
        config_of(family, dropout=0.1),
        planned_as(precision="mixed", recompute=False, sequence=128, batch=2),
    )
    assert plan(config, choice).activations == pytest.approx(kept(model_of(config, choice), choice), rel=0.1)


@pytest.mark.parametrize("family", ["albert", "bert", "gpt", "gpt2", "gpt2_ml", "roformer"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_activations_with_recomputation_are_within_a_tenth(family, precision):
    config, choice = config_of(family, dropout=0.1), planned_as(precision=precision, sequence=128, batch=2)
    assert plan(config, choice).activations == pytest.approx(kept(model_of(config, choice), choice), rel=0.1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_activations_beside_adapters_are_within_a_tenth(precision):
    config = config_of("gpt2_ml", dropout=0.1)
    choice = planned_as(precision=precision, recompute=False, sequence=128, batch=2, lora=8)
    model = model_of(config, choice)
    assert plan(config, choice).activations == pytest.approx(kept(model, choice), rel=0.1)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert plan(config, replace(choice, in_backward=False)).gradients == 4 * trained
    assert plan(config, choice).weights == sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.parametrize("optimizer", args.OPTIMIZERS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_static_bytes_are_those_of_weights_gradients_and_state(optimizer, precision):
    if optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    config = config_of("gpt2_ml", feed_forward=192)
    choice = planned_as(optimizer=optimizer, precision=precision, in_backward=False, recompute=False, sequence=8)
    model = model_of(config, choice)
    updates = make_optimizer(model, TrainArgs(optimizer=optimizer))
    torch.autograd.backward(loss_of(model, choice))
    updates.step()
    parts = getattr(updates, "parts", [updates])
    tensors = [t for part in parts for state in part.state.values() for t in state.values() if torch.is_tensor(t)]
    planned = plan(config, choice)
    assert planned.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    assert planned.gradients == sum(p.grad.numel() * p.grad.element_size() for p in model.parameters())
    # torch's own keep a counter of 4 bytes a parameter too.
    assert planned.optimizer == sum(t.numel() * t.element_size() for t in tensors if t.ndim or optimizer[:4] == "adaf")
    assert planned.static == planned.weights + planned.gradients + planned.optimizer


@pytest.mark.parametrize("optimizer", ["adafactor-gpt2-ml", "adamw"])
@pytest.mark.parametrize(("in_backward", "recompute"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "mixed"])
def test_the_peak_of_a_step_is_within_a_tenth(optimizer, in_backward, recompute, precision, monkeypatch):
    monkeypatch.setitem(activations.CHUNK_BYTES, "cpu", 1 << 18)  # so that the loss has two chunks
    config = config_of("gpt2_ml", hidden_size=192, head_dim=48, key_dim=48, feed_forward=768, embedding_size=192)
    choice = planned_as(
        optimizer=optimizer, precision=precision, in_backward=in_backward, recompute=recompute, sequence=192
    )
    model = model_of(config, choice)
    updates = make_optimizer(model, TrainArgs(optimizer=optimizer))
    applied = UpdateInBackward(updates) if in_backward else None

    def step() -> None:
        torch.autograd.backward(loss_of(model, choice))
        if applied is not None:
            applied.finish()
        else:
            updates.step()
            updates.zero_grad()

    step()
    planned = plan(config, choice)
    measured = planned.weights + planned.optimizer + peak_of(step)
    assert planned.peak == pytest.approx(measured, rel=0.1)
    assert planned.needed >= planned.peak


def test_a_plan_needs_no_torch():
    code = "import sys, hanmo.training.memory; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("optimizer", "memory", "wanted"),
    [
        ("adafactor-gpt2-ml", "22GiB", ("mixed", False)),
        ("adafactor-gpt2-ml", "10GiB", ("mixed", True)),
        ("adafactor-gpt2-ml", "4GiB", ("bfloat16", True)),
        ("adamw", "17.5GiB", ("float32", True)),
    ],
)
def test_mixed_precision_gives_way_where_it_does_not_fit(mega, optimizer, memory, wanted):
    args = TrainArgs(optimizer=optimizer, in_backward=True, sequence=1024)
    found = choose(mega, args, parse_size(memory), first="mixed").choice
    assert (found.precision, found.recompute) == wanted


@pytest.fixture(scope="module")
def mega(indexes) -> ModelConfig:
    return inspect(indexes / "mega-bert-tok-tf_model.ckpt-100000.index").found.config


@pytest.mark.parametrize(
    ("choice", "static"),
    [
        (planned_as(optimizer="adamw", in_backward=False), 20.77),
        (planned_as(optimizer="adamw"), 15.58),
        (planned_as(optimizer="adamw", in_backward=False, precision="bfloat16"), 10.39),
        (planned_as(in_backward=False), 10.39),
        (planned_as(), 5.20),
        (planned_as(precision="bfloat16"), 2.61),
    ],
)
def test_static_memory_of_the_published_checkpoint(mega, choice, static):
    assert plan(mega, choice).static / GIB == pytest.approx(static, abs=0.006)


def test_plain_adam_is_refused_for_the_published_checkpoint_in_numbers(mega):
    choice = planned_as(optimizer="adamw", in_backward=False, recompute=False)
    with pytest.raises(MemoryPlanError, match=r"20\.49 GiB are there.*gradients 5\.19 GiB, optimizer 10\.39 GiB"):
        refuse_unless_fits(plan(mega, replace(choice, recompute=True)), parse_size("22GB"))
    with pytest.raises(MemoryPlanError, match=r"22\.00 GiB are there.*; apply gradients in the backward pass, or rec"):
        refuse_unless_fits(plan(mega, choice), parse_size("22GiB"))
    refuse_unless_fits(plan(mega, planned_as()), parse_size("8GiB"))
    refuse_unless_fits(plan(mega, planned_as(precision="bfloat16")), parse_size("4.5GiB"))


def test_the_table_holds_every_way_and_the_largest_batch_just_fits(mega):
    rows = table(mega, planned_as(sequence=512))
    assert len({row.choice.describe() for row in rows}) == len(rows) == 24
    there = parse_size("8GiB")
    most = largest_batch(mega, planned_as(sequence=512), there)
    assert most > 1
    assert plan(mega, planned_as(sequence=512, batch=most)).needed <= there
    assert plan(mega, planned_as(sequence=512, batch=most + 1)).needed > there
    assert largest_batch(mega, planned_as(sequence=512), parse_size("1GiB")) == 0


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("22GiB", 22 * GIB),
        ("22GB", 22 * 10**9),
        ("24G", 24 * 10**9),
        ("512 mib", 512 << 20),
        ("1.5GiB", 3 << 29),
        ("4096", 4096),
        ("1TB", 10**12),
    ],
)
def test_sizes_are_read_in_every_usual_spelling(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "GiB", "22 cows", "-1G", "22Bi", "9" * 400])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="expected a size such as 22GiB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"optimizer": "adam"}, "optimizer is 'adam'; expected one of adamw"),
        ({"precision": "float16"}, "precision is 'float16'"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"sequence": 0}, "sequence is 0"),
        ({"batch": -1}, "batch is -1"),
        ({"lora": 0}, "lora is 0"),
    ],
)
def test_choices_that_there_are_not_are_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        TrainArgs(**options)


@pytest.mark.slow
def test_freed_blocks_go_back_to_the_system():
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("resident memory is read from /proc")
    code = (
        "import sys, torch; from hanmo.training.memory import return_freed_memory\n"
        "def rss(): return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmRSS'))\n"
        "if sys.argv[1] == 'yes': return_freed_memory()\n"
        "before = rss()\n"
        "for _ in range(4):\n"
        "    pairs = [(torch.ones(1 << 21), torch.ones(15000)) for _ in range(16)]\n"
        "    small = [pair[1] for pair in pairs]\n"
        "    del pairs\n"
        "print(rss() - before)"
    )
    held = {}
    for asked in ("yes", "no"):
        found = subprocess.run([sys.executable, "-c", code, asked], check=True, capture_output=True, timeout=120)
        held[asked] = int(found.stdout)
    assert held["yes"] < 20_000
    assert held["no"] > 2 * held["yes"]
    return_freed_memory()  # is harmless here, and done twice
