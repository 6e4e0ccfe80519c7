"""Teach a BERT to write titles (UniLM), as bert4keras's examples/task_seq2seq.py did, and have it write some.

    python examples/unilm_titles.py --model chinese_L-12_H-768_A-12 --data news.jsonl --text 要给它标题的正文

--data: jsonl with "source" and "target" in a line, or csv and tsv of these two columns. Weights, log and vocabulary go
to --out, which `hanmo write --mask prefix` reads too.
"""

import argparse
from pathlib import Path

import torch

import hanmo
from hanmo.tokenizers.load import tokenizer_files
from hanmo.training import Settings
from hanmo.training.data.pairs import PairData, read_pairs
from hanmo.training.loop import fit
from hanmo.training.loss import targets_loss


def main(arguments: list[str] | None = None) -> None:
    """Read the arguments, train, and write a title for each text."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="a BERT with its MLM head and its vocab.txt")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("unilm-titles"))
    parser.add_argument("--text", action="append", default=[], help="write a title for it afterwards; several times")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--limit", type=int, default=256, help="tokens of a source and its title together")
    parser.add_argument("--title-limit", type=int, default=32)
    given = parser.parse_args(arguments)

    writer = hanmo.load(given.model, mask="prefix", device="cuda" if torch.cuda.is_available() else "cpu")
    data = PairData(
        read_pairs([given.data]),
        writer.tokenizer,
        writer.config,
        rows=given.rows,
        limit=given.limit,
        target_limit=given.title_limit,
    )
    print(f"{len(data):,} pairs, of which {data.cut:,} were cut")
    fit(
        writer.model,
        data,
        out=given.out,
        settings=Settings(steps=given.steps, lr=given.lr, warmup=given.steps // 10, schedule="linear"),
        loss=targets_loss,
        beside=tokenizer_files(given.model if given.model.is_dir() else given.model.parent),
    )
    writer.model.eval()
    for text in given.text:
        print(writer.write(text, beams=1, stop=None, max_tokens=given.title_limit)[0])


if __name__ == "__main__":
    main()
