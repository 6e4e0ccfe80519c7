"""Check against TensorFlow itself that it reads our bundles and that we read its, bit for bit.

    python benchmarks/tensorflow_reads_ours.py [--environment FOLDER] [--tensorflow REQUIREMENT]

TensorFlow is installed into an environment of its own, FOLDER (made if it is not there, a temporary one if it is
not given), because Hanmo's has none. Ours → TensorFlow: every dtype that both know, scalars, empty tensors,
thousands of tensors in many index blocks and several shards. TensorFlow → ours: the same, partitioned variables
(of `Saver` and of `SaveV2` by hand), listed strings and merged shards; what our writer makes of them is compared with
TensorFlow's files byte by byte. Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np

DTYPES = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
    "complex64", "complex128", "bfloat16", "float8_e5m2", "float8_e4m3fn",
]  # fmt: skip
BITS = {"bfloat16": "uint16", "float8_e5m2": "uint8", "float8_e4m3fn": "uint8"}
SHAPES = [(), (1,), (0,), (3, 0, 2), (5,), (2, 3, 4), (257, 33)]


def values(seed: int) -> dict[str, np.ndarray]:
    """Name `DTYPE/INDEX` -> random bits, as the dtype's storage; and thousands of small float32 tensors."""
    rng = np.random.default_rng(seed)
    found = {}
    for dtype in DTYPES:
        storage = np.dtype(BITS.get(dtype, dtype))
        for i, shape in enumerate(SHAPES):
            raw = rng.integers(0, 2 if dtype == "bool" else 256, int(np.prod(shape)) * storage.itemsize, np.uint8)
            found[f"{dtype}/{i}"] = raw.view(storage).reshape(shape)
    for i in range(6_000):
        found[f"model/a_rather_long_scope_name/layer_{i:04d}/attention/kernel"] = rng.random((i % 3, 5), np.float32)
    return found


def dtype_of(name: str) -> str:
    """Return the dtype that the name of `values` tells."""
    first = name.partition("/")[0]
    return first if first in DTYPES else "float32"


def inside(folder: Path) -> None:
    """Do TensorFlow's half; run by the other environment's Python, without Hanmo."""
    import tensorflow as tf

    def tensor(name: str, bits: np.ndarray) -> tf.Tensor:
        dtype = tf.dtypes.as_dtype(dtype_of(name))
        return tf.constant(bits.view(dtype.as_numpy_dtype), dtype)

    expected = np.load(folder / "ours.npz")
    reports: dict[str, object] = {"tensorflow": tf.__version__, "python": sys.version.split()[0]}
    for prefix in ("ours", "ours-sharded"):
        reader = tf.train.load_checkpoint(str(folder / prefix))
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
        wrong = []
        for name in expected:
            got = np.asarray(reader.get_tensor(name))
            same = got.tobytes() == expected[name].tobytes() and tuple(shapes[name]) == expected[name].shape
            if not same or dtypes[name].name != dtype_of(name):
                wrong.append(name)
        reports[prefix] = {"listed": len(shapes), "compared": len(expected), "wrong": wrong}

    def save(prefix: str, names: list[str], tensors: list[tf.Tensor], slices: list[str] | None = None) -> None:
        tf.raw_ops.SaveV2(
            prefix=str(folder / prefix),
            tensor_names=names,
            shape_and_slices=slices or [""] * len(names),
            tensors=tensors,
        )

    theirs = dict(np.load(folder / "theirs.npz"))
    names = sorted(theirs)
    tensors = [tensor(name, theirs[name]) for name in names]
    save("theirs", [*names, "strings"], [*tensors, tf.constant([b"", "翰墨".encode(), b"x" * 99_999])])
    save("plain", names, tensors)
    save("part-a", names[::2], tensors[::2])
    save("part-b", names[1::2], tensors[1::2])
    parts = [str(folder / "part-a"), str(folder / "part-b")]
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=str(folder / "merged"))
    grid = np.arange(300 * 7, dtype=np.float32).reshape(300, 7)
    cuts = [(0, 100), (100, 64), (164, 136)]
    rows = tf.constant(grid)
    spec = [f"300 7 {start},{length}:-" for start, length in cuts]
    save("sliced", ["v"] * 3, [rows[start : start + length] for start, length in cuts], spec)
    spec = [f"300 7 0,300:{start},{length}" for start, length in ((0, 3), (3, 4))]
    save("columns", ["v"] * 2, [rows[:, :3], rows[:, 3:]], spec)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        cutter = tf.compat.v1.fixed_size_partitioner(4)
        start = tf.compat.v1.random_normal_initializer()
        cut = {
            name: tf.compat.v1.get_variable(name, (301, 7), tf.dtypes.as_dtype(name), start, partitioner=cutter)
            for name in ("float32", "bfloat16")
        }
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, str(folder / "saver"), write_meta_graph=False)
        found = {name: np.asarray(session.run(variable.as_tensor())) for name, variable in cut.items()}
    np.savez(folder / "grids.npz", v=grid, float32=found["float32"], bfloat16=found["bfloat16"].view(np.uint16))
    (folder / "report.json").write_text(json.dumps(reports))


def ours(folder: Path) -> None:
    """Write what TensorFlow shall read, and the values to compare with."""
    from hanmo.checkpoint.source import TensorInfo
    from hanmo.checkpoint.tf.writer import write_bundle

    for name, seed in (("ours", 1), ("theirs", 2)):
        np.savez(folder / f"{name}.npz", **values(seed))
    found = values(1)
    for prefix, limit, block in (("ours", None, 262_144), ("ours-sharded", 100_000, 4_096)):
        items = (
            (name, (TensorInfo(name, dtype_of(name), bits.shape, bits.nbytes), [bits])) for name, bits in found.items()
        )
        write_bundle(folder / prefix, items, max_shard_bytes=limit, block_size=block)


def read_theirs(folder: Path) -> dict[str, list[str]]:
    """Compare what TensorFlow wrote with what was meant; return what differs, by checkpoint."""
    from hanmo.checkpoint.tf.bundle import Bundle
    from hanmo.checkpoint.tf.writer import write_bundle

    expected = values(2)
    wrong: dict[str, list[str]] = {}
    for prefix in ("theirs", "plain", "merged"):
        with Bundle(folder / prefix) as bundle:
            wrong[prefix] = [
                name
                for name, bits in expected.items()
                if bundle.read(name).tobytes() != bits.tobytes()
                or (bundle.tensors[name].dtype, bundle.tensors[name].shape) != (dtype_of(name), bits.shape)
            ]
            if {name for name, info in bundle.tensors.items() if info.dtype != "string"} != set(expected):
                wrong[prefix].append("the list of names")
    grids = np.load(folder / "grids.npz")
    for prefix, names in (("sliced", ["v"]), ("columns", ["v"]), ("saver", ["bfloat16", "float32"])):
        with Bundle(folder / prefix) as bundle:
            wrong[prefix] = [name for name in names if bundle.read(name).tobytes() != grids[name].tobytes()]
            if list(bundle.tensors) != names:
                wrong[prefix].append("the list of names")
    with Bundle(folder / "plain") as bundle:
        items = ((name, (bundle.tensors[name], [bundle.read(name)])) for name in bundle.in_file_order)
        write_bundle(folder / "again", items)
        index = (folder / "again.index").read_bytes() == (folder / "plain.index").read_bytes()
        wrong["again"] = [] if index else ["the bytes of the index differ (padding for alignment may be why)"]
    return wrong


def main() -> int:
    """Run the check and print what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--environment", type=Path, help="folder of TensorFlow's own virtual environment")
    parser.add_argument("--tensorflow", default="tensorflow-cpu==2.15.1", help="what pip installs into it")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(options.inside)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        environment = options.environment or folder / "environment"
        python = environment / "bin" / "python"
        if not python.exists():
            venv.create(environment, with_pip=True)
            subprocess.run([python, "-m", "pip", "install", "-q", options.tensorflow], check=True)
        ours(folder)
        subprocess.run([python, __file__, "--inside", folder], check=True)
        report = json.loads((folder / "report.json").read_text())
        report["theirs"] = read_theirs(folder)
        report["bytes"] = {path.name: path.stat().st_size for path in sorted(folder.glob("*.index"))}
    print(json.dumps(report, indent=2))
    bad = [*report["ours"]["wrong"], *report["ours-sharded"]["wrong"]]
    for wrong in report["theirs"].values():
        bad += wrong
    print("everything is equal" if not bad else f"{len(bad)} differ")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
