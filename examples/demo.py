"""What Hanmo does, in half a minute and without a download: the small model inside it writes, and a tiny one learns.

The tiny model has GPT2_ML's structure and a ten-thousandth of its weights. It is taught seven poems, saved as the
original is, in TensorFlow's format, recognised, loaded again and asked to go on from first lines. It knows nothing but
these poems, so that anyone can check what it writes.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch

import hanmo
from hanmo.families.gpt2_ml import gpt2_ml_config
from hanmo.model import Model
from hanmo.training.loss import next_token_loss

POEMS = (
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。",
    "千山鸟飞绝，万径人踪灭。孤舟蓑笠翁，独钓寒江雪。",
    "红豆生南国，春来发几枝。愿君多采撷，此物最相思。",
    "空山不见人，但闻人语响。返景入深林，复照青苔上。",
    "慈母手中线，游子身上衣。临行密密缝，意恐迟迟归。谁言寸草心，报得三春晖。",
)
STEPS = 150
PROMPTS = (("a poem", "【诗】"), ("a tale", "话说"), ("a modern line", "今天天气不错"))


def main() -> None:
    """Run every step and print what came of it."""
    step("The small model inside Hanmo writes; made anew from the same seeds each time")
    writer = hanmo.open_writer()
    for seed, (kind, prompt) in enumerate(PROMPTS):
        print(f"\n  {kind}: {prompt}", end="", flush=True)
        for piece in writer.stream(prompt, seed=seed, top_k=20, min_chars=30, max_chars=90):
            print(piece.replace("\n", "\n    "), end="", flush=True)
        print()

    torch.manual_seed(7)
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "model.ckpt"
        vocabulary = Path(folder) / "vocab.txt"
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set("".join(POEMS)))]
        vocabulary.write_text("\n".join(words), encoding="utf-8")

        step(f"Teach a model of GPT2_ML's structure {len(POEMS)} poems")
        model = train(words)

        step("Save it in TensorFlow's format, without TensorFlow")
        hanmo.save(model, prefix, form="tensorflow")
        for file in sorted(prefix.parent.iterdir()):
            print(f"  {file.name:<36}{file.stat().st_size:>12,} bytes")

        step("What is it? hanmo.inspect reads the index alone")
        found = hanmo.inspect(prefix).found
        stack = found.config.main
        print(f"  {found.family}: {found.parameters:,} parameters, {found.dtype}")
        sizes = f"{stack.num_layers} layers, hidden size {stack.hidden_size}, {stack.num_heads} heads"
        print(f"  {sizes}, {found.sizes['vocab_size']:,} words")

        step("Load it and have it write")
        writer = hanmo.load(prefix)
        for prompt in ("春眠", "床前明月光", "白日", "慈母"):
            print("  " + prompt, end="", flush=True)
            for piece in writer.stream(prompt, temperature=0, stop=None):
                print(piece, end="", flush=True)
                time.sleep(0.02)
            print()
        score = writer.score(POEMS[0])
        print(f"\n  bits per character of the first poem: {score.bits_per_char:.2f}")


def train(words: list[str]) -> Model:
    """Teach a fresh model the poems by heart."""
    model = Model(
        gpt2_ml_config(vocab_size=len(words), num_layers=2, hidden_size=64, positions=64, head_dim=16)
    ).initialize(seed=7)
    number = {word: i for i, word in enumerate(words)}
    longest = max(len(poem) for poem in POEMS) + 1
    rows = [[number[character] for character in poem] + [number["[SEP]"]] for poem in POEMS]
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for at in range(1, STEPS + 1):
        loss = next_token_loss(model, ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if at % 30 == 0:
            print(f"  step {at:>3} of {STEPS}, loss {loss.item():.3f}", flush=True)
    return model.eval()


def step(title: str) -> None:
    """Print what comes next."""
    print(f"\n{title}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
