"""Go on pretraining a BERT on one's own text by hiding tokens (MLM), and have it fill a mask.

    python examples/mlm.py --model chinese_L-12_H-768_A-12 --data texts/ --text 科学[MASK]间

--data: txt, jsonl, csv or folders of them. Weights, log, packed text and vocabulary go to --out.
"""

import argparse
from pathlib import Path

import torch

import hanmo
from hanmo.tokenizers.load import tokenizer_files
from hanmo.training import Settings
from hanmo.training.data.masked import MaskedData
from hanmo.training.data.pack import TokenEncoder, pack
from hanmo.training.data.packed import PackedData, PackedFile
from hanmo.training.loop import fit
from hanmo.training.loss import targets_loss


def main(arguments: list[str] | None = None) -> None:
    """Read the arguments, pack the texts, train, and fill the masks of each text."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="a BERT with its MLM head and its vocab.txt")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("mlm"))
    parser.add_argument("--text", action="append", default=[], help="fill its [MASK] afterwards; several times")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--limit", type=int, default=512, help="tokens of a row, [CLS] and [SEP] among them")
    given = parser.parse_args(arguments)

    bert = hanmo.load(given.model, device="cuda" if torch.cuda.is_available() else "cpu")
    report = pack([given.data], given.out / "packed", encoder=TokenEncoder(bert.tokenizer))
    print(f"{report.documents:,} documents, {report.tokens:,} tokens, {report.unknown:,} of them unknown")
    # A window has one id more than its name says, and [CLS] and [SEP] come around it.
    options = {"window": given.limit - 3, "rows": given.rows, "layout": "document"}
    windows = PackedData(PackedFile(given.out / "packed"), **options)
    fit(
        bert.model,
        MaskedData(windows, bert.tokenizer),
        out=given.out,
        settings=Settings(steps=given.steps, lr=given.lr, warmup=given.steps // 10, schedule="linear"),
        loss=targets_loss,
        beside=tokenizer_files(given.model if given.model.is_dir() else given.model.parent),
    )
    bert.model.eval()
    for text in given.text:
        for best in bert.fill(text):
            print(text, *(f"{each.token} {each.probability:.0%}" for each in best))


if __name__ == "__main__":
    main()
