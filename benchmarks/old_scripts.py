"""Run bert4keras's examples under `hanmo run` on made data, and print a table of what each did.

    git clone https://github.com/bojone/bert4keras
    pip install 'hanmo[keras]' rouge nltk pandas cchess opencv-python-headless
    python benchmarks/old_scripts.py bert4keras/examples
    python benchmarks/old_scripts.py bert4keras/examples --only task_sentiment_albert --keep folder

Only paths, sizes, numbers of steps and the weights of the image model are replaced in their texts; the data are in
old_scripts_data.py. Each runs in a folder and a process of its own. A training script passes if every `fit` ends with a
mean loss of an epoch at least 2 % below that of the first. Exits with 1 if one fails.
"""

import argparse
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import old_scripts_data

FALL = 0.02  # share of the first loss
LIMIT = 300  # seconds a script may take
EPOCHS, STEPS, BATCH = 4, 12, 8
SERVED = "/gen_synonyms?n=3&text=" + quote("今天天气不错")

# What is replaced in every script, and in single ones: a pattern and its replacement.
SIZES = {
    r"\bepochs ?= ?\d+": f"epochs={EPOCHS}",
    r"\bsteps_per_epoch ?= ?\d+": f"steps_per_epoch={STEPS}",
    r"\bbatch_size = \d+": f"batch_size = {BATCH}",
    r"\bnum_classes = 119": "num_classes = 4",
}
MORE = {
    "basic_gibbs_sampling_via_mlm": {
        r"\bsteps = 10000": "steps = 100",
        r"\bconverged_steps = 1000": "converged_steps = 10",
    },
    "task_conditional_language_model": {r"maxlen = 128": "maxlen = 24"},
    "task_image_caption": {
        r"maxlen = 64": "maxlen = 16",
        r"img_size = 299": "img_size = 64",
        r"MobileNetV2\(include_top=False": "MobileNetV2(weights=None, alpha=0.35, include_top=False",
    },
    "task_language_model": {r"maxlen = 256": "maxlen = 96"},
    "task_sentiment_albert": {r"1000: 1,": "10: 1,", r"2000: 0\.1": "100: 0.1"},
    "task_sentiment_virtual_adversarial_training": {r"train_frac = 0\.01": "train_frac = 0.5"},
}
# An example that imports another one.
BESIDE = {"task_sentiment_integrated_gradients": ["task_sentiment_albert"]}
LOSS = re.compile(r"\bloss: ([-+.\deinfa]+)")


@dataclass
class Result:
    """What a script did.

    losses: the first and the last one of every fit.   checked: the exit code of `hanmo run --check`.
    """

    name: str
    verdict: str
    losses: list[tuple[float, float]]
    printed: str
    seconds: float
    checked: int

    @property
    def passed(self) -> bool:
        """Say whether it ran to its end, and its losses fell."""
        return self.verdict in ("runs", "falls")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="bert4keras's folder of examples")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of scripts, without .py")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where data and outputs are kept; made if missing")
    arguments = parser.parse_args()
    scripts = sorted(arguments.folder.glob("[bt]as*_*.py"))
    if arguments.only:
        scripts = [script for script in scripts if script.stem in arguments.only]
    if not scripts:
        parser.error(f"no examples in {arguments.folder}; expected basic_*.py and task_*.py")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.keep or Path(temporary)).resolve()
        if not (folder / "data").exists():
            (folder / "data").mkdir(parents=True)
            old_scripts_data.make(folder / "data")
        print("| script | check | verdict | loss | seconds | last line |\n|---|---|---|---|---:|---|", flush=True)
        results = [run(script, folder) for script in scripts]
    print(f"\n{sum(result.passed for result in results)} of {len(results)} scripts")
    return int(not all(result.passed for result in results))


def run(script: Path, folder: Path) -> Result:
    """Run one script with its sizes replaced, and print its row of the table."""
    name, place = script.stem, folder / "runs" / script.stem / "folder"
    if place.exists():
        shutil.rmtree(place.parent)
    place.mkdir(parents=True)
    (place / "datasets").symlink_to(folder / "data/datasets")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for each in (name, *BESIDE.get(name, ())):
        text = replaced(script.with_name(f"{each}.py").read_text("utf-8"), folder / "data/root", MORE.get(each, {}))
        (place / f"{each}.py").write_text(text.replace("port=8864", f"port={port}"), "utf-8")
    command = [sys.executable, "-m", "hanmo.cli", "run"]
    environment = os.environ | {"TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    with (place / "check.txt").open("w", encoding="utf-8") as file:
        checked = subprocess.run([*command, "--check", f"{name}.py"], cwd=place, stdout=file, stderr=file).returncode
    start = time.monotonic()
    with (place / "output.txt").open("w", encoding="utf-8") as file:
        process = subprocess.Popen([*command, f"{name}.py"], cwd=place, stdout=file, stderr=file, env=environment)
        answer = wait(process, f"http://127.0.0.1:{port}{SERVED}" if "WebServing" in script.read_text("utf-8") else "")
    output = (place / "output.txt").read_text("utf-8", "replace")
    losses = losses_of(output)
    printed = answer or next((line for line in reversed(output.splitlines()) if line.strip()), "").strip()
    verdict = judge(process.returncode, bool(answer), ".fit" in script.read_text("utf-8"), losses, output)
    result = Result(name, verdict, losses, printed, time.monotonic() - start, checked)
    shown = "; ".join(f"{first:.3f} → {last:.3f}" for first, last in losses)
    check, last = "ok" if checked == 0 else f"exit {checked}", result.printed.replace("|", "\\|")[:100]
    print(f"| {name} | {check} | {verdict} | {shown} | {result.seconds:.0f} | {last} |", flush=True)
    return result


def replaced(text: str, root: Path, more: dict[str, str]) -> str:
    text = text.replace("'/root/", f"'{root}/")
    for pattern, replacement in {**SIZES, **more}.items():
        text = re.sub(pattern, replacement, text)
    return text


def wait(process: subprocess.Popen[bytes], address: str) -> str:
    """Wait for the end of a script, or for the answer of the server that it starts; stop it then or at the limit."""
    end, answer = time.monotonic() + LIMIT, ""
    while process.poll() is None and time.monotonic() < end and not answer:
        time.sleep(0.2)
        answer = ask(address) if address else ""
    if process.poll() is None:
        process.kill()
    process.wait()
    return answer


def ask(address: str) -> str:
    """Return what a server answers, or nothing while none listens."""
    try:
        with urlopen(address, timeout=60) as reply:
            return reply.read().decode("utf-8")
    except OSError:
        return ""


def losses_of(output: str) -> list[tuple[float, float]]:
    """Return the first and the last loss that every fit printed."""
    fits = re.split(r"Epoch 1/\d+", output)[1:]
    found = [[float(loss) for loss in LOSS.findall(fit)] for fit in fits]
    return [(losses[0], losses[-1]) for losses in found if losses]


def judge(code: int, answered: bool, trains: bool, losses: list[tuple[float, float]], output: str) -> str:
    missing = re.search(r"No module named '([\w.]+)'", output)
    if missing and code:
        return f"needs the package {missing[1]}"
    if code and not answered:
        return "fails" if code > 0 else "stopped at the limit"
    if not trains:
        return "runs"
    falls = losses and all(last <= first * (1 - FALL) for first, last in losses)
    return "falls" if falls else "does not fall"


if __name__ == "__main__":
    sys.exit(main())
