"""Load a synthetic GPT2_ML of the full 1.39 B shape: time beside a plain read of the file, and memory.

    python benchmarks/load_large.py FOLDER [--rounds 3]

Writes the checkpoint (5.6 GB float32, AdaFactor's slots included, TensorFlow's format) into FOLDER once, with Hanmo's
own writer; then reads and loads it by turns, each in a fresh process, cold (evicted with posix_fadvise) and warm.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hanmo.checkpoint.source import TensorInfo
from hanmo.checkpoint.tf.writer import write_bundle
from hanmo.families import FAMILIES

MEGA = {
    "vocab_size": 21130,
    "hidden_size": 1536,
    "num_hidden_layers": 48,
    "num_attention_heads": 24,
    "intermediate_size": 6144,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 1024,
    "initializer_range": 0.014142135623731,
}


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Give every tensor of the model by name, its shape as TensorFlow has it."""
    import torch

    from hanmo.checkpoint.names import foreign_shape
    from hanmo.model import Model

    names = FAMILIES["gpt2_ml"].tensorflow
    assert names is not None
    config = names.config(MEGA)
    with torch.device("meta"):
        state = {name: p.shape for name, p in Model(config).named_parameters()}
    for row in names.rows(config):
        yield row.theirs, foreign_shape(row, [state[name] for name in row.ours])


def write(prefix: Path) -> None:
    """Write random weights of a trained model's size, and slots beside each."""

    def tensors() -> Iterator[tuple[str, tuple[TensorInfo, Iterator[np.ndarray]]]]:
        generator = np.random.default_rng(0)
        for name, shape in shapes():
            slots = {"": shape}
            if len(shape) == 2:
                slots |= {"/adafactor_vr": shape[:1], "/adafactor_vc": shape[1:]}
            else:
                slots |= {"/adafactor_v": shape}
            for suffix, size in slots.items():
                nbytes = 4 * int(np.prod(size))
                chunk = generator.standard_normal(size, np.float32)
                chunk *= 0.02
                if name.endswith("gamma"):
                    chunk += 1
                yield name + suffix, (TensorInfo(name + suffix, "float32", size, nbytes), iter([chunk]))
        yield "global_step", (TensorInfo("global_step", "int64", (), 8), iter([np.array(100000, np.int64)]))

    write_bundle(prefix, tensors())
    (prefix.parent / "config.json").write_text(json.dumps(MEGA, indent=2), "utf-8")


CHILD = """
import json, resource, sys, time
import torch, hanmo.loading, numpy
torch.set_num_threads(2)
def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024
open("/proc/self/clear_refs", "w").write("5")
before, start = status("VmRSS"), time.perf_counter()
loaded = hanmo.loading.load(sys.argv[1], dtype=getattr(torch, sys.argv[2]) if sys.argv[2] != "file" else None)
seconds = time.perf_counter() - start
size = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
print(json.dumps({"seconds": seconds, "peak": status("VmHWM") - before, "anonymous": status("RssAnon"), "bytes": size}))
"""


def load(prefix: Path, dtype: str) -> dict[str, float]:
    """Load in a fresh process; seconds, and bytes of the process's peak resident memory over its start."""
    out = subprocess.run([sys.executable, "-c", CHILD, str(prefix), dtype], check=True, capture_output=True, text=True)
    return dict(json.loads(out.stdout))


def read(path: Path) -> float:
    """Read the file from end to end into one buffer; seconds."""
    buffer = bytearray(8 << 20)
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - start


def keep(path: Path) -> float:
    """Read the file whole into memory that is new; seconds."""
    start = time.perf_counter()
    buffer = np.empty(path.stat().st_size, np.uint8)
    with path.open("rb", buffering=0) as file:
        view, at = memoryview(buffer), 0
        while count := file.readinto(view[at : at + (8 << 20)]):
            at += count
    return time.perf_counter() - start


def evict(path: Path) -> None:
    """Have the kernel forget the file's pages."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Write if needed, measure by turns, print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    prefix = options.folder / "model.ckpt-100000"
    data = options.folder / "model.ckpt-100000.data-00000-of-00001"
    if not data.is_file():
        options.folder.mkdir(parents=True, exist_ok=True)
        write(prefix)
    for cold in (True, False):
        reads, loads = [], []
        for _ in range(options.rounds):
            if cold:
                evict(data)
            reads.append(read(data))
            if cold:
                evict(data)
            loads.append(load(prefix, "file"))
        plain = statistics.median(reads)
        seconds = statistics.median(item["seconds"] for item in loads)
        peak = max(item["peak"] / item["bytes"] for item in loads)
        state = "cold" if cold else "warm"
        print(
            f"{state}: plain read {plain:.2f} s, load {seconds:.2f} s, ratio {seconds / plain:.2f}; "
            f"peak resident {peak:.3f} × the model's {loads[0]['bytes'] / 2**30:.2f} GiB"
        )
    fresh = statistics.median(keep(data) for _ in range(options.rounds))
    print(f"warm: read into fresh memory of the file's size, as a loader that does not map must: {fresh:.2f} s")
    half = load(prefix, "bfloat16")
    print(
        f"bfloat16 on the way in, warm: {half['seconds']:.2f} s; model {half['bytes'] / 2**30:.2f} GiB, "
        f"peak resident {half['peak'] / half['bytes']:.3f} × that"
    )


if __name__ == "__main__":
    main()
