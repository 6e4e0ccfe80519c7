"""Put a trained small model into a folder as it ships: 8 bits, vocabulary, card with its measurements, sums.

    python examples/small_model/ship.py RUN DATA CORPUS [--to hanmo/assets/small]

RUN is the folder that train.py filled (final.json says which weights are the best), DATA the one that prepare.py made,
CORPUS the text. Everything the card says of this model is measured here or was measured by train.py; nothing is chosen
by hand.
"""

import argparse
import hashlib
import json
import lzma
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import hanmo
from hanmo.bench.quality import measure_quality
from hanmo.bench.subject import Subject
from hanmo.checkpoint.staged import atomic_folder
from hanmo.generate.text import write
from hanmo.training.log import draw_curves, read_log

HERE = Path(__file__).parent
PROMPTS = (
    "今天天气不错", "双十一", "科学空间", "床前明月光", "话说", "第一条 ", "春眠不觉晓", "【诗】", "【小说】", "【文】",
)  # fmt: skip
GENERATION = {"top_k": 20, "repetition_penalty": 1.1}  # chosen by defaults.py
RUN_LENGTH = 30  # characters of a run that counts as recited
LIMIT = 24_000_000  # bytes of the weights that may ship


def main() -> None:
    """Save, measure, write the card; the folder appears when all of it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("run", "data", "corpus"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--to", type=Path, default=Path("hanmo/assets/small"))
    parser.add_argument("--documents", type=int, default=5, help="of each held-out file, to measure rounding on")
    parser.add_argument("--samples", type=int, default=20, help="of each prompt, to look for recitation in")
    given = parser.parse_args()
    console = Console(stderr=True)
    final = json.loads((given.run / "final.json").read_text("utf-8"))
    facts = json.loads((given.data / "train.json").read_text("utf-8"))
    made = given.to.with_name(f"{given.to.name}.new")  # what ships now holds more than a checkpoint: it goes last
    with atomic_folder(made, overwrite=False) as folder:
        trained = hanmo.load(given.run / final["weights"])
        hanmo.save(trained.model, folder / "model", dtype=torch.int8)
        for name in ("hanmo.json", "model.safetensors"):
            (folder / "model" / name).rename(folder / name)
        (folder / "model").rmdir()
        if (size := (folder / "model.safetensors").stat().st_size) > LIMIT:
            raise SystemExit(f"the weights take {size:,} bytes, more than {LIMIT:,}; train a smaller model")
        shutil.copyfile(given.data / "vocab.txt", folder / "vocab.txt")
        told = {"distinct_unknown": facts["distinct_unknown"]}
        (folder / "training.json").write_text(json.dumps(told) + "\n", "utf-8")
        (folder / "generation_config.json").write_text(json.dumps(GENERATION) + "\n", "utf-8")
        console.print("measuring the rounded weights")
        quality = _quality(given.run / final["weights"], given.corpus, given.documents, facts["distinct_unknown"])
        console.print("writing samples")
        samples, recited = _samples(folder, given.corpus, given.samples)
        shutil.copyfile(draw_curves(given.run, unit="bits_per_character"), folder / "curves.png")
        (folder / "MODEL_CARD.md").write_text(_card(given.run, final, quality, samples, recited, size), "utf-8")
        names = sorted(path.name for path in folder.iterdir())
        sums = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}" for name in names]
        (folder / "SHA256SUMS").write_text("\n".join(sums) + "\n", "utf-8")
    if given.to.is_dir():
        shutil.rmtree(given.to)
    made.rename(given.to)
    console.print(f"{given.to}: {final['bits_per_character']:.4f} bits per character, {size:,} bytes of weights")


def _quality(model: Path, corpus: Path, documents: int, distinct_unknown: int) -> dict[str, float]:
    """Measure each kind of weights on the first documents of every held-out file; bits per character over all."""
    bits: dict[str, float] = {}
    characters = 0
    for path in sorted(corpus.glob("valid-*.jsonl.xz")):
        found = measure_quality(Subject(model), path, documents=documents, distinct_unknown=distinct_unknown)
        characters += found["characters"]
        for row in found["rows"]:
            bits[row["weights"]] = bits.get(row["weights"], 0) + row["bits_per_character"] * found["characters"]
    return {kind: total / characters for kind, total in bits.items()}


def _samples(model: Path, corpus: Path, count: int) -> tuple[list[tuple[str, str]], dict[str, float]]:
    """Write `count` texts for each prompt; give the first two of each, and what share of all runs is training text."""
    writer = hanmo.load(model)
    how = writer.generation_config(max_chars=160, min_chars=40)
    written = write(writer.engine, writer.tokenizer, PROMPTS, n=count, config=how, seed=0)
    texts = [(prompt, each.text) for prompt, row in zip(PROMPTS, written, strict=True) for each in row]
    runs = [run for prompt, text in texts for run in _runs(prompt + text)]
    wanted = set(runs)
    seen = {run for text in _training(corpus) for run in _runs(text) if run in wanted}
    told = {"texts": len(texts), "runs": len(runs), "share": sum(run in seen for run in runs) / max(1, len(runs))}
    return [texts[place * count + k] for place in range(len(PROMPTS)) for k in (0, 1)], told


def _runs(text: str) -> Iterator[str]:
    text = re.sub(r"\s", "", text)
    return (text[at : at + RUN_LENGTH] for at in range(len(text) - RUN_LENGTH + 1))


def _training(corpus: Path) -> Iterator[str]:
    for path in sorted(corpus.glob("train-*.jsonl.xz")):
        with lzma.open(path, "rt", encoding="utf-8") as file:
            yield from (json.loads(line)["text"] for line in file)


def _card(
    run: Path,
    final: dict[str, Any],
    quality: dict[str, float],
    samples: Sequence[tuple[str, str]],
    recited: dict[str, float],
    size: int,
) -> str:
    bar = {row[0]: float(row[2]) for row in _rows(HERE / "README.md", "bits per character")}
    last = [record for record in read_log(run / "log.jsonl") if "loss" in record][-1]
    files = {name: found for name, found in final["files"].items() if name in bar}
    bits = {name: found["bits_per_character"] for name, found in sorted(files.items())}
    table = [f"| {name} | {own:.4f} | {bar[name]:.4f} | {own / bar[name]:.3f} |" for name, own in bits.items()]
    whole, ngram = final["bits_per_character"], bar["together"]
    met = whole <= 0.8 * ngram and all(own < bar[name] for name, own in bits.items())
    shown = [f"> {prompt}{text}".replace("\n", "\n> ") for prompt, text in samples]
    kinds = [
        f"| {kind} | {bits:.4f} | {100 * (bits / quality['float32'] - 1):+.2f} % |" for kind, bits in quality.items()
    ]
    before = _before(final)
    return (HERE / "card.md").read_text("utf-8").format(
        parameters=final["parameters"], size=size, arguments=_command(final), device=final["device"],
        hours=final["seconds"] / 3600, steps=final["steps"], tokens=last["tokens"], before=before,
        table="\n".join(table), whole=whole, ngram=ngram, ratio=whole / ngram, goal="met" if met else "not met",
        kinds="\n".join(kinds), recited=100 * recited["share"], texts=int(recited["texts"]), runs=int(recited["runs"]),
        samples="\n\n".join(shown),
    )  # fmt: skip


def _before(final: dict[str, Any]) -> str:
    """Say what the weights that a run began with had read."""
    start = final["arguments"].get("start", "None")
    if start == "None":
        return ""
    last = [record for record in read_log(Path(start).parent / "log.jsonl") if "loss" in record][-1]
    return f" behind the {last['total']:,} updates, {last['tokens']:,} tokens, of an earlier run"


def _command(final: dict[str, Any]) -> str:
    own = (
        "num_layers",
        "hidden_size",
        "positions",
        "rows",
        "optimizer",
        "lr",
        "warmup",
        "schedule",
        "bfloat16",
        "times",
        "seed",
    )
    return ", ".join(f"{name} {final['arguments'][name]}" for name in own if name in final["arguments"])


def _rows(path: Path, column: str) -> list[list[str]]:
    """Read the table of a Markdown page that has this column last."""
    lines = path.read_text("utf-8").splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("|") and line.rstrip(" |").endswith(column))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("| ").split("|")])
    return found


if __name__ == "__main__":
    main()
