"""Fine-tune all of a GPT2_ML of 1.39 B parameters on a CPU: peak memory, planned beside measured, and speed.

    python benchmarks/finetune_memory.py FOLDER [--precision float32|bfloat16] [--steps 3] [--num-layers 6]

The checkpoint is random, in the published one's format (load_large.py writes it into FOLDER once). Batch 1, sequence
1,024, AdaFactor by gpt2-ml's recipe, update in backward, recomputation; bfloat16 weights are rounded stochastically.
Measured is the most resident memory of the process since torch and Hanmo were imported, over what was resident then.
"""

import argparse
import gc
import json
import subprocess
import sys
import time
from pathlib import Path

import load_large


def main() -> None:
    """Write the checkpoint if it is not there; train in a fresh process, so that writing it leaves no trace."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--sequence", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--num-layers", type=int, default=48, help="fewer layers, for a trial")
    parser.add_argument("--tiny", action="store_true", help="a model of a few thousand parameters, for a test")
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    prefix = given.folder / "model.ckpt-100000"
    if given.train:
        print(json.dumps(train(prefix, given)))
        return
    if not prefix.with_name(prefix.name + ".index").is_file():
        given.folder.mkdir(parents=True, exist_ok=True)
        load_large.MEGA["num_hidden_layers"] = given.num_layers
        if given.tiny:
            small = {"vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
            load_large.MEGA.update(small, intermediate_size=256, max_position_embeddings=64)
        load_large.write(prefix)
    command = [sys.executable, __file__, *sys.argv[1:], "--train"]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(json.dumps(found, indent=1))
    planned, measured = found["planned_bytes"] / 2**30, found["measured_bytes"] / 2**30
    print(
        f"{found['parameters']:,} parameters, {given.precision}: planned {planned:.2f} GiB, "
        f"measured {measured:.2f} GiB ({measured / planned - 1:+.1%}); {found['seconds_per_step']:.1f} s a step, "
        f"{found['tokens_per_second']:.1f} tokens/s"
    )


def train(prefix: Path, given: argparse.Namespace) -> dict[str, float | list[float]]:
    """Load, make the steps, say what they took."""
    import torch

    import hanmo
    from hanmo.training.args import TrainArgs
    from hanmo.training.loss import next_token_loss
    from hanmo.training.memory import plan, return_freed_memory
    from hanmo.training.optim.adafactor import AdaFactor
    from hanmo.training.optim.in_backward import UpdateInBackward
    from hanmo.training.optim.schedule import parameter_groups

    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    return_freed_memory()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    dtype = torch.bfloat16 if given.precision == "bfloat16" else None
    model = hanmo.load(prefix, dtype=dtype).model.train()
    loaded = _status("VmHWM") - before
    sequence = min(given.sequence, model.config.main.context)
    model.main.recompute = True
    groups = parameter_groups(model.named_parameters(), lr=1e-4, weight_decay=0.01)
    updates = UpdateInBackward(AdaFactor(groups, "gpt2-ml"))
    seconds, losses = [], []
    for _ in range(given.steps):
        ids = torch.randint(1, model.config.vocab_size, (1, sequence + 1))
        start = time.perf_counter()
        loss = next_token_loss(model, ids)
        torch.autograd.backward(loss)
        updates.finish()
        seconds.append(time.perf_counter() - start)
        losses.append(float(loss.detach()))
    planned = plan(model.config, TrainArgs(precision=given.precision, sequence=sequence))
    middle = sorted(seconds)[len(seconds) // 2]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "planned_bytes": planned.peak,
        "measured_bytes": _status("VmHWM") - before,
        "peak_after_loading_bytes": loaded,
        "seconds_per_step": middle,
        "tokens_per_second": sequence / middle,
        "seconds": seconds,
        "losses": losses,
    }


def _status(key: str) -> int:
    """Read a size of this process, in bytes."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


if __name__ == "__main__":
    main()
