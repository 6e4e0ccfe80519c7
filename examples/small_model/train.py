r"""Train the small model from the folder that prepare.py made: one command, resumable, on a GPU or a CPU.

    python examples/small_model/train.py DATA OUT --minutes 18              the shipped model's size
    python examples/small_model/train.py DATA OUT --minutes 18 --resume
    python examples/small_model/train.py DATA OUT --minutes 118 --num-layers 4 --hidden-size 384 --positions 512 \
        --rows 16 --optimizer muon --lr 2e-3 --warmup 100 --bfloat16 --compile \
        --times pdauthors=4 …                                                 two cores, see README.md
    python examples/small_model/train.py DATA OUT --steps 100 --num-layers 2 --hidden-size 64 --positions 64 --rows 4

--times replaces the data's own readings, relative to each other. The last line is a try. Into OUT go last-STEP and
best-STEP (folders that Hanmo loads), log.jsonl, samples.txt, and at the end final.json: bits per character on every
held-out file, in float32, in windows that overlap by half.
"""

import argparse
import json
import platform
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from hanmo.checkpoint.load import Report
from hanmo.errors import HanmoError
from hanmo.families.gpt2_ml import gpt2_ml_config
from hanmo.model import Model
from hanmo.model_pipeline import ModelPipeline
from hanmo.tokenizers import Lossless
from hanmo.training import Settings
from hanmo.training.checkpoints import fill_from
from hanmo.training.data.pack import TokenEncoder
from hanmo.training.data.packed import PackedData, PackedFile
from hanmo.training.loop import Outcome, fit
from hanmo.training.score import evaluation, held_out
from hanmo.training.step import scale_outputs

# What the shuffled epochs of the run are measured in: the literary classics are read once in each.
UNIT = "classical-literary"
APART = ("zhouzuoren",)  # not free everywhere: scored apart, never part of the whole
PROMPTS = (
    "今天天气不错", "双十一", "科学空间", "床前明月光", "话说", "第一条 ", "【诗】", "【小说】", "【文】", "春眠不觉晓",
)  # fmt: skip


def main() -> None:
    """Read the arguments, train, and measure the best weights."""
    given = _arguments()
    console = Console()
    try:
        _train(given, console)
    except HanmoError as error:
        raise SystemExit(f"train.py: {error}") from None


def _train(given: argparse.Namespace, console: Console) -> None:
    # TF32 serves what autocast leaves in float32; the final measuring turns it off again.
    torch.set_float32_matmul_precision("high")
    tokenizer = Lossless(given.data / "vocab.txt")
    digest = TokenEncoder(tokenizer).sha256
    file = PackedFile(given.data / "train", vocabulary_sha256=digest)
    report = json.loads((given.data / "report.json").read_text("utf-8"))
    times = {**report["epochs"], **dict(given.times)}
    unit = times.get(UNIT, 1.0)
    data = PackedData(
        file,
        window=given.positions,
        rows=given.rows,
        seed=given.seed,
        weights={source: number / unit for source, number in times.items()},
        mark_share=report["mark_share"],
        bare_share=report["bare_share"],
    )
    config = gpt2_ml_config(
        vocab_size=tokenizer.vocab_size,
        num_layers=given.num_layers,
        hidden_size=given.hidden_size,
        positions=given.positions,
        dropout=given.dropout,
    )
    model = Model(config).initialize(given.seed)
    scale_outputs(model, given.num_layers)
    if given.start is not None:
        fill_from(model, given.start)
    model.to(given.device)
    count = sum(parameter.numel() for parameter in model.parameters())
    console.print(f"{count:,} parameters on {given.device}; {given.rows * given.positions:,} tokens a step")

    written = ModelPipeline(config, model, tokenizer, Report(), given.out)
    files = held_out(given.data, vocabulary_sha256=digest)
    unknown = file.facts["distinct_unknown"]
    options = {
        "unknown": tokenizer.special.unk,
        "documents": given.documents,
        "window": given.positions,
        "apart": APART,
    }
    half = torch.bfloat16 if given.bfloat16 else None
    outcome = fit(
        model,
        data,
        out=given.out,
        settings=_settings(given),
        evaluate=evaluation(files, distinct_unknown=unknown, dtype=half, **options),
        sample=partial(_sample, written, min(100, given.positions - 20)),
        beside=[given.data / "vocab.txt"],
        resume=given.resume,
        console=console,
    )
    if outcome.stopped:
        console.print(f"stopped after step {outcome.steps}; go on with --resume")
        return
    torch.set_float32_matmul_precision("highest")
    fill_from(model, outcome.folder)
    options |= {"documents": None, "stride": max(1, given.positions // 2)}
    exact = evaluation(files, distinct_unknown=unknown, **options)(model)
    _finish(given, outcome, {"parameters": count, **exact}, console)


def _sample(loaded: ModelPipeline, count: int, model: Model) -> str:
    """Continue each prompt."""
    model.eval()
    options = {"top_k": 20, "max_tokens": count, "max_chars": None, "stop": None, "seed": 0}
    texts = [f"{json.dumps(each, ensure_ascii=False)}\n{loaded.write(each, **options)[0]}" for each in PROMPTS]
    model.train()
    return "\n\n".join(texts)


def _finish(given: argparse.Namespace, outcome: Outcome, found: dict[str, object], console: Console) -> None:
    on = torch.cuda.get_device_name() if given.device.startswith("cuda") else platform.processor() or platform.machine()
    record = {
        "weights": outcome.folder.name, "steps": outcome.steps, "seconds": outcome.seconds, "device": on,
        "torch": torch.__version__, "arguments": {name: str(value) for name, value in vars(given).items()}, **found,
    }  # fmt: skip
    if given.device.startswith("cuda"):
        record["peak_bytes"] = torch.cuda.max_memory_allocated()
    beside = given.out / "final.json.part"
    beside.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", "utf-8")
    beside.replace(given.out / "final.json")
    console.print(f"{outcome.folder}: {found['bits_per_character']:.4f} bits per character over all held-out files")


def _settings(given: argparse.Namespace) -> Settings:
    return Settings(
        steps=given.steps,
        minutes=given.minutes,
        optimizer=given.optimizer,
        lr=given.lr,
        betas=(0.9, given.beta2),
        weight_decay=given.weight_decay,
        schedule=given.schedule,
        warmup=given.warmup,
        average=given.average,
        bfloat16=given.bfloat16,
        compile=given.compile,
        seed=given.seed,
        evaluate_every=given.evaluate_every,
        save_every=given.save_every,
        log_every=given.log_every,
    )


def _arguments() -> argparse.Namespace:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder that prepare.py made")
    parser.add_argument("out", type=Path)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="as many steps as fit")
    length.add_argument("--steps", type=int)
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in OUT")
    parser.add_argument("--start", type=Path, help="begin with the weights of this folder, of the same size")
    parser.add_argument("--num-layers", type=int, default=8)
    parser.add_argument("--hidden-size", type=int, default=448)
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--rows", type=int, default=64, help="windows in a batch")
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--beta2", type=float, default=0.95)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--schedule", default="cosine")
    parser.add_argument("--warmup", type=int, default=400)
    parser.add_argument("--average", type=float, default=0.98, help="momentum of the weights' average, every 8 steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=gpu)
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=gpu, help="compute matrices in it")
    parser.add_argument(
        "--times", action="append", default=[], type=_times, metavar="SOURCE=N", help="read it so often"
    )
    parser.add_argument("--evaluate-every", type=int, default=2000)
    parser.add_argument("--save-every", type=int, default=1000)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--documents", type=int, help="measure the first so many of each held-out file, until the end")
    return parser.parse_args()


def _times(text: str) -> tuple[str, float]:
    source, _, number = text.partition("=")
    return source, float(number)


if __name__ == "__main__":
    main()
