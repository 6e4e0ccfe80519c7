"""The loop: loss falls, runs resume to the bit, signals save, the time ends the schedule."""

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hanmo.checkpoint.save import save
from hanmo.config import ModelConfig
from hanmo.errors import (
    CheckpointError,
    ConfigError,
    CorruptFile,
    DataError,
    MissingFile,
    TensorMismatch,
    TrainingError,
)
from hanmo.families import FAMILIES
from hanmo.loading import load
from hanmo.model import Model
from hanmo.training import Settings, loop
from hanmo.training.checkpoints import fill_from, locked, newest, read_state, save_checkpoint
from hanmo.training.data.stream import count_predicted, cut
from hanmo.training.loop import Outcome, fit
from hanmo.training.loss import next_token_loss, targets_loss
from hanmo.training.step import make_optimizer, multiplier, scale_outputs

VOCAB = 40


class Counting:
    """Batches whose next id is the last one plus one; (seed, epoch, step) decides all."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop

    def batches(self, epoch: int = 0, step: int = 0) -> Iterator[tuple[int, int, Any]]:
        while True:
            for number in range(step, 5):
                if self.stop is not None and (epoch, number) == (self.stop, 0):
                    raise OSError("the disk is gone")
                start = np.random.default_rng([epoch, number]).integers(VOCAB - 1, size=(4, 1))
                yield epoch, number, (start + np.arange(13)) % (VOCAB - 1) + 1
            epoch, step = epoch + 1, 0


def config(dropout: float = 0.1) -> ModelConfig:
    return FAMILIES["gpt2_ml"].tensorflow.config(
        {
            "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 64, "max_position_embeddings": 16, "hidden_act": "gelu",
            "hidden_dropout_prob": dropout,
        }
    )  # fmt: skip


def model(seed: int = 0) -> Model:
    return Model(config()).initialize(seed)


def settings(**changes: Any) -> Settings:
    base = Settings(steps=24, lr=3e-3, warmup=4, evaluate_every=7, save_every=5, log_every=3, average=0.9, seed=3)
    return replace(base, **changes)


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def records(out: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]
    for record in found:
        for name in ("seconds", "tokens_per_second"):
            record.pop(name, None)
    return found


def evaluate(model: Model) -> dict[str, float]:
    return {"bits_per_character": float(model.token.weight.detach().square().mean())}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    # Tiny matrices gain nothing from threads, and several on a busy machine wait for each other.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Killed(BaseException):
    pass


def test_loss_falls_by_half_on_a_task_that_can_be_learnt(tmp_path: Path) -> None:
    chosen = settings(steps=150, lr=1e-2, average=0.0, save_every=150)
    fit(Model(config(0.0)).initialize(0), Counting(), out=tmp_path, settings=chosen)
    losses = [record["loss"] for record in records(tmp_path) if "loss" in record]
    assert len(losses) == 50 and losses[-1] < losses[0] / 2


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor-gpt2-ml", "adafactor-bert4keras"])
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    chosen = settings(optimizer=optimizer)
    whole = model()
    outcome = fit(whole, Counting(), out=tmp_path / "whole", settings=chosen, evaluate=evaluate)
    assert outcome.steps == 24 and not outcome.stopped

    for attempt, death in enumerate((8, 13, 21)):
        last = newest(tmp_path / "cut", "last")
        left = death - (int(last.name.split("-")[1]) if last else 0)
        calls = iter(range(1, left + 1))

        def dying(model: Model, ids: torch.Tensor, calls: Iterator[int] = calls, left: int = left) -> torch.Tensor:
            if next(calls) == left:
                raise Killed
            return next_token_loss(model, ids)

        torch.manual_seed(attempt)  # a new process knows nothing of the old one's generators
        with pytest.raises(Killed):
            fit(
                model(attempt),
                Counting(),
                out=tmp_path / "cut",
                settings=chosen,
                evaluate=evaluate,
                resume=True,
                loss=dying,
            )
    resumed = model(9)
    fit(resumed, Counting(), out=tmp_path / "cut", settings=chosen, evaluate=evaluate, resume=True)

    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(resumed)[name]), name


def test_sigterm_saves_and_the_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole, cut = model(), model()
    fit(whole, Counting(), out=tmp_path / "whole", settings=settings())

    def asked(model: Model) -> dict[str, float]:
        if model.training and len(list((tmp_path / "cut").glob("last-*"))):
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(model)

    before = signal.getsignal(signal.SIGTERM)
    outcome = fit(cut, Counting(), out=tmp_path / "cut", settings=settings(), evaluate=asked)
    assert outcome.stopped and outcome.steps == 7 and signal.getsignal(signal.SIGTERM) is before
    fit(cut, Counting(), out=tmp_path / "cut", settings=settings(), evaluate=evaluate, resume=True)
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(cut)[name]), name


def test_one_last_and_one_best_checkpoint_remain_and_load_again(tmp_path: Path) -> None:
    extra = tmp_path / "vocab.txt"
    extra.write_text("[PAD]\n", "utf-8")
    trained = model()
    outcome = fit(
        trained, Counting(), out=tmp_path / "run", settings=settings(), evaluate=evaluate,
        sample=lambda _: "春眠不觉晓", beside=[extra],
    )  # fmt: skip
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["best", outcome.folder.name, "last-00000024", "log.jsonl", "samples.txt"]
    assert (tmp_path / "run" / "best").resolve() == outcome.folder
    last = tmp_path / "run" / "last-00000024"
    assert ModelConfig.from_json((last / "hanmo.json").read_text("utf-8")) == trained.config
    assert (last / "vocab.txt").read_bytes() == extra.read_bytes()
    again = model(1)
    fill_from(again, last)
    assert all(torch.equal(weight, weights(again)[name]) for name, weight in weights(trained).items())
    assert (tmp_path / "run" / "samples.txt").read_text("utf-8").count("春眠不觉晓") == 6  # 0, 7, 14, 21, 24, averaged


def test_average_is_evaluated_at_the_end_and_kept_if_better(tmp_path: Path) -> None:
    scores = iter([9.0, 8.0, 7.0, 6.0, 5.0, 4.0])
    trained = model()
    fit(trained, Counting(), out=tmp_path, settings=settings(), evaluate=lambda _: {"bits_per_character": next(scores)})
    assert [record["averaged"] for record in records(tmp_path) if "averaged" in record][-2:] == [False, True]
    best = model()
    fill_from(best, tmp_path / "best-00000024")
    assert not torch.equal(best.token.weight, trained.token.weight)


@pytest.mark.parametrize(("slower_from", "steps"), [(1000, 120), (60, 90)])
def test_minutes_fix_the_number_of_steps_and_the_schedule_ends_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slower_from: int, steps: int
) -> None:
    calls, seconds = 0, 0.0

    def timed(model: Model, ids: torch.Tensor) -> torch.Tensor:
        nonlocal calls, seconds
        calls += 1
        seconds += 1 / 64 if calls <= slower_from else 1 / 32
        return next_token_loss(model, ids)

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: seconds))
    chosen = settings(steps=None, minutes=120 / 64 / 60, log_every=10, save_every=1000)
    outcome = fit(model(), Counting(), out=tmp_path, settings=chosen, loss=timed)
    found = [record for record in records(tmp_path) if "loss" in record]
    assert outcome.steps == steps
    assert outcome.seconds == pytest.approx(120 / 64)
    assert found[-1]["lr"] < 0.2 * 3e-3


def test_a_gradient_that_is_not_finite_is_left_out_and_said(tmp_path: Path) -> None:
    calls = 0

    def broken(model: Model, ids: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return next_token_loss(model, ids) * (float("inf") if calls == 4 else 1.0)

    trained = model()
    fit(trained, Counting(), out=tmp_path, settings=settings(), loss=broken)
    assert records(tmp_path)[-1]["skipped"] == 1
    assert all(torch.isfinite(weight).all() for weight in weights(trained).values())


@pytest.mark.parametrize("save_every", [1000, 5])
def test_a_run_whose_loss_stays_nan_ends_with_one_error(tmp_path: Path, save_every: int) -> None:
    chosen = settings(optimizer="adafactor-gpt2-ml", in_backward=True, clip=None, lr=1e8, save_every=save_every)
    message = r"step \d+: the gradients of 10 updates in a row are inf or NaN.*learning rate below 1e\+08"
    with pytest.raises(TrainingError, match=message):
        fit(model(), Counting(), out=tmp_path, settings=chosen, evaluate=evaluate)
    kinds = {path.name.partition("-")[0] for path in tmp_path.iterdir() if path.is_dir()}
    assert kinds == ({"last", "best"} if save_every == 5 else set())


def test_a_run_that_fails_before_it_saves_leaves_no_best(tmp_path: Path) -> None:
    def failing(model: Model, ids: torch.Tensor) -> torch.Tensor:
        assert (tmp_path / "best-00000000").is_dir()
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        fit(model(), Counting(), out=tmp_path, settings=settings(), evaluate=evaluate, loss=failing)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("best")]


# Families whose query, key and value lie in one tensor, in every layout that is read.
@pytest.mark.parametrize(
    ("form", "family"), [("huggingface", "gpt2"), ("huggingface", "gpt"), ("tensorflow", "gpt2_openai")]
)
def test_fused_layouts_learn_with_the_losses_of_our_own_form(tmp_path: Path, form: str, family: str) -> None:
    sizes = {"vocab_size": VOCAB, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
    names = FAMILIES[family].huggingface or FAMILIES[family].tensorflow
    made = Model(names.config(sizes)).initialize(0)
    paths = [
        save(made, tmp_path / "own").path,
        save(made, tmp_path / "fused" / "model.ckpt", form=form, family=family).path,
    ]
    chosen = settings(optimizer="adafactor-gpt2-ml", in_backward=True, clip=None, log_every=1, save_every=24)
    losses = []
    for path in paths:
        out = tmp_path / f"run-{path.name}"
        fit(load(path).model, ragged(), out=out, settings=chosen)
        losses.append([record["loss"] for record in records(out) if "loss" in record])
    assert len(losses[0]) == 24 and losses[0][-1] < 0.9 * losses[0][0]
    # The same sums in another order of memory: a few units of float32's last place, carried through 24 updates.
    assert losses[1] == pytest.approx(losses[0], rel=24 * 8 * torch.finfo(torch.float32).eps)


def ragged() -> list[Any]:
    batches = [ids for (_, _, ids), _ in zip(Counting().batches(), range(5), strict=False)]
    for batch in batches:
        for row in range(len(batch)):
            batch[row, 4 + 3 * row :] = 0
    return batches


def test_ways_to_save_memory_change_no_loss(tmp_path: Path) -> None:
    base = settings(optimizer="adafactor-gpt2-ml", clip=None, log_every=1, steps=20, save_every=20)

    def losses(name: str, **changes: Any) -> list[float]:
        out = tmp_path / name
        fit(Model(config(0.0)).initialize(0), ragged(), out=out, settings=replace(base, **changes))
        return [record["loss"] for record in records(out) if "loss" in record]

    plain = losses("plain")
    assert len(plain) == 20
    for parts in (4, 3):
        assert losses(f"in {parts} parts", accumulate=parts) == pytest.approx(plain, abs=1e-5)
    for name in ("recompute", "in_backward"):
        assert losses(name, **{name: True}) == pytest.approx(plain, abs=2e-6), name


def test_batches_may_be_dicts_with_a_loss_of_ones_own(tmp_path: Path) -> None:
    dicts = [{"ids": ids[:, :-1], "targets": ids[:, 1:]} for ids in ragged()]
    chosen = settings(log_every=1, accumulate=2, save_every=24)
    fit(Model(config(0.0)).initialize(0), ragged(), out=tmp_path / "arrays", settings=chosen)
    fit(Model(config(0.0)).initialize(0), dicts, out=tmp_path / "dicts", settings=chosen, loss=targets_loss)
    one, two = ([r["loss"] for r in records(tmp_path / name) if "loss" in r] for name in ("arrays", "dicts"))
    assert len(one) == 24 and two == pytest.approx(one, abs=2e-6)
    with pytest.raises(DataError, match="the list of batches is empty"):
        fit(model(), [], out=tmp_path / "none", settings=chosen)


def test_a_part_without_rows_predicts_nothing() -> None:
    parts = cut(torch.ones(2, 5, dtype=torch.long), 3)
    assert [len(part) for part in parts] == [1, 1, 1] and [int(count_predicted(part)) for part in parts] == [4, 4, 0]
    named = cut({"ids": torch.ones(1, 3), "targets": torch.ones(1, 3)}, 2)
    assert [int(count_predicted(part)) for part in named] == [3, 0] and int(named[1]["ids"].sum()) == 3


def test_a_run_that_gets_no_better_ends_early_and_stays_ended(tmp_path: Path) -> None:
    scores = iter([5.0, 4.0, 4.5, 4.2, 1.0])
    chosen = settings(early_stopping=2, evaluate_every=4, steps=100, average=0.0)
    watched: list[Any] = []

    def scored(_: Model) -> dict[str, float]:
        return {"loss": next(scores)}

    outcome = fit(model(), Counting(), out=tmp_path, settings=chosen, evaluate=scored, watch=watched.append)
    assert (outcome.steps, outcome.best, outcome.folder.name) == (12, 4.0, "best-00000004") and not outcome.stopped
    assert [record["evaluation"]["loss"] for record in watched if "evaluation" in record] == [5.0, 4.0, 4.5, 4.2]
    again = fit(model(), Counting(), out=tmp_path, settings=chosen, evaluate=scored, resume=True)
    assert again.steps == 12 and next(scores) == 1.0


@pytest.mark.parametrize(
    "change",
    [lambda s: [s], lambda s: s.pop("place"), lambda s: s.pop("settings"), lambda s: s["optimizer"].clear()],
    ids=["list", "place", "settings", "optimizer"],
)
def test_a_state_that_lacks_a_part_is_refused(tmp_path: Path, change) -> None:
    fit(model(), Counting(), out=tmp_path, settings=settings())
    path = newest(tmp_path, "last") / "state.pt"
    state = torch.load(path, weights_only=True)
    changed = change(state)
    torch.save(changed if isinstance(changed, list) else state, path)
    with pytest.raises(CorruptFile, match=r"(state\.pt holds a list|does not hold what training resumes from)"):
        fit(model(), Counting(), out=tmp_path, settings=settings(), resume=True)


def test_with_update_in_backward_only_what_is_not_finite_is_left_out(tmp_path: Path) -> None:
    calls = 0

    def broken(model: Model, ids: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return next_token_loss(model, ids) * (float("nan") if calls == 4 else 1.0)

    chosen = settings(optimizer="adafactor-gpt2-ml", in_backward=True, clip=None)
    trained = model()
    fit(trained, Counting(), out=tmp_path, settings=chosen, loss=broken)
    assert records(tmp_path)[-1]["skipped"] == 1
    assert all(torch.isfinite(weight).all() for weight in weights(trained).values())
    with pytest.raises(ConfigError, match="accumulate=2 cannot be had with update in backward"):
        fit(model(), Counting(), out=tmp_path / "two", settings=replace(chosen, accumulate=2))


def test_bfloat16_weights_learn_and_resume_to_the_bit(tmp_path: Path) -> None:
    chosen = settings(optimizer="adafactor-gpt2-ml", in_backward=True, clip=None, average=0.0)
    whole = model().to(torch.bfloat16)
    fit(whole, Counting(), out=tmp_path / "whole", settings=chosen)
    calls = iter(range(13))

    def dying(model: Model, ids: torch.Tensor) -> torch.Tensor:
        if next(calls) == 12:
            raise Killed
        return next_token_loss(model, ids)

    with pytest.raises(Killed):
        fit(model().to(torch.bfloat16), Counting(), out=tmp_path / "cut", settings=chosen, loss=dying)
    resumed = model(5).to(torch.bfloat16)
    fit(resumed, Counting(), out=tmp_path / "cut", settings=chosen, resume=True)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    assert all(torch.equal(weight, weights(resumed)[name]) for name, weight in weights(whole).items())


def test_a_run_of_before_there_were_these_settings_goes_on() -> None:
    older = {
        name: value
        for name, value in asdict(settings().for_loop()).items()
        if name not in ("accumulate", "in_backward")
    }
    assert settings().for_loop().differences(older) == []
    assert settings(accumulate=2).for_loop().differences(older) == ["accumulate"]


def test_a_run_of_version_0_1_goes_on_with_its_precision() -> None:
    older = {name: value for name, value in asdict(settings().for_loop()).items() if name != "precision"}
    for was, now in ((None, "auto"), (False, "float32"), (False, "bfloat16"), (True, "mixed")):
        assert settings(precision=now).for_loop().differences(older | {"bfloat16": was}) == []
    assert settings(precision="mixed").for_loop().differences(older | {"bfloat16": False}) == ["precision"]
    assert settings(bfloat16=True).precision == "mixed" and settings(bfloat16=False).precision == "float32"


def test_an_error_in_the_data_reaches_the_caller(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="the disk is gone"):
        fit(model(), Counting(stop=2), out=tmp_path, settings=settings())
    assert newest(tmp_path, "last") == tmp_path / "last-00000010"


def test_a_folder_with_a_run_is_not_begun_anew(tmp_path: Path) -> None:
    fit(model(), Counting(), out=tmp_path, settings=settings(steps=5))
    with pytest.raises(CheckpointError, match="last-00000005; resume it"):
        fit(model(), Counting(), out=tmp_path, settings=settings(steps=5))
    with pytest.raises(CheckpointError, match=r"trained with lr=0.003, now it is 0.1"):
        fit(model(), Counting(), out=tmp_path, settings=settings(lr=0.1), resume=True)


def test_a_damaged_or_missing_checkpoint_is_named(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, "last", 3, model())
    with pytest.raises(MissingFile, match=r"state.pt is missing"):
        read_state(folder)
    (folder / "state.pt").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(CorruptFile, match=r"state.pt cannot be read"):
        read_state(folder)
    with pytest.raises(TensorMismatch, match=r"decoder.blocks.1.*differs"):
        fill_from(Model(replace(config(), decoder=replace(config().main, num_layers=1))), folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minutes": 3.0}, "steps is 24, minutes is 3.0"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'"),
        ({"schedule": "steep"}, "schedule is 'steep'"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"warmup": -1}, "warmup is -1"),
        ({"floor": 1.0}, "floor is 1.0"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"early_stopping": 0}, "early_stopping is 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**changes)


def test_a_run_of_no_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="steps is None, minutes is None; give one of them"):
        fit(model(), Counting(), out=tmp_path, settings=settings(steps=None))


class Headed(torch.nn.Module):
    """What a task trains: a network that is no language model, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = torch.nn.Linear(3, 8), torch.nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).tanh())


def headed_run(out: Path, trained: Headed, **options: Any) -> Outcome:
    scores = iter([0.5, 0.9, 0.7, 0.8, 0.6, 0.4])
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    batch = {"x": x.numpy(), "targets": (x[:, :1] > 0).long().numpy()}

    def loss(model: Headed, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(batch["x"]), batch["targets"][:, 0])

    def accuracy(model: Headed) -> dict[str, Any]:
        return {"accuracy": next(scores), "loss": 1.0, "score": "accuracy", "higher_is_better": True}

    chosen = settings(average=0.0, **{"steps": 24, **options.pop("changes", {})})
    return fit(trained, [batch], out=out, settings=chosen, loss=loss, evaluate=accuracy, **options)


def test_any_module_with_a_loss_learns_and_its_own_score_decides(tmp_path: Path) -> None:
    whole = Headed()
    outcome = headed_run(tmp_path / "whole", whole)
    assert (outcome.best, outcome.folder.name) == (0.9, "best-00000007")
    losses = [record["loss"] for record in records(tmp_path / "whole") if "loss" in record]
    assert losses[-1] < losses[0]
    headed_run(tmp_path / "cut", Headed(), changes={"steps": 10, "schedule": "constant"})
    cut = Headed()
    headed_run(tmp_path / "cut", cut, changes={"schedule": "constant"}, resume=True)
    other = Headed()
    headed_run(tmp_path / "other", other, changes={"schedule": "constant"})
    assert all(torch.equal(a, b) for a, b in zip(cut.parameters(), other.parameters(), strict=True))


def test_what_is_saved_as_the_best_may_be_ones_own(tmp_path: Path) -> None:
    outcome = headed_run(tmp_path, Headed(), save=lambda model, folder: torch.save({}, folder / "head.pt"))
    assert [path.name for path in outcome.folder.iterdir()] == ["head.pt"]
    assert (newest(tmp_path, "last") / "model.safetensors").is_file()


def test_an_evaluation_without_its_score_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluate returned \['accuracy'\] without 'loss'; add it, or name the key"):
        fit(model(), Counting(), out=tmp_path, settings=settings(), evaluate=lambda _: {"accuracy": 1.0})


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_schedule_rises_to_one_and_ends_just_above_zero(schedule: str) -> None:
    chosen = settings(schedule=schedule, warmup=10)
    shares = [multiplier(chosen, step, 100) for step in range(100)]
    assert shares[0] == pytest.approx(0.1) and max(shares) > 0.89 and 0 < shares[-1] < 0.02
    assert multiplier(chosen, 500, None) == 1.0
    assert multiplier(settings(schedule="constant"), 99, 100) == 1.0


def test_norms_and_biases_do_not_decay_and_outputs_are_scaled() -> None:
    made = model()
    groups = make_optimizer(made, settings()).param_groups
    assert {(group["weight_decay"], min(p.ndim for p in group["params"])) for group in groups} == {(0.1, 2), (0.0, 1)}
    before = weights(made)
    scale_outputs(made, 2)
    changed = [name for name, weight in weights(made).items() if not torch.equal(weight, before[name])]
    assert len(changed) == 4 and all(name.endswith("output.weight") for name in changed)


@pytest.mark.skipif(os.name == "nt", reason="locks of POSIX")
def test_two_runs_in_one_folder_at_once_are_refused_and_the_first_ends_as_ever(tmp_path: Path) -> None:
    told = rf"another process is writing to {tmp_path} \(pid {os.getpid()}\); wait for it, or give another --out"

    def second(model) -> dict[str, float]:
        with ThreadPoolExecutor(1) as pool, pytest.raises(DataError, match=told):
            pool.submit(fit, Model(config()), Counting(), out=tmp_path, settings=settings(), resume=True).result()
        return evaluate(model)

    with locked(tmp_path):
        fit(model(), Counting(), out=tmp_path, settings=settings(), evaluate=second)
    assert not (tmp_path / ".lock").exists() and newest(tmp_path, "last") is not None
