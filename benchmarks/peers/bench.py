"""What is measured: the checkpoint and its vocabulary, made up if need be, and the workers that open it or its sizes.

Knows where files and environments lie and what each worker is told; takes no times but to choose llama.cpp's options.
"""

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.environments import python_of
from peers.process import Worker

__all__ = ["HERE", "Bench", "find_checkpoint", "find_vocabulary"]

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Bench:
    """What every part needs: the checkpoint, where peers live, how many processors and rounds.

    vocabulary: the checkpoint's.   small: a small model, for the start from the shell.
    """

    checkpoint: Path
    vocabulary: Path
    envs: Path
    threads: int
    rounds: int
    peers: tuple[str, ...]
    article_tokens: int
    small: Path | None

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes for the peers; llama.cpp's fastest kernels want a vocabulary that 8 divides."""
        config = json.loads((self.checkpoint.parent / "config.json").read_text("utf-8"))
        names = {
            "num_layers": "num_hidden_layers",
            "hidden_size": "hidden_size",
            "num_heads": "num_attention_heads",
            "inner": "intermediate_size",
            "positions": "max_position_embeddings",
            "vocab_size": "vocab_size",
        }
        found = {ours: int(config[theirs]) for ours, theirs in names.items()}
        return {**found, "vocab_size": found["vocab_size"] - found["vocab_size"] % 8}

    def log(self, name: str) -> Path:
        """Give the file for what a process prints."""
        folder = self.envs / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name.replace(' ', '-')}.log"

    def hanmo(self, weights: str, engine: str = "openvino") -> Worker:
        """Open Hanmo."""
        options = {"checkpoint": str(self.checkpoint), "weights": weights, "threads": self.threads, "engine": engine}
        name = f"Hanmo's torch {weights}" if engine == "torch" else f"Hanmo {weights}"
        return Worker(name, sys.executable, HERE / "run_hanmo.py", options, self.log(name))

    def transformers(self, dtype: str) -> Worker:
        """Open transformers."""
        python = python_of("transformers", self.envs)
        options = {"dtype": dtype, "threads": self.threads, **self.sizes}
        name = f"transformers {dtype}"
        return Worker(name, python, HERE / "run_transformers.py", options, self.log(name))

    def llamacpp(self, peer: str, kind: str, flash: str, **options: Any) -> Worker:
        """Open llama.cpp over a GGUF file, which is written first if need be."""
        script = "run_llamacpp.py" if peer == "llama.cpp" else "run_llamacpp_native.py"
        options |= {"model": str(self.gguf(kind)), "threads": self.threads, "flash": flash, **self.sizes}
        log = self.log(f"{peer} {kind} flash {flash}")
        return Worker(f"{peer} {kind}", python_of(peer, self.envs), HERE / script, options, log)

    def fastest_llamacpp(self, peer: str, kind: str, do: str, **arguments: Any) -> Worker:
        """Open llama.cpp with its flash attention on or off, whichever is faster at what will be asked."""
        times = {}
        for flash in ("on", "off"):
            with self.llamacpp(peer, kind, flash) as worker:
                found = [worker.ask(do, **arguments) for _ in range(2)][-1]
                times[flash] = statistics.median(found) if isinstance(found, list) else found
        return self.llamacpp(peer, kind, min(times, key=lambda flash: times[flash]))

    def gguf(self, kind: str) -> Path:
        """Give the GGUF file of the checkpoint's sizes, written if it is not there."""
        model = self.envs.resolve() / "gguf" / f"{kind}-{'-'.join(map(str, self.sizes.values()))}.gguf"
        if not model.is_file():
            model.parent.mkdir(exist_ok=True)
            print(f"writing {model}", file=sys.stderr)
            command = [python_of("llama.cpp", self.envs), HERE / "gguf_file.py", model]
            subprocess.run([*map(str, command), json.dumps({"kind": kind, **self.sizes})], check=True)
        return model


def find_checkpoint(given: Path | None, envs: Path) -> Path:
    """Give the checkpoint's prefix: the one named, or a synthetic GPT2_ML of 1.39 B in `envs`, written if need be.

    Raises SystemExit if there is none where it was named.
    """
    if given is not None:
        if not Path(f"{given}.index").is_file() or not (given.parent / "config.json").is_file():
            raise SystemExit(f"no TensorFlow checkpoint {given}.index with a config.json beside it; give its prefix")
        return given.resolve()
    prefix = envs.resolve() / "synthetic" / "model.ckpt-100000"
    if not Path(f"{prefix}.index").is_file():
        from load_large import write

        print(f"writing 5.6 GB to {prefix.parent}", file=sys.stderr)
        prefix.parent.mkdir(parents=True, exist_ok=True)
        write(prefix)
    return prefix


def find_vocabulary(checkpoint: Path, envs: Path) -> Path:
    """Find the vocabulary, or make one up of which every word is a character, as nearly every one of GPT2_ML's is."""
    beside = checkpoint.parent / "vocab.txt"
    if beside.is_file():
        return beside
    words = ["[PAD]", *(f"[unused{number}]" for number in range(1, 100)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = [chr(code) for code in (*range(0x4E00, 0x9FFF), *range(0x3400, 0x4DB5))]
    path = envs.resolve() / "vocab.txt"
    rows = json.loads((checkpoint.parent / "config.json").read_text("utf-8"))["vocab_size"]
    path.write_text("\n".join((words + characters)[: rows - 2]) + "\n", "utf-8")
    return path
