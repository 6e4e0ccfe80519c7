"""Carry a folder in pieces: split it into small compressed parts, join them elsewhere.

    python examples/small_model/parcel.py split FOLDER PARTS [--limit MIB]    PARTS/1, PARTS/2, ... of at most MIB each
    python examples/small_model/parcel.py join FOLDER PARTS [PARTS ...]       the parts may lie in several folders

Needs nothing but Python, and uses all cores. A part holds xz pieces named FILE.NUMBER.xz and a contents.json with the
sizes and SHA256 of the files.
"""

import argparse
import hashlib
import json
import lzma
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

PIECE = 12 << 20  # bytes before packing; small enough that all cores have work when joining
# Two-byte alignment: the ids are 16 bits wide, and xz then finds a little more.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lp": 1, "lc": 3, "pb": 1}]


def split(folder: Path, parts: Path, limit: int) -> None:
    """Write parts of at most `limit` bytes into parts/1, parts/2, ..."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.endswith(".part"))
    contents = {path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in files}
    jobs = [(path, at) for path in files for at in range(0, max(path.stat().st_size, 1), PIECE)]
    number, held = 0, limit
    with ProcessPoolExecutor() as pool:
        for (path, at), packed in zip(jobs, pool.map(_pack, jobs), strict=True):
            if held + len(packed) > limit:
                number, held = number + 1, 0
                (parts / str(number)).mkdir(parents=True, exist_ok=True)
                (parts / str(number) / "contents.json").write_text(json.dumps(contents, indent=1))
            (parts / str(number) / f"{path.name}.{at // PIECE:05d}.xz").write_bytes(packed)
            held += len(packed)
    print(f"{len(files)} files, {sum(map(_size, contents.values())):,} bytes, in {number} parts of at most {limit:,}")


def join(folder: Path, parts: list[Path]) -> None:
    """Put the files together again and compare their SHA256; what is missing or damaged is named."""
    pieces = {path.name: path for part in parts for path in sorted(part.rglob("*.xz"))}
    found = sorted(path for part in parts for path in part.rglob("contents.json"))
    if not found:
        sys.exit(f"no contents.json in {', '.join(map(str, parts))}; name the folders that split made")
    contents = json.loads(found[0].read_text())
    folder.mkdir(parents=True, exist_ok=True)
    for name, facts in contents.items():
        with (folder / f"{name}.part").open("wb") as file:
            file.truncate(facts["bytes"])
    names = [f"{name}.{at:05d}.xz" for name in contents for at in range(-(-max(_size(contents[name]), 1) // PIECE))]
    missing = [name for name in names if name not in pieces]
    if missing:
        sys.exit(
            f"{len(missing)} of {len(names)} pieces are missing, first {missing[0]}; name all folders that split made"
        )
    with ProcessPoolExecutor() as pool:
        for _ in pool.map(_unpack, [(pieces[name], folder) for name in names]):
            pass
        beside = [folder / f"{name}.part" for name in contents]
        for path, digest in zip(beside, pool.map(_digest, beside), strict=True):
            name = path.name.removesuffix(".part")
            if digest != contents[name]["sha256"]:
                sys.exit(f"{name} has SHA256 {digest}, expected {contents[name]['sha256']}; carry the parts again")
            os.replace(path, folder / name)
    print(f"{len(contents)} files, {sum(map(_size, contents.values())):,} bytes, all as they were")


def _size(facts: dict[str, int]) -> int:
    return facts["bytes"]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _pack(job: tuple[Path, int]) -> bytes:
    path, at = job
    with path.open("rb") as file:
        file.seek(at)
        return lzma.compress(file.read(PIECE), filters=FILTERS)


def _unpack(job: tuple[Path, Path]) -> None:
    path, folder = job
    name, number, _ = path.name.rsplit(".", 2)
    with (folder / f"{name}.part").open("r+b") as file:
        file.seek(int(number) * PIECE)
        file.write(lzma.decompress(path.read_bytes()))


def main() -> None:
    """Read the arguments and split or join."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("split", "join"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("parts", type=Path, nargs="+")
    parser.add_argument("--limit", type=int, default=48, help="MiB of a part")
    given = parser.parse_args()
    if given.what == "split":
        split(given.folder, given.parts[0], given.limit << 20)
    else:
        join(given.folder, given.parts)


if __name__ == "__main__":
    main()
