"""Time the loop of https://kexue.fm/archives/7292, unmodified, at 16 and at 256 tokens.

    python benchmarks/article_loop.py                       # GPT2_ML's shape at 12 layers of 768, random weights
    python benchmarks/article_loop.py --model PREFIX        # a TensorFlow checkpoint, its config.json beside it

The loop calls `model.predict(token_ids)[:, -1]` on an ever longer text. Prints the median time of the steps around
16 and around 256 tokens, their ratio (wanted: 1.5 at most), and how far the last step is from computing it whole.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from hanmo.compat.bert4keras import backend
from hanmo.compat.bert4keras.models import build_transformer_model
from hanmo.compat.bert4keras.snippets import AutoRegressiveDecoder

MIDDLE = {
    "vocab_size": 21128,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 1024,
}
PLACES = (16, 256)
AROUND = 8


def build(prefix):
    if prefix is not None:
        config = Path(prefix).parent / "config.json"
        return build_transformer_model(str(config), str(prefix), model="gpt2_ml")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(MIDDLE), "utf-8")
        return build_transformer_model(str(config), model="gpt2_ml")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="prefix of a GPT2_ML checkpoint")
    parser.add_argument("--weights", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("-n", type=int, default=1, help="samples at once")
    options = parser.parse_args()
    backend.set_weights_dtype(options.weights)
    model = build(options.model)
    seconds, texts = {}, []

    class ArticleCompletion(AutoRegressiveDecoder):
        @AutoRegressiveDecoder.set_rtype("probas")
        def predict(self, inputs, output_ids, step):
            token_ids = np.concatenate([inputs[0], output_ids], 1)
            texts[:] = [token_ids]
            start = time.perf_counter()
            result = model.predict(token_ids)[:, -1]
            seconds[token_ids.shape[1]] = time.perf_counter() - start
            return result

    np.random.seed(0)
    prompt = [791, 1921, 1921, 3698, 679, 7231]
    steps = PLACES[1] + AROUND - len(prompt)
    ArticleCompletion(start_id=None, end_id=None, maxlen=steps, minlen=steps).random_sample([prompt], options.n, 5)
    around = [[seconds[count] for count in seconds if abs(count - place) <= AROUND] for place in PLACES]
    helped = model.predict(texts[0])
    model.prefix.forget()
    model.prefix.most_bytes = 0
    start = time.perf_counter()
    whole = model.predict(texts[0])
    again = time.perf_counter() - start
    print(f"{model.count_params():,} parameters, {options.weights}, {options.n} samples")
    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    for place, times in zip(PLACES, around, strict=True):
        median, best = 1000 * statistics.median(times), 1000 * min(times)
        print(f"step at {place:>3} tokens: median {median:8.1f} ms, {best:8.1f} at best")
    for name, of in (("medians", statistics.median), ("best", min)):
        print(f"ratio of {name}: {of(around[1]) / of(around[0]):.2f}")
    print(f"whole text again:   {1000 * again:8.1f} ms")
    difference = np.abs(helped - whole)
    print(f"largest difference of a probability: {difference.max():.1e}, {(difference / whole).max():.1e} of itself")


if __name__ == "__main__":
    main()
