"""What Hanmo does, in a few seconds and without a download: write, recognise, load and run a TensorFlow checkpoint.

The checkpoint has the layout of GPT2_ML 1.5B, the names and the order of its files, and a thousandth of its size; its
weights are random, the same in every run.
"""

import tempfile
from pathlib import Path

import torch

import hanmo
from hanmo.families import FAMILIES
from hanmo.model import Model

TINY = {
    "vocab_size": 8021,
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "intermediate_size": 384,
    "max_position_embeddings": 128,
    "hidden_act": "gelu",
}


def main() -> None:
    """Run every step and print what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        step("A checkpoint in TensorFlow's format, written without TensorFlow")
        prefix = Path(folder) / "model.ckpt"
        write(prefix)
        for file in sorted(prefix.parent.iterdir()):
            print(f"  {file.name:<36}{file.stat().st_size:>12,} bytes")

        step("What is it? hanmo.inspect reads the index alone")
        one = hanmo.inspect(prefix)
        stack = one.found.config.main
        print(f"  {one.found.family}: {one.found.parameters:,} parameters in {one.tensors} tensors, {one.found.dtype}")
        print(f"  {stack.depth} layers, width {stack.width}, {stack.heads} heads, {one.found.sizes['vocab']:,} words")
        print(f"  does not fit: {'; '.join(one.problems) or 'nothing'}")

        step("hanmo.load makes it a PyTorch model, its weights mapped from the file")
        loaded = hanmo.load(prefix)
        print(f"  {loaded.report.used} tensors used, {len(loaded.report.dropped)} left out")

        step("Two prompts of six ids through the model")
        ids = torch.tensor([[101, 2769, 4263, 872, 704, 1744], [101, 3209, 3299, 1184, 1045, 102]])
        with torch.inference_mode():
            whole = loaded.model(ids).logits
            # Token by token with a cache, as text is written, gives the same.
            cache = loaded.model.new_cache(rows=2, capacity=6)
            steps = [loaded.model(ids[:, i : i + 1], cache=cache).logits for i in range(6)]
        assert whole is not None
        print(f"  logits {list(whole.shape)}, the likeliest next ids {whole[:, -1].argmax(-1).tolist()}")
        difference = (torch.cat([each for each in steps if each is not None], 1) - whole).abs().max()
        print(f"  with the cache, one id at a time: differs by at most {difference:.0e}")


def write(prefix: Path) -> None:
    """Write a GPT2_ML of random weights under the original's names."""
    names = FAMILIES["gpt2_ml"].tensorflow
    assert names is not None
    hanmo.save(Model(names.config(TINY)).initialize(seed=7), prefix, form="tensorflow")


def step(title: str) -> None:
    """Print what comes next."""
    print(f"\n{title}")


if __name__ == "__main__":
    main()
