"""Compare Hanmo's task layers, losses and decoders with arrays that bert4keras computed, in float64 and in float32.

    python benchmarks/task_goldens.py tests/data/goldens/tasks

FOLDER holds .npz files with arrays named case/array; what they are is told in notes.md beside them. An array counts
once it was an input of a computation or equals what was computed. Prints `N of N arrays` last; exits with 1 on a miss,
or if a file is missing.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from hanmo.compat.bert4keras.snippets import ViterbiDecoder
from hanmo.compat.bert4keras.task_layers import (
    ConditionalRandomField,
    EfficientGlobalPointer,
    GlobalPointer,
    MaximumEntropyMarkovModel,
    multilabel_categorical_crossentropy,
    sparse_multilabel_categorical_crossentropy,
)
from hanmo.errors import TensorMismatch
from hanmo.tasks import pointer as pointers
from hanmo.tasks.adversarial import Fgm, GradientPenalty, perturbation, table_gradient, virtual_loss
from hanmo.tasks.casrel import object_pairs, subject_pairs
from hanmo.tasks.chains import crf_losses, path_score
from hanmo.tasks.divergence import Logits
from hanmo.tasks.explain import path_gradients, token_scores, with_vectors
from hanmo.tasks.schemes import Scheme

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


class Case:
    """The arrays of one case: inputs are taken by name, results compared by name.

    dtype: of the computation; floating inputs come in it.
    """

    def __init__(self, name: str, arrays: dict[str, Any], dtype: torch.dtype) -> None:
        self.name, self.arrays, self.dtype = name, arrays, dtype
        self.used: set[str] = set()
        self.missed: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def array(self, name: str) -> Any:
        """Return an input as NumPy: floats in the computation's dtype, numbers and texts of no axis as Python's."""
        self.used.add(name)
        found = self.arrays[name]
        if found.dtype.kind == "f":
            found = found.astype(str(self.dtype).removeprefix("torch."))
        return found if found.ndim else found.item()

    def tensor(self, name: str, *, grad: bool = False) -> torch.Tensor:
        """Return an input as a tensor, with grad=True one that collects its gradient."""
        return torch.from_numpy(np.array(self.array(name))).requires_grad_(grad)

    def compare(self, name: str, found: Any, *, tolerance: float | None = None) -> None:
        """Hold what was computed against the array: infinities and whole numbers exactly, others within a tolerance.

        tolerance: of the difference, relative to the largest finite value but at least 1; None: the dtype's.
        """
        self.used.add(name)
        found = found.detach().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
        expected = self.arrays[name]
        if found.shape != expected.shape:
            self.missed.append(f"{self.name}/{name}: shape {found.shape}, expected {expected.shape}")
            return
        if expected.dtype.kind != "f":
            if not np.array_equal(found, expected):
                self.missed.append(f"{self.name}/{name}: {(found != expected).sum()} of {found.size} values differ")
            return
        finite = np.isfinite(expected)
        if not np.array_equal(found[~finite], expected[~finite], equal_nan=True):
            self.missed.append(f"{self.name}/{name}: infinite or NaN at other places")
            return
        off = float(np.abs(found[finite] - expected[finite]).max(initial=0))
        off /= max(1.0, float(np.abs(expected[finite]).max(initial=0)))
        allowed = TOLERANCE[self.dtype] if tolerance is None else max(tolerance, TOLERANCE[self.dtype])
        if not off <= allowed:
            self.missed.append(f"{self.name}/{name}: {off:.2e} off, at most {allowed:.0e} allowed ({self.dtype})")


CHECKS: dict[str, Callable[[Case], None]] = {}


def check(file: str) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Register the function that compares one case of FILE.npz."""
    return lambda function: CHECKS.setdefault(file, function)


@dataclass
class Report:
    """How many arrays of a file there are and how many count, and what missed."""

    total: int = 0
    matched: int = 0
    missed: list[str] = field(default_factory=list)


def run(path: Path) -> Report:
    """Compare all cases of a file in both dtypes."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    report = Report(total=len(arrays))
    function = CHECKS.get(path.stem)
    if function is None:
        report.missed.append(f"{path.name}: nothing here computes this file")
        return report
    for name in sorted({name.split("/")[0] for name in arrays}):
        own = {key.partition("/")[2]: array for key, array in arrays.items() if key.partition("/")[0] == name}
        cases = [Case(f"{path.stem} {name}", own, dtype) for dtype in TOLERANCE]
        for case in cases:
            function(case)
        missed = [line for case in cases for line in case.missed]
        unused = [f"{path.stem} {name}/{key}: not compared" for key in own if any(key not in c.used for c in cases)]
        wrong = {line.split(": ")[0] for line in missed + unused}
        report.missed += missed + unused
        report.matched += len(own) - len(wrong)
    return report


@check("crf")
def crf(case: Case) -> None:
    x, labels, transitions = case.tensor("x", grad=True), case.tensor("labels"), case.tensor("trans_effective")
    if "fails" in case:
        layer = ConditionalRandomField(x.shape[-1])
        try:
            layer.sparse_loss(labels, layer(x))
        except TensorMismatch:
            case.array("fails")
        case.compare(
            "loss_by_definition", crf_losses(x, labels, transitions, torch.ones(labels.shape, dtype=torch.bool))
        )
        return
    layer = _with_weights(case, ConditionalRandomField(x.shape[-1], case.array("lr_multiplier")), "trans")
    scores = layer(x, case.tensor("mask") if "mask" in case else None)
    case.compare("masked_scores", scores)
    losses = layer.sparse_loss(labels, scores)
    case.compare("sparse_loss", losses)
    case.compare("dense_loss", layer.dense_loss(case.tensor("one_hot"), scores))
    case.compare("dense_loss_soft", layer.dense_loss(case.tensor("soft_labels"), scores))
    case.compare("sparse_accuracy", layer.sparse_accuracy(labels, scores))
    case.compare("dense_accuracy", layer.dense_accuracy(case.tensor("one_hot"), scores))
    objective = (case.tensor("row_weights") * losses).sum()
    case.compare("objective", objective)
    objective.backward()
    case.compare("grad_x", x.grad)
    case.compare("grad_trans_stored", layer._trans.grad)


@check("memm")
def memm(case: Case) -> None:
    x, labels = case.tensor("x", grad=True), case.tensor("labels")
    names = ["l_trans", "r_trans"] if "l_trans_stored" in case else ["trans"]
    hidden = case.array("l_trans_stored").shape[1] if len(names) == 2 else None
    layer = MaximumEntropyMarkovModel(x.shape[-1], case.array("lr_multiplier"), hidden_dim=hidden)
    _with_weights(case, layer, *names)
    scores = layer(x, case.tensor("mask") if "mask" in case else None)
    case.compare("masked_scores", scores)
    one_hot = F.one_hot(labels, x.shape[-1]).to(case.dtype)
    both = {"loss": layer.losses_each_way(one_hot, scores), "accuracy": layer.accuracies_each_way(labels, scores)}
    for name, (forward, backward) in both.items():
        case.compare(f"forward_{name}", forward)
        case.compare(f"backward_{name}", backward)
    case.compare("sparse_accuracy", layer.sparse_accuracy(labels, scores))
    case.compare("dense_loss", layer.dense_loss(one_hot, scores))
    loss = layer.sparse_loss(labels, scores)
    case.compare("sparse_loss", loss)
    loss.backward()
    case.compare("grad_x", x.grad)
    for name in names:
        case.compare(f"grad_{name}_stored", getattr(layer, f"_{name}").grad)


def _with_weights(case: Case, layer: torch.nn.Module, *names: str) -> Any:
    """Load stored weights into a layer, and hold what it makes of them against the effective ones."""
    layer.to(case.dtype)
    layer.load_state_dict({f"_{name}": case.tensor(f"{name}_stored") for name in names})
    for name in names:
        case.compare(f"{name}_effective", layer.lr_multiplier * getattr(layer, f"_{name}"))
    return layer


@check("viterbi")
def viterbi(case: Case) -> None:
    starts, ends = (
        [int(n) for n in case.array(key)] if case.array(f"has_{key}") else None for key in ("starts", "ends")
    )
    case.array("starts"), case.array("ends")
    nodes, trans = case.array("nodes"), case.array("trans")
    paths = _paths(nodes, ViterbiDecoder(trans, starts, ends))
    case.compare("paths", paths)
    right = F.one_hot(torch.from_numpy(paths), nodes.shape[-1]).to(case.dtype)
    everywhere = torch.ones(paths.shape, dtype=torch.bool)
    case.compare("scores", path_score(torch.from_numpy(nodes), right, torch.from_numpy(trans), everywhere))


def _paths(nodes: Any, decoder: ViterbiDecoder) -> Any:
    return np.array([decoder.decode(each) for each in nodes])


@check("ner_decode")
def ner_decode(case: Case) -> None:
    nodes = case.array("nodes")
    paths = _paths(nodes, ViterbiDecoder(case.array("trans"), starts=[0], ends=[0]))
    case.compare("paths", paths)
    scheme = Scheme("BIO", [str(kind) for kind in range(nodes.shape[-1] // 2)])
    found = [
        (text, start, stop - 1, kind)
        for text, path in enumerate(paths)
        for start, stop, kind in scheme.decode(path[1:-1], strict=False)
    ]
    case.compare("entities", found)


@check("cws_decode")
def cws_decode(case: Case) -> None:
    paths = _paths(case.array("nodes"), ViterbiDecoder(case.array("trans"), starts=[0], ends=[0]))
    case.compare("paths", paths)
    lengths = np.zeros(paths.shape, np.int64)
    for row, path in zip(lengths, paths, strict=True):
        words = [stop - start for start, stop, _ in Scheme("words", ["word"]).decode(path[1:-1], strict=False)]
        row[: len(words)] = words
    case.compare("word_lengths", lengths)


@check("crf_adam")
def crf_adam(case: Case) -> None:
    x, mask, labels = case.tensor("x"), case.tensor("mask"), case.tensor("labels")
    kernel, transitions = case.tensor("start_kernel", grad=True), case.tensor("start_trans", grad=True)
    rate, factor = case.array("rate"), case.array("lr_multiplier")
    # A weight stored divided by a factor has gradients that are multiplied by it, so Adam's eps counts less.
    groups = [
        {"params": [kernel], "lr": rate, "eps": 1e-6},
        {"params": [transitions], "lr": rate * factor, "eps": 1e-6 / factor},
    ]
    optimizer = torch.optim.Adam(groups)
    losses, kernels, trans = [], [], []
    for _ in case.arrays["losses"]:
        loss = crf_losses(x @ kernel, labels, transitions, mask).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        kernels.append(kernel.detach().numpy().copy())
        trans.append(transitions.detach().numpy().copy())
    for name, found in (("losses", losses), ("kernels", kernels), ("trans", trans)):
        case.compare(name, found, tolerance=1e-5)


@check("global_pointer")
def global_pointer(case: Case) -> None:
    _pointer(case, GlobalPointer, {"dense": ""})


@check("efficient_global_pointer")
def efficient_global_pointer(case: Case) -> None:
    _pointer(case, EfficientGlobalPointer, {"dense": "p_", "biases": "q_"})


def _pointer(case: Case, kind: Any, names: dict[str, str]) -> None:
    """names: of the layer's parts, each with the prefix of its arrays."""
    x, use_bias = case.tensor("x", grad=True), case.array("use_bias")
    options = {"RoPE": case.array("rope"), "tril_mask": case.array("tril_mask"), "use_bias": use_bias}
    layer = kind(case.array("heads"), case.array("head_size"), **options, input_size=x.shape[-1]).to(case.dtype)
    for name, prefix in names.items():
        layer.get_parameter(f"{name}.weight").data = case.tensor(f"{prefix}kernel").T
        if use_bias:
            layer.get_parameter(f"{name}.bias").data = case.tensor(f"{prefix}bias")
    output = layer(x, case.tensor("mask") if "mask" in case else None)
    objective = (output * case.tensor("cotangent")).masked_fill(~output.isfinite(), 0).sum()
    objective.backward()
    case.compare("output", output)
    case.compare("objective", objective)
    case.compare("grad_x", x.grad)
    for name, prefix in names.items():
        part = layer.get_submodule(name)
        case.compare(f"grad_{prefix}kernel", part.weight.grad.T)
        if use_bias:
            case.compare(f"grad_{prefix}bias", part.bias.grad)


@check("multilabel")
def multilabel(case: Case) -> None:
    y_pred = case.tensor("y_pred", grad=True)
    loss = multilabel_categorical_crossentropy(case.tensor("y_true"), y_pred)
    loss.sum().backward()
    case.compare("loss", loss)
    case.compare("grad_y_pred", y_pred.grad)


@check("sparse_multilabel")
def sparse_multilabel(case: Case) -> None:
    y_true, mask_zero = case.tensor("y_true"), case.array("mask_zero")
    losses = [lambda y_pred: sparse_multilabel_categorical_crossentropy(y_true, y_pred, mask_zero)]
    if not case.name.endswith("confident"):  # there Hanmo's own loss equals the dense one
        losses.append(lambda y_pred: pointers.sparse_multilabel_loss(y_pred, y_true, padding=0 if mask_zero else None))
    for function in losses:
        y_pred = case.tensor("y_pred", grad=True)
        loss = function(y_pred)
        loss.sum().backward()
        tolerance = 1e-6 if len(losses) == 1 else None  # a floor of 1e-7 is in it
        case.compare("loss", loss, tolerance=tolerance)
        case.compare("grad_y_pred", y_pred.grad, tolerance=tolerance)


@check("pointer_loss")
def pointer_loss(case: Case) -> None:
    pairs, y_true = case.tensor("positions"), case.tensor("y_true_dense")
    for name, gradient, dense in (
        ("gplinker_loss", "grad_gplinker", False),
        ("dense_mean_loss", "grad_dense_mean", True),
    ):
        y_pred = case.tensor("y_pred", grad=True)
        loss = pointers.pointer_loss(y_pred, pairs, dense=dense).mean()
        loss.backward()
        case.compare(name, loss)
        case.compare(gradient, y_pred.grad)
    numbers = pairs[..., 0] * y_pred.shape[-1] + pairs[..., 1]
    case.compare("sparse_per_head", pointers.sparse_multilabel_loss(y_pred.flatten(2), numbers, padding=0))
    case.compare("dense_mean_loss", pointers.multilabel_loss(y_pred.flatten(2), y_true.flatten(2)).mean())


@check("gplinker_decode")
def gplinker_decode(case: Case) -> None:
    entity, first, last = (case.tensor(name) for name in ("entity", "head", "tail"))
    above, stop, spoes = case.array("threshold"), entity.shape[-1] - 1, []
    for text, scores in enumerate(zip(entity, first, last, strict=True)):
        found = pointers.decode_triples(*scores, above=above, start=1, stop=stop)
        spoes += sorted((text, s - 1, t - 1, p, o - 1, e - 1) for (s, t), p, (o, e), _ in found)
    case.compare("spoes", np.array(spoes, np.int64).reshape(-1, 6))


@check("casrel_decode")
def casrel_decode(case: Case) -> None:
    subject, objects, spoes = case.array("subject"), case.array("object"), []
    places = {"start": 1, "stop": subject.shape[1] - 1}
    for text, odds in enumerate(subject):
        for s, t, _ in subject_pairs(odds, **places):
            for o, e, predicate, _ in object_pairs(objects[text, s, t], **places):
                spoes.append((text, s - 1, t - 1, predicate, o - 1, e - 1))
    case.compare("spoes", np.array(spoes, np.int64).reshape(-1, 6))


class Toy(torch.nn.Module):
    """The classifier of adversarial.npz and integrated_gradients.npz, with the parts that step wrappers use.

    Logits: mean over positions of tanh(token + segment vector) → tanh(Hidden) → Out.
    """

    def __init__(self, case: Case, prefix: str) -> None:
        super().__init__()
        token, self.segment = (
            torch.nn.Embedding.from_pretrained(case.tensor(f"{prefix}.Embedding-{name}.embeddings"), freeze=False)
            for name in ("Token", "Segment")
        )
        self.backbone = torch.nn.ModuleDict({"token": token})
        self.layers = torch.nn.ModuleDict()
        for name in ("Hidden", "Out"):
            kernel, bias = (case.tensor(f"{prefix}.{name}.{each}") for each in ("kernel", "bias"))
            self.layers[name] = torch.nn.Linear(*kernel.shape, dtype=kernel.dtype)
            self.layers[name].load_state_dict({"weight": kernel.T, "bias": bias})

    @property
    def task(self) -> "Toy":
        """What knows the outputs."""
        return self

    def forward(self, batch: Any) -> torch.Tensor:
        """Return the logits of a batch."""
        hidden = torch.tanh(self.backbone.token(batch["ids"]) + self.segment(batch["segments"])).mean(1)
        return self.layers["Out"](torch.tanh(self.layers["Hidden"](hidden)))

    def logits(self, outputs: torch.Tensor, batch: Any) -> list[Logits]:
        """Say that outputs are logits of a softmax."""
        return [Logits(outputs)]

    def compare(self, case: Case, prefix: str, read: Callable[[torch.Tensor], Any], **options: Any) -> None:
        """Hold what `read` gives of each weight, as the original stores it, against the arrays prefix.NAME."""
        case.compare(f"{prefix}.Embedding-Token.embeddings", read(self.backbone.token.weight), **options)
        case.compare(f"{prefix}.Embedding-Segment.embeddings", read(self.segment.weight), **options)
        for name, layer in self.layers.items():
            case.compare(f"{prefix}.{name}.kernel", read(layer.weight).T, **options)
            case.compare(f"{prefix}.{name}.bias", read(layer.bias), **options)


def _cross_entropy(network: Any, batch: Any) -> torch.Tensor:
    return F.cross_entropy(network(batch), batch["labels"])


def _toy_batch(case: Case) -> dict[str, torch.Tensor]:
    return {"ids": case.tensor("token_ids"), "segments": case.tensor("segment_ids")}


@check("adversarial")
def adversarial(case: Case) -> None:
    batch = _toy_batch(case) | {"labels": case.tensor("labels")}
    epsilon = case.array("epsilon")
    losses: dict[str, Callable[[Any, Any], torch.Tensor]] = {
        "plain": _cross_entropy,
        "fgm": Fgm(epsilon=epsilon)(_cross_entropy, Toy(case, "start")),
    }
    for name in [name.removesuffix("_noise") for name in case.arrays if name.endswith("_noise")]:
        iterations = int(name.removeprefix("vat"))
        options = {"noise": case.tensor(f"{name}_noise"), "epsilon": epsilon, "xi": 10.0, "iterations": iterations}
        losses[name] = partial(virtual_loss, **options)
    for name, loss in losses.items():
        toy, tolerance = Toy(case, "start"), 1e-6 if name.startswith("vat") else None
        found = loss(toy, batch)
        case.compare(f"{name}_loss", found, tolerance=tolerance)
        found.backward()
        rate = float(np.float32(case.array("sgd_rate")))  # Keras keeps rates as float32
        torch.optim.SGD(toy.parameters(), lr=rate).step()
        toy.compare(case, f"{name}_after", torch.Tensor.detach, tolerance=tolerance)
    toy = Toy(case, "start")
    gradient = table_gradient(_cross_entropy, toy, batch, torch.zeros_like(toy.backbone.token.weight))
    case.compare("table_gradient", gradient)
    case.compare("fgm_delta", perturbation(gradient, epsilon))
    total = GradientPenalty(epsilon=epsilon, by_occurrence=True)(_cross_entropy, toy)(toy, batch)
    total.backward()
    case.compare("penalty_total", total)
    case.compare("penalty_plain", _cross_entropy(toy, batch))
    toy.compare(case, "penalty_grad", lambda weight: weight.grad)


@check("integrated_gradients")
def integrated_gradients(case: Case) -> None:
    toy, batch, points = Toy(case, "weights"), _toy_batch(case), case.array("points")
    probabilities = toy(batch).softmax(-1)
    case.compare("probabilities", probabilities)
    label = probabilities.argmax()
    case.compare("label", label)
    vectors = toy.backbone.token(batch["ids"]).detach()
    gradients = path_gradients(lambda x: with_vectors(toy, batch, x).softmax(-1)[0, label], vectors, points)[:, 0]
    each = gradients * (vectors[0] * torch.linspace(0, 1, points, dtype=case.dtype)[:, None, None])
    mean = each.mean(0).numpy()
    case.compare("each", each)
    case.compare("mean", mean)
    case.compare("by_length", token_scores(mean, "length"))
    case.compare("by_largest", token_scores(mean, "largest"))


def main(given: Iterable[str] | None = None) -> int:
    """Compare every file of a folder; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(given if given is None else list(given)).folder
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        parser.error(f"{folder} holds no .npz files; name the folder of the goldens")
    reports = {path.name: run(path) for path in paths}
    for name in sorted(set(CHECKS) - {path.stem for path in paths}):
        reports[f"{name}.npz"] = Report(total=1, missed=[f"{folder / name}.npz is missing; it counts as one array"])
    for name, report in reports.items():
        for line in report.missed:
            print(line)
        print(f"{name}: {report.matched} of {report.total}")
    matched, total = (sum(getattr(each, key) for each in reports.values()) for key in ("matched", "total"))
    print(f"{matched} of {total} arrays")
    return int(matched != total)


if __name__ == "__main__":
    sys.exit(main())
