"""The Kneser-Ney model against its definition, written out in dictionaries."""

import importlib.util
import itertools
import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
VOCAB, END = 8, 2


def load(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem + "_under_test", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


NGRAM = load("benchmarks/ngram.py")


def corpus(documents: int) -> np.ndarray:
    random = np.random.default_rng(0)
    stream = [END]
    for _ in range(documents):
        stream += [
            *random.choice([1, 3, 4, 5, 6], size=random.integers(1, 12), p=[0.1, 0.4, 0.3, 0.15, 0.05]).tolist(),
            END,
        ]
    return np.array(stream)


def written_out(stream: list[int], order: int) -> tuple[Callable, list]:
    """Return p(word, history) straight from the definition, and the discounts by order."""
    documents = [[END, *group, END] for key, group in itertools.groupby(stream, END.__ne__) if key]
    raw = [Counter() for _ in range(order + 1)]
    for document in documents:
        for length in range(1, order + 1):
            raw[length].update(
                tuple(document[at - length + 1 : at + 1]) for at in range(max(1, length - 1), len(document))
            )
    counts = [{} for _ in range(order)] + [dict(raw[order])]
    for length in range(1, order):
        left = defaultdict(set)
        for gram in raw[length + 1]:
            left[gram[1:]].add(gram[0])
        counts[length] = {
            gram: raw[length][gram] if length > 1 and gram[0] == END else len(left[gram]) for gram in raw[length]
        }
    discounts = [None]
    for length in range(1, order + 1):
        n = Counter(counts[length].values())
        found = None
        if n[1] and n[2] and n[3]:
            y = n[1] / (n[1] + 2 * n[2])
            found = tuple(k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3))
        valid = found is not None and all(0 <= d <= k for k, d in enumerate(found, 1))
        discounts.append(found if valid else (0.5, 1.0, 1.5))

    def p(word: int, history: tuple[int, ...]) -> float:
        lower = p(word, history[1:]) if history else 1 / (VOCAB - 1)
        length = len(history) + 1
        follow = {gram[-1]: count for gram, count in counts[length].items() if gram[:-1] == history}
        total = sum(follow.values())
        if not total:
            return lower
        spared = {w: discounts[length][min(count, 3) - 1] for w, count in follow.items()}
        return (follow.get(word, 0) - spared.get(word, 0)) / total + sum(spared.values()) / total * lower

    return p, discounts


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("documents", [12, 300])
def test_every_probability_is_that_of_the_definition(order: int, documents: int) -> None:
    stream = corpus(documents)
    model = NGRAM.KneserNey(stream, order=order, vocab_size=VOCAB, end=END)
    p, discounts = written_out(stream.tolist(), order)
    assert [level.discounts for level in model.levels] == [pytest.approx(d) for d in discounts[1:]]
    probe = np.concatenate([[END, 7, 3, 7, END], corpus(20)[1:], [6, 6, 6, 6, 6, 7, 4, 3, 3, END]])
    expected = []
    for at in range(1, len(probe)):
        opened = max(place for place in range(at) if probe[place] == END)
        expected.append(p(int(probe[at]), tuple(probe[max(opened, at - order + 1) : at].tolist())))
    assert np.exp(model.log_probabilities(probe)) == pytest.approx(expected, rel=1e-12)


def test_some_discounts_are_found_and_some_fall_back() -> None:
    found = {level.discounts for level in NGRAM.KneserNey(corpus(300), order=5, vocab_size=VOCAB, end=END).levels}
    assert (0.5, 1.0, 1.5) in found
    assert len(found) > 1


def test_probabilities_of_every_context_sum_to_one() -> None:
    model = NGRAM.KneserNey(corpus(300), order=4, vocab_size=VOCAB, end=END)
    contexts = [[END, *words] for length in range(4) for words in itertools.product([1, 3, 4, 5, 6, 7], repeat=length)]
    assert len(contexts) == 259
    for context in contexts:
        each = [model.log_probabilities(np.array([*context, word]))[-1] for word in range(1, VOCAB)]
        assert math.fsum(np.exp(each)) == pytest.approx(1, abs=1e-12)


def test_no_document_is_seen_through_the_one_before_it() -> None:
    model = NGRAM.KneserNey(corpus(300), order=5, vocab_size=VOCAB, end=END)
    first, second = np.array([END, 3, 4, 5, END]), np.array([END, 4, 4, 6, END])
    apart = np.concatenate([model.log_probabilities(first), model.log_probabilities(second)])
    assert model.log_probabilities(np.concatenate([first, second[1:]])).tolist() == apart.tolist()


def test_the_command_measures_every_held_out_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from hanmo.tokenizers import Lossless
    from hanmo.training.data.documents import Part
    from hanmo.training.data.pack import TokenEncoder, pack_documents

    alphabet = [chr(code) for code in (*range(48, 58), *range(65, 91), *range(97, 123))]
    named = ["[PAD]", "[UNK]", "[EOS]", "[NL]", "[SP]"]
    tokenizer = Lossless([*named, *alphabet, *("##" + letter for letter in alphabet), *"天地玄黄。【】"])
    options = {"encoder": TokenEncoder(tokenizer), "processes": 1}
    pack_documents([Part("天地玄黄。鱻龘", "a")] * 5, tmp_path / "train", marks={"a": "【天】"}, **options)
    pack_documents([Part("天地玄黄。鱻龘", "a")], tmp_path / "valid-a", **options)
    pack_documents([Part("黄玄地天", "b")], tmp_path / "valid-b", **options)
    monkeypatch.setattr(sys, "argv", ["ngram.py", str(tmp_path)])
    NGRAM.main()
    found = json.loads((tmp_path / "ngram.json").read_text())
    assert set(found["files"]) == {"a", "b", "together"}
    files = found["files"]
    assert files["a"]["bits_per_character"] < files["together"]["bits_per_character"] < files["b"]["bits_per_character"]
    assert files["a"]["unknown"] == 2
    # Two unknown characters of seven, each named among two and one to spare.
    assert files["a"]["bits_per_character"] == pytest.approx(
        files["a"]["nats"] / math.log(2) / 7 + 2 * math.log2(3) / 7
    )
    assert "bits per character" in capsys.readouterr().out
