r"""Train a small BERT on masked tokens of the corpus: one command to pack the text, one to train, on a GPU or a CPU.

    python examples/small_model/train_encoder.py pack DATA CORPUS --vocabulary hanmo/assets/small/vocab.txt
    python examples/small_model/train_encoder.py train DATA OUT --minutes 3
    python examples/small_model/train_encoder.py ship DATA OUT/best-STEP        into hanmo/assets/encoder, in 8 bits

`pack` reads train-SOURCE*.jsonl.xz and valid-SOURCE.jsonl.xz of the modern and vernacular sources, in WordPiece tokens
of the small model's vocabulary, whose marks for line ends and spaces BERT has not. `train` writes OUT/best-STEP, a
folder that `hanmo.load` opens, and prints the bits of a masked token in the held-out text.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import hanmo
from hanmo.config import ModelConfig
from hanmo.families import FAMILIES
from hanmo.model import Model
from hanmo.tokenizers import load_tokenizer
from hanmo.tokenizers.protocol import Tokenizer
from hanmo.training import TrainArgs
from hanmo.training.data.documents import Part, read_documents
from hanmo.training.data.masked import MaskedData
from hanmo.training.data.pack import TokenEncoder, pack_documents
from hanmo.training.data.packed import PackedData, PackedFile
from hanmo.training.loop import fit
from hanmo.training.loss import cross_entropy
from hanmo.training.score import mean_loss
from hanmo.training.step import scale_outputs

SOURCES = ("pdauthors", "novels", "classical-vernacular", "laws", "docs", "msdocs", "msdocs-mt")
APART = "》周作人\n"  # of the first line of texts that are not free everywhere
ENDS = "。！？…!?"
POSITIONS = 512
SHARE = 0.15  # of the tokens that are predicted


def main() -> None:
    """Read the arguments and pack or train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("data", type=Path)
    packing.add_argument("corpus", type=Path)
    packing.add_argument("--vocabulary", type=Path, required=True)
    packing.set_defaults(run=pack)
    training = commands.add_parser("train")
    training.add_argument("data", type=Path)
    training.add_argument("out", type=Path)
    training.add_argument("--minutes", type=float, required=True)
    training.add_argument("--num-layers", type=int, default=5)
    training.add_argument("--hidden-size", type=int, default=192)
    training.add_argument("--rows", type=int, default=256, help="windows in a batch")
    training.add_argument("--window", type=int, default=254, help="tokens of a window, beside [CLS] and [SEP]")
    training.add_argument("--lr", type=float, default=3e-3)
    training.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    training.set_defaults(run=train)
    shipping = commands.add_parser("ship")
    shipping.add_argument("data", type=Path)
    shipping.add_argument("weights", type=Path)
    shipping.add_argument("--to", type=Path, default=Path("hanmo/assets/encoder"))
    shipping.add_argument("--batches", type=int, default=30, help="of 64 held-out windows, to measure the weights on")
    shipping.set_defaults(run=ship)
    given = parser.parse_args()
    given.run(given)


def pack(given: argparse.Namespace) -> None:
    """Write vocab.txt, train.* and valid.* into a folder."""
    given.data.mkdir(parents=True, exist_ok=True)
    tokens = given.vocabulary.read_text("utf-8").splitlines()
    renamed = {"[NL]": "[unused1]", "[SP]": "[unused2]"}  # which would make it the vocabulary of a writer
    (given.data / "vocab.txt").write_text("".join(f"{renamed.get(token, token)}\n" for token in tokens), "utf-8")
    encoder = TokenEncoder(load_tokenizer(given.data / "vocab.txt", ends=False))
    for kind in ("train", "valid"):
        report = pack_documents(_parts(given.corpus, kind), given.data / kind, encoder=encoder)
        print(f"{kind}: {report.documents:,} documents, {report.tokens:,} tokens")


def _parts(corpus: Path, kind: str) -> Iterator[Part]:
    paths = sorted(corpus.glob(f"{kind}-*.jsonl.xz"))
    for path in paths:
        source = path.name.removeprefix(f"{kind}-").removesuffix(".jsonl.xz")
        if source in SOURCES:
            yield from (part for part in read_documents([path]) if APART not in part.text[:100])


def train(given: argparse.Namespace) -> None:
    """Train a BERT with its MLM head and no pooler."""
    tokenizer = load_tokenizer(given.data / "vocab.txt")
    data, held = (_windows(given.data / name, tokenizer, given.window, given.rows) for name in ("train", "valid"))
    model = Model(_config(given, tokenizer.vocab_size)).initialize(0)
    scale_outputs(model, given.num_layers)
    model.to(given.device)
    gpu = given.device.startswith("cuda")
    arguments = TrainArgs(
        minutes=given.minutes, optimizer="muon", lr=given.lr, warmup=200, weight_decay=0.1, schedule="cosine",
        average=0.98, precision="mixed" if gpu else "float32", compile=gpu, evaluate_every=2000, save_every=10**6,
        log_every=100,
    )  # fmt: skip
    outcome = fit(
        model,
        MaskedData(data, tokenizer, share=SHARE),
        out=given.out,
        settings=arguments,
        loss=masked_loss,
        evaluate=_evaluation(held, tokenizer, held.steps(), torch.bfloat16 if gpu else None),
        beside=[given.data / "vocab.txt"],
        console=Console(),
    )
    count = sum(parameter.numel() for parameter in model.parameters())
    assert outcome.best is not None
    bits = outcome.best / math.log(2)
    found = {"parameters": count, "steps": outcome.steps, "bits": bits, "seconds": outcome.seconds}
    (outcome.folder / "final.json").write_text(json.dumps(found) + "\n", "utf-8")
    print(f"{outcome.folder}: {count:,} parameters, {bits:.4f} bits of a masked token")


def ship(given: argparse.Namespace) -> None:
    """Write the weights in 8 bits with their vocabulary, card and checksums."""
    tokenizer = load_tokenizer(given.data / "vocab.txt")
    held = _windows(given.data / "valid", tokenizer, 254, 64)
    batches = min(given.batches, held.steps())
    measure = _evaluation(held, tokenizer, batches, None)
    trained = hanmo.load(given.weights)
    hanmo.save(trained.model, given.to, dtype="int8", tokenizer=[given.data / "vocab.txt"])
    bits = [measure(model)["loss"] / math.log(2) for model in (trained.model, hanmo.load(given.to).model)]
    final = json.loads((given.weights / "final.json").read_text("utf-8"))
    card = (Path(__file__).parent / "encoder_card.md").read_text("utf-8")
    size = (given.to / "model.safetensors").stat().st_size
    text = card.format(**final, size=size, float32=bits[0], int8=bits[1], windows=64 * batches)
    (given.to / "MODEL_CARD.md").write_text(text, "utf-8")
    sums = [f"{sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in sorted(given.to.iterdir())]
    (given.to / "SHA256SUMS").write_text("\n".join(sums) + "\n", "utf-8")
    print(f"{given.to}: {size:,} bytes of weights, {bits[0]:.4f} bits of a masked token, {bits[1]:.4f} in int8")


def _windows(name: Path, tokenizer: Tokenizer, window: int, rows: int) -> PackedData:
    """Open packed text as windows of whole sentences; those of held-out text stay in order."""
    file = PackedFile(name, vocabulary_sha256=TokenEncoder(tokenizer).sha256)
    ends = tuple(number for mark in ENDS if (number := tokenizer.token_to_id(mark)) is not None)
    shuffle = name.name == "train"
    return PackedData(file, window=window - 1, rows=rows, layout="document", sentence_ends=ends, shuffle=shuffle)


def _evaluation(
    data: PackedData, tokenizer: Tokenizer, batches: int, half: torch.dtype | None
) -> Callable[[Model], dict[str, Any]]:
    """Return the function that measures the mean loss of the masked tokens of so many batches."""
    masked = MaskedData(data, tokenizer)
    return mean_loss(masked_loss, lambda: (batch for _, _, batch in islice(masked.batches(), batches)), half)


def _config(given: argparse.Namespace, vocab_size: int) -> ModelConfig:
    names = FAMILIES["bert"].tensorflow
    assert names is not None
    config = names.config(
        {
            "vocab_size": vocab_size,
            "hidden_size": given.hidden_size,
            "num_hidden_layers": given.num_layers,
            "num_attention_heads": given.hidden_size // 64,
            "intermediate_size": 4 * given.hidden_size,
            "hidden_act": "gelu",
            "max_position_embeddings": POSITIONS,
            "type_vocab_size": 2,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "initializer_range": 0.02,
        }
    )
    return replace(config, pool="none", nsp=False)


def masked_loss(model: Model, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the mean -log p of the masked tokens, computed at a fixed number of places, as compiled steps need."""
    hidden = model(batch["ids"], mask=batch.get("mask"), logits="none").hidden.flatten(0, 1)
    targets = batch["targets"].flatten()
    places = torch.topk((targets != 0).float(), math.ceil(1.2 * SHARE * len(targets))).indices
    return cross_entropy(model.logits, hidden[places], targets[places], vocab_size=model.config.vocab_size)


if __name__ == "__main__":
    main()
