"""Compare Hanmo's task layers, losses and decoders with arrays that bert4keras computed, in float64 and in float32.

    python benchmarks/task_goldens.py tests/data/goldens/tasks

FOLDER holds .npz files with arrays named case/array; what they are is told in notes.md beside them. An array counts
once it was an input of a computation or equals what was computed. Prints `N of N arrays` last; exits with 1 on a miss.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

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


def main(given: Iterable[str] | None = None) -> int:
    """Compare every file of a folder; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(given if given is None else list(given)).folder
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        parser.error(f"{folder} holds no .npz files; name the folder of the goldens")
    reports = {path.name: run(path) for path in paths}
    for name, report in reports.items():
        for line in report.missed:
            print(line)
        print(f"{name}: {report.matched} of {report.total}")
    matched, total = (sum(getattr(each, key) for each in reports.values()) for key in ("matched", "total"))
    print(f"{matched} of {total} arrays")
    return int(matched != total)


if __name__ == "__main__":
    sys.exit(main())
