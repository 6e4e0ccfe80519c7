"""Make the small model's vocabulary and packed data out of the corpus folder.

    python examples/small_model/prepare.py CORPUS OUT

CORPUS holds train-SOURCE*.jsonl.xz and valid-SOURCE.jsonl.xz. Into OUT go vocab.txt, train.*, valid-SOURCE.* and
report.json. The texts of 周作人 (died 1967) are not free everywhere: they are never trained on, and those that are held
out are packed as valid-zhouzuoren, so that they can be scored apart.
"""

import argparse
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

from hanmo.cli.screen import progress
from hanmo.tokenizers import Lossless, write_vocab
from hanmo.training.data.documents import Part, read_documents
from hanmo.training.data.pack import PackReport, TokenEncoder, pack_documents
from hanmo.training.data.vocabulary import CorpusCounts, common_characters, make_vocabulary

# How often the whole run reads each source. Modern prose is what a reader meets first, and there is little of
# it; statutes and manuals repeat themselves; the literary classics are 45 % of the corpus; of machine translation the
# model need only know that it exists.
EPOCHS = {
    "pdauthors": 24.0,
    "novels": 18.0,
    "classical-vernacular": 16.0,
    "poetry": 14.0,
    "classical-literary": 11.0,
    "laws": 7.0,
    "docs": 10.0,
    "msdocs": 5.0,
    "msdocs-mt": 2.0,
}
MARKS = {
    "pdauthors": "【文】",
    "novels": "【小说】",
    "classical-vernacular": "【小说】",
    "poetry": "【诗】",
    "classical-literary": "【古文】",
    "laws": "【法】",
    "docs": "【技术】",
    "msdocs": "【技术】",
    "msdocs-mt": "【技术】",
}
MARK_SHARE, BARE_SHARE = 0.25, 0.25  # readings that begin with the mark; readings without the title line
SIZE, PIECES, COVERAGE = 8000, 500, 0.999
_APART = re.compile("《[^\n]*》周作人\n")


def main() -> None:
    """Read the arguments and prepare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int, default=None, help="encoders at work (all cores)")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    prepare(given.corpus, given.out, processes=given.processes)


def prepare(
    corpus: Path,
    out: Path,
    *,
    processes: int | None = None,
    size: int = SIZE,
    pieces: int = PIECES,
) -> None:
    """Write vocab.txt, train.*, valid-*.* and report.json into out."""
    began = time.perf_counter()
    sources = [source for source in EPOCHS if _files(corpus, "train", source)]
    counts = CorpusCounts()
    for source in sources:
        counts.add((part.text for part in _training(corpus, source)), weight=EPOCHS[source])
    vocabulary = make_vocabulary(counts, size=size, pieces=pieces, coverage=COVERAGE, always=common_characters())
    write_vocab(out / "vocab.txt", vocabulary.tokens)
    encoder = TokenEncoder(Lossless(out / "vocab.txt"))

    parts = (part for source in sources for part in _training(corpus, source))
    marks = {source: MARKS[source] for source in sources}
    train = pack_documents(parts, out / "train", encoder=encoder, marks=marks, titles=True, processes=processes)
    held_out = {}
    for source in sources:
        for name, apart in ((source, False), ("zhouzuoren", True)):
            chosen = [part for part in _read(corpus, "valid", source) if bool(_APART.match(part.text)) == apart]
            if chosen:
                held_out[name] = pack_documents(
                    chosen, out / f"valid-{name}", encoder=encoder, titles=True, processes=1
                )
    report = {
        "epochs": {source: EPOCHS[source] for source in sources},
        "mark_share": MARK_SHARE,
        "bare_share": BARE_SHARE,
        "coverage": vocabulary.coverage,
        "character_tokens": vocabulary.characters,
        "piece_tokens": vocabulary.pieces,
        "train": json.loads(train.to_json()),
        "valid": {name: json.loads(packed.to_json()) for name, packed in held_out.items()},
    }
    beside = out / "report.json.part"
    beside.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", "utf-8")
    beside.replace(out / "report.json")
    _show(train, held_out, vocabulary.coverage, time.perf_counter() - began)


def _files(corpus: Path, kind: str, source: str) -> list[Path]:
    """Return kind-SOURCE.jsonl.xz, or its numbered pieces."""
    named = re.compile(rf"{kind}-{source}(-\d+)?\.jsonl\.xz")
    return sorted(path for path in corpus.iterdir() if named.fullmatch(path.name))


def _read(corpus: Path, kind: str, source: str) -> Iterator[Part]:
    with progress(f"{kind} {source}") as show:
        for part in read_documents(_files(corpus, kind, source), progress=show):
            yield Part(part.text, source)


def _training(corpus: Path, source: str) -> Iterator[Part]:
    return (part for part in _read(corpus, "train", source) if not _APART.match(part.text))


def _show(train: PackReport, held_out: dict[str, PackReport], coverage: float, seconds: float) -> None:
    print(f"{'source':22}{'documents':>10}{'tokens':>13}{'unknown':>9}{'epochs':>8}{'tokens read':>15}{'share':>8}")
    read = {source: counts["tokens"] * EPOCHS[source] for source, counts in train.sources.items()}
    for source, counts in train.sources.items():
        share = read[source] / sum(read.values())
        print(
            f"{source:22}{counts['documents']:10,}{counts['tokens']:13,}{counts['unknown'] / counts['characters']:9.3%}"
            f"{EPOCHS[source]:8.1f}{read[source]:15,.0f}{share:8.1%}"
        )
    print(f"{'together':22}{train.documents:10,}{train.tokens:13,}{train.unknown / train.characters:9.3%}")
    print(f"{'':40}{'':8}{'':8}{sum(read.values()):15,.0f} tokens read in the whole run")
    for name, packed in held_out.items():
        print(
            f"valid-{name:20}{packed.documents:8,} documents {packed.tokens:9,} tokens "
            f"{packed.characters:9,} characters {packed.unknown / packed.characters:8.3%} unknown"
        )
    print(
        f"vocabulary coverage {coverage:.4%}, {train.distinct_unknown:,} distinct unknown characters, {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
