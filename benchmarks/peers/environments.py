"""The peers' own virtual environments: what is installed into each, made when it is missing or out of date."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["ENVIRONMENTS", "Environment", "python_of"]


@dataclass(frozen=True)
class Environment:
    """Packages of one peer.

    steps: what `pip install` is given, one call after another.   newest: the newest Python that the peer runs under.
    variables: what its building needs in the process's environment.
    """

    steps: tuple[tuple[str, ...], ...]
    newest: tuple[int, int] | None = None
    variables: dict[str, str] = field(default_factory=dict)


# pip would take a wheel that it built before, for other instructions.
_COMPILED = (("--no-cache-dir", "--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.36"),)
_PARTS = "-DMTMD_BUILD=OFF -DLLAVA_BUILD=OFF"
_AVX512 = ("AVX", "AVX2", "FMA", "F16C", "BMI2", "AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16")

ENVIRONMENTS = {
    "llama.cpp": Environment((("xllamacpp==2026.10.11549", "gguf==0.19.0", "numpy<3"),)),
    # The wheel above is built for any x86-64 with AVX2; these two are compiled here: for all that the processor has,
    # and without AMX, whose code ended by an illegal instruction on a virtual machine.
    "llama.cpp-native": Environment(_COMPILED, variables={"CMAKE_ARGS": f"-DGGML_NATIVE=ON {_PARTS}"}),
    "llama.cpp-avx512": Environment(
        _COMPILED,
        variables={"CMAKE_ARGS": " ".join(["-DGGML_NATIVE=OFF", *(f"-DGGML_{each}=ON" for each in _AVX512), _PARTS])},
    ),
    "transformers": Environment((("transformers==5.23.0", "torch==2.13.0", "numpy<3", "accelerate==1.15.0"),)),
    # bert4keras asks for a Keras that TensorFlow 2.15 does not have; run_bert4keras.py gives it TensorFlow's.
    "bert4keras": Environment(
        (("tensorflow-cpu==2.15.1", "numpy<2"), ("--no-deps", "bert4keras==0.11.5")), newest=(3, 11)
    ),
}


def python_of(peer: str, folder: Path) -> Path:
    """Give the Python of a peer's environment in a folder, which is made and filled first if need be.

    Raises SystemExit if no Python is old enough, CalledProcessError if pip fails, having said why.
    """
    wanted, place = ENVIRONMENTS[peer], folder.resolve() / peer
    python, mark = place / "bin" / "python", place / "installed.json"
    if mark.is_file() and json.loads(mark.read_text("utf-8")) == [list(step) for step in wanted.steps]:
        return python
    print(f"installing {peer} into {place}", file=sys.stderr)
    if not python.exists():
        subprocess.run([_interpreter(peer, wanted.newest), "-m", "venv", str(place)], check=True)
    for step in wanted.steps:
        command = [str(python), "-m", "pip", "install", "--quiet", *step]
        subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ | wanted.variables)
    mark.write_text(json.dumps(wanted.steps), "utf-8")
    return python


def _interpreter(peer: str, newest: tuple[int, int] | None) -> str:
    if newest is None or sys.version_info[:2] <= newest:
        return sys.executable
    for minor in range(newest[1], 8, -1):
        if found := shutil.which(f"python3.{minor}"):
            return found
    wanted = ".".join(map(str, newest))
    raise SystemExit(f"{peer} runs under Python {wanted} at most, and none is on PATH; install one, or leave it out")
