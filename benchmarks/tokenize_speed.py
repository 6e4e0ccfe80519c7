"""Turn Chinese text into ids: Hanmo's WordPiece beside bert4keras's Python tokenizer, on one core, and the same ids.

    pip install --target FOLDER --no-deps bert4keras==0.11.5 six
    python benchmarks/tokenize_speed.py --bert4keras FOLDER [--megabytes 10] [--rounds 5]

Reads documents from every train-*.jsonl.xz of the corpus in equal shares. The tokenizers take turns; the figures
are medians. Hugging Face `tokenizers` with BERT's settings runs third, to show what its whole pipeline would cost.
bert4keras's tokenizers import Keras by way of its backend and use nothing of it; the backend is replaced by an
empty module here.

(The name is not tokenize.py, which would stand in the way of Python's own module of that name.)
"""

import argparse
import gc
import json
import lzma
import os
import platform
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared"
NEEDED_RATIO = 10

Ids = list[list[int]]


def read_texts(corpus: Path, size: int) -> list[str]:
    """Return documents of `size` bytes of UTF-8 in all, an equal share of each file."""
    files = sorted(corpus.glob("train-*.jsonl.xz"))
    if not files:
        sys.exit(f"there is no train-*.jsonl.xz in {corpus}; name the folder with --corpus")
    texts: list[str] = []
    for path in files:
        left = size // len(files)
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                texts.append(json.loads(line)["text"])
                left -= len(texts[-1].encode())
                if left <= 0:
                    break
    return texts


def bert4keras_encoder(folder: Path, vocabulary: Path) -> Callable[[list[str]], Ids]:
    """Return bert4keras's Tokenizer, as the article makes it, over lists of texts."""
    source = folder / "bert4keras"
    if not source.is_dir():
        sys.exit(f"{source} is not there; pip install --target {folder} --no-deps bert4keras==0.11.5 six")
    sys.path.insert(0, str(folder))
    backend = types.ModuleType("bert4keras.backend")
    backend.K = backend.keras = backend.tf = None  # type: ignore[attr-defined]
    sys.modules["bert4keras.backend"] = backend
    from bert4keras.tokenizers import Tokenizer  # type: ignore[import-not-found]

    tokenizer = Tokenizer(str(vocabulary), token_start=None, token_end=None, do_lower_case=True)
    return lambda texts: [tokenizer.encode(text)[0] for text in texts]


def hanmo_encoder(vocabulary: Path) -> Callable[[list[str]], Ids]:
    """Return Hanmo's WordPiece over lists of texts."""
    from hanmo.tokenizers import WordPiece

    tokenizer = WordPiece(vocabulary, start=None, end=None)
    return lambda texts: [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def rust_encoder(vocabulary: Path) -> Callable[[list[str]], Ids]:
    """Return Hugging Face's own pipeline for BERT over lists of texts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    from hanmo.tokenizers import read_vocab

    ids = {token: number for number, token in enumerate(read_vocab(vocabulary))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=200))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return lambda texts: [found.ids for found in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bert4keras", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--corpus", type=Path, default=SHARED / "corpus")
    parser.add_argument("--vocabulary", type=Path, default=SHARED / "vocab" / "bert-base-chinese-vocab.txt")
    parser.add_argument("--megabytes", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    texts = read_texts(args.corpus, int(args.megabytes * 1e6))
    encoders = {
        "bert4keras": bert4keras_encoder(args.bert4keras, args.vocabulary),
        "hanmo": hanmo_encoder(args.vocabulary),
        "hugging face": rust_encoder(args.vocabulary),
    }
    wanted = encoders["bert4keras"](texts)
    same = {name: encode(texts) == wanted for name, encode in encoders.items()}
    count = sum(map(len, wanted))
    del wanted
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(args.rounds):
        for name, encode in encoders.items():
            gc.collect()
            start = time.perf_counter()
            ids = encode(texts)
            seconds[name].append(time.perf_counter() - start)
            del ids
    size = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{len(texts):,} documents, {size:.1f} MB, {count:,} ids; one core of {_processor()}")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        print(f"{name:13} {median:7.3f} s  {size / median:6.1f} MB/s  ids as bert4keras: {same[name]}")
    ratio = statistics.median(seconds["bert4keras"]) / statistics.median(seconds["hanmo"])
    print(f"hanmo is {ratio:.1f} times as fast as bert4keras, wanted {NEEDED_RATIO}")
    if not same["hanmo"] or ratio < NEEDED_RATIO:
        sys.exit("not as promised")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
