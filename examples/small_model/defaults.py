"""Choose the small model's generation defaults: the settings whose texts are nearest to held-out ones.

    python examples/small_model/defaults.py DATA [--model FOLDER] [--judge-tokens 20000000] [--out defaults.json]

DATA holds train.* and valid-*.*, as prepare.py makes them. Each prompt is the beginning of a held-out document; a
setting writes one text for each (seed 0), and the document's own next tokens are the reference. Measured for both:

    judge     bits per token of a 5-gram model of the training text, which takes no part in generation
    repeats   share of the 4-grams of a text that it has had before
    distinct  number of different bigrams of all texts, over the number of bigrams

The distance of a setting is the sum of |log(measure / measure of the reference)|, 0.01 added to both repeats.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import hanmo
from hanmo.generate.loop import Limits, Token, sample
from hanmo.generate.sampling import Sampling
from hanmo.model_pipeline import ModelPipeline
from hanmo.training.data.packed import PackedFile

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from ngram import KneserNey, documents_of

READ, WRITTEN, A_FILE = 24, 120, 4  # tokens of a prompt, of a text; documents of each held-out file
DRAWS = ({"top_k": 5}, {"top_k": 20}, {"top_p": 0.9})
TEMPERATURES = (1.0,)
PENALTIES = (1.0, 1.1, 1.2, 1.3)
N_GRAMS = (None, 3, 4)


def main() -> None:
    """Measure every setting, print the nearest and the present one, and write all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, default=Path("hanmo/assets/small"))
    parser.add_argument("--judge-tokens", type=int, default=20_000_000, help="of the text that the judge counts")
    parser.add_argument("--out", type=Path, default=Path("defaults.json"))
    given = parser.parse_args()
    train = PackedFile(given.data / "train")
    stream, end = documents_of(train)[: given.judge_tokens], train.facts["end"]
    judge = KneserNey(np.append(stream, end), order=5, vocab_size=train.facts["vocabulary_size"], end=end)
    prompts, references = held_out(given.data, end)
    loaded = hanmo.load(given.model)
    expected = measures(judge, prompts, references, end)
    banned = loaded.generation_config().sampling.banned
    rows = []
    for draw, temperature, penalty, n_gram in itertools.product(DRAWS, TEMPERATURES, PENALTIES, N_GRAMS):
        told = {**draw, "temperature": temperature, "repetition_penalty": penalty, "no_repeat_ngram": n_gram}
        texts = write(loaded, prompts, Sampling(**told, banned=banned), end)
        found = measures(judge, prompts, texts, end)
        rows.append({"settings": told, **found, "distance": distance(found, expected)})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    rows.sort(key=lambda row: row["distance"])
    given.out.write_text(json.dumps({"prompts": len(prompts), "reference": expected, "rows": rows}, indent=1), "utf-8")
    print(f"reference {expected}")
    for row in rows[:8]:
        print(row)


def held_out(data: Path, end: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return the beginnings of held-out documents, with the end mark before them, and what follows each."""
    prompts, following = [], []
    for path in sorted(data.glob("valid-*.json")):
        file, taken = PackedFile(path.with_suffix("")), 0
        for row in file.documents:
            ids = file.ids[row["start"] : row["start"] + row["tokens"]].tolist()
            if len(ids) >= READ + WRITTEN and taken < A_FILE:
                prompts.append([end, *ids[:READ]])
                following.append(ids[READ : READ + WRITTEN])
                taken += 1
    if not prompts:
        sys.exit(f"{data} has no held-out document of {READ + WRITTEN} tokens in valid-*.json; make it with prepare.py")
    return prompts, following


def write(loaded: ModelPipeline, prompts: list[list[int]], sampling: Sampling, end: int) -> list[list[int]]:
    """Return one text for each prompt, with seed 0."""
    texts: list[list[int]] = [[] for _ in prompts]
    limits = Limits(max_tokens=WRITTEN, end_ids=(end,))
    for event in sample(loaded.engine, prompts, seed=0, sampling=sampling, limits=limits):
        if isinstance(event, Token) and event.id != end:
            texts[event.row].append(event.id)
    return texts


def measures(judge: KneserNey, prompts: Sequence[list[int]], texts: Sequence[list[int]], end: int) -> dict[str, float]:
    """Return judge, repeats and distinct of texts behind their prompts."""
    bits, tokens, repeated, four = 0.0, 0, 0, 0
    bigrams: list[tuple[int, ...]] = []
    for prompt, text in zip(prompts, texts, strict=True):
        if text:
            bits -= judge.log_probabilities(np.array([*prompt, *text]))[-len(text) :].sum() / np.log(2)
        tokens += len(text)
        grams = list(zip(*(text[i:] for i in range(4)), strict=False))
        four, repeated = four + len(grams), repeated + len(grams) - len(set(grams))
        bigrams += itertools.pairwise(text)
    return {
        "judge": float(bits) / max(1, tokens),
        "repeats": repeated / max(1, four),
        "distinct": len(set(bigrams)) / max(1, len(bigrams)),
        "tokens": tokens / len(texts),
    }


def distance(found: dict[str, float], expected: dict[str, float]) -> float:
    """Return how far a setting's texts are from the reference."""
    pairs = [
        (found[name] + add, expected[name] + add) for name, add in (("judge", 0), ("repeats", 0.01), ("distinct", 0))
    ]
    return float(sum(abs(np.log(one / two)) for one, two in pairs))


if __name__ == "__main__":
    main()
