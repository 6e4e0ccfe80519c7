"""Carry trained weights in parts of bounded size.

    python examples/small_model/parts.py split FOLDER PARTS [--dtype bfloat16] [--mib 15]     FOLDER: best-STEP of a run
    python examples/small_model/parts.py join PARTS FOLDER                                    float32 again

PARTS gets weights.000, weights.001 …, the other files of the folder, and parts.json with sizes and SHA256. bfloat16
halves the bytes and keeps 8 bits of each weight's mantissa.
"""

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load, load_file, save, save_file

WEIGHTS = "model.safetensors"


def split(folder: Path, parts: Path, *, dtype: torch.dtype, limit: int) -> None:
    """Write the weights as `dtype` into files of at most `limit` bytes, and copy the files beside them but state.pt."""
    parts.mkdir(parents=True, exist_ok=True)
    data = save({name: tensor.to(dtype) for name, tensor in load_file(folder / WEIGHTS).items()})
    names = []
    for at in range(0, len(data), limit):
        names.append(f"weights.{at // limit:03d}")
        (parts / names[-1]).write_bytes(data[at : at + limit])
    for path in folder.iterdir():
        if path.is_file() and path.name not in (WEIGHTS, "state.pt"):
            shutil.copyfile(path, parts / path.name)
    facts = {"from": folder.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "parts": names}
    (parts / "parts.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(f"{folder.name}: {len(data):,} bytes as {dtype} in {len(names)} parts")


def join(parts: Path, folder: Path) -> None:
    """Put the parts together, compare the SHA256 and write a folder with float32 weights."""
    facts = json.loads((parts / "parts.json").read_text())
    missing = [name for name in facts["parts"] if not (parts / name).is_file()]
    if missing:
        sys.exit(f"{parts} lacks {', '.join(missing)} of {len(facts['parts'])} parts; copy them there")
    data = b"".join((parts / name).read_bytes() for name in facts["parts"])
    digest = hashlib.sha256(data).hexdigest()
    if digest != facts["sha256"]:
        sys.exit(f"the parts in {parts} have SHA256 {digest}, expected {facts['sha256']}; carry them again")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.float().contiguous() for name, tensor in load(data).items()}
    save_file(tensors, folder / f"{WEIGHTS}.part", metadata={"format": "pt"})
    (folder / f"{WEIGHTS}.part").replace(folder / WEIGHTS)
    for path in parts.iterdir():
        if path.is_file() and path.name != "parts.json" and not path.name.startswith("weights."):
            shutil.copyfile(path, folder / path.name)
    print(f"{folder}: {facts['from']}, {len(tensors)} tensors, as they were")


def main() -> None:
    """Read the arguments and split or join."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("split", "join"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--mib", type=float, default=15, help="of a part")
    given = parser.parse_args()
    if given.what == "split":
        split(given.source, given.target, dtype=getattr(torch, given.dtype), limit=int(given.mib * (1 << 20)))
    else:
        join(given.source, given.target)


if __name__ == "__main__":
    main()
