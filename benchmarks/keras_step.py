"""Time a training step of `hanmo run` through Keras beside plain torch over the same network.

    python benchmarks/keras_step.py
    python benchmarks/keras_step.py --layers 2 --hidden 64 --rounds 1

A BERT of 12 x 768 with a dense layer of 2 on [CLS], batches of 16 x 128, Adam, dropout 0.1. Each round runs both, each
in a process of its own; the first step is left out. Prints the median time of a step and the peak resident memory of
each, and the ratios.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    arguments = parse()
    if arguments.worker is not None:
        print(json.dumps({"keras": keras_steps, "torch": torch_steps}[arguments.worker](arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        config = {
            "vocab_size": 21128,
            "hidden_size": arguments.hidden,
            "num_hidden_layers": arguments.layers,
            "num_attention_heads": arguments.hidden // 64,
            "intermediate_size": 4 * arguments.hidden,
            "hidden_act": "gelu",
            "max_position_embeddings": 512,
            "type_vocab_size": 2,
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
        }
        arguments.config = Path(folder) / "bert_config.json"
        arguments.config.write_text(json.dumps(config))
        rounds = [{worker: run(worker, arguments) for worker in ("torch", "keras")} for _ in range(arguments.rounds)]
    medians = {
        worker: [statistics.median(each[worker][key] for each in rounds) for key in ("seconds", "bytes")]
        for worker in ("torch", "keras")
    }
    for worker, (seconds, peak) in medians.items():
        print(f"{worker}: {seconds * 1000:.0f} ms a step, peak {peak / 2**20:.0f} MiB")
    time_ratio, memory_ratio = (a / b for a, b in zip(medians["keras"], medians["torch"], strict=True))
    print(f"keras : torch   time {time_ratio:.2f}   memory {memory_ratio:.2f}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768, help="a multiple of 64")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=6, help="with the first, which is left out")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--worker", choices=("keras", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--config", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def run(worker: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Run one worker in a process of its own; the one with Keras as a script of `hanmo run`."""
    sizes = [f"--{name}={getattr(arguments, name)}" for name in ("rows", "tokens", "steps", "config")]
    start = [sys.executable, "-m", "hanmo.cli", "run"] if worker == "keras" else [sys.executable]
    done = subprocess.run([*start, __file__, "--worker", worker, *sizes], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def batches(arguments: argparse.Namespace) -> Iterator[Any]:
    random = np.random.RandomState(0)
    while True:
        ids = random.randint(1, 21128, (arguments.rows, arguments.tokens))
        yield [ids, np.zeros_like(ids)], ids[:, :1] % 2


def measured(times: list[float]) -> dict[str, float]:
    """Return the median time between starts of steps but the first, and the peak memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": statistics.median(np.diff(times)[1:]), "bytes": peak}


def keras_steps(arguments: argparse.Namespace) -> dict[str, float]:
    """Train as a script of bert4keras does."""
    from bert4keras.backend import keras
    from bert4keras.models import build_transformer_model
    from bert4keras.optimizers import Adam
    from keras.layers import Dense, Lambda

    bert = build_transformer_model(str(arguments.config), return_keras_model=False)
    output = Lambda(lambda x: x[:, 0])(bert.model.output)
    output = Dense(2, activation="softmax", kernel_initializer=bert.initializer)(output)
    model = keras.models.Model(bert.model.input, output)
    model.compile(loss="sparse_categorical_crossentropy", optimizer=Adam(2e-5), metrics=["accuracy"])
    times: list[float] = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            times.append(time.perf_counter())

        def on_train_end(self, logs: Any = None) -> None:
            times.append(time.perf_counter())

    steps = arguments.steps
    model.fit(batches(arguments), steps_per_epoch=steps, epochs=1, callbacks=[Clock()], verbose=0)
    return measured(times)


def torch_steps(arguments: argparse.Namespace) -> dict[str, float]:
    """Train the same network by a loop of torch."""
    import torch
    from torch.nn import functional as F

    from hanmo.compat.bert4keras.models import build_transformer_model

    network = build_transformer_model(str(arguments.config)).network.train()
    head = torch.nn.Linear(network.config.main.hidden_size, 2)
    optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=2e-5, eps=1e-6)
    times: list[float] = []
    stream = batches(arguments)
    for _ in range(arguments.steps):
        times.append(time.perf_counter())
        (ids, segments), labels = next(stream)
        ids, segments = torch.from_numpy(ids), torch.from_numpy(segments)
        hidden = network(ids, segments=segments, mask=ids != 0, logits="none").hidden
        loss = F.cross_entropy(head(hidden[:, 0]), torch.from_numpy(labels[:, 0]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    times.append(time.perf_counter())
    return measured(times)


if __name__ == "__main__":
    main()
