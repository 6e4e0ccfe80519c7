"""Servers on the loopback interface, and a model of bytes whose continuations are given."""

import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from test_model_pipeline import small

from hanmo.families import FAMILIES
from hanmo.generate.scheduler import Scheduler
from hanmo.pipeline import Pipeline
from hanmo.server.app import make_app
from hanmo.server.models import Served
from hanmo.server.run import Server, bind
from hanmo.tasks import TaskConfig
from hanmo.tasks.network import build, save_network, tokenizer_of
from hanmo.tasks.table import make_task
from hanmo.tokenizers.byte_bpe import _BYTES, ByteBPE

END = 256
POSITIONS = 512


class ByteEngine:
    """Continues a prompt that is known as the table says, then ends; any other with ids that depend on all before.

    pace: seconds of a step.   alive: rows in use.
    """

    vocab_size = 257

    def __init__(self, texts=(), pace=0.0, positions=POSITIONS):
        self.max_positions = positions
        self.texts = {prompt.encode(): text.encode() for prompt, text in dict(texts).items()}
        self.pace, self.steps = pace, 0

    def scores(self, ids):
        past = bytes(id for id in ids if id < END)
        for prompt, text in self.texts.items():
            if (prompt + text).startswith(past) and len(past) >= len(prompt):
                rest = text[len(past) - len(prompt) :]
                return np.eye(257, dtype=np.float32)[rest[0] if rest else END] * 50
        scores = np.random.Generator(np.random.Philox(key=[len(past), sum(past[-3:])])).normal(size=257) * 2
        scores[:0x20], scores[0x7F:] = -50, -50  # only characters of one byte
        return scores.astype(np.float32)

    def prefill(self, prompts, *, room):
        return (rows := ByteRows(self, [list(prompt) for prompt in prompts])), rows.logits()


class ByteRows:
    def __init__(self, engine, past):
        self.engine, self.past = engine, past

    def logits(self):
        return np.stack([self.engine.scores(row) for row in self.past])

    def step(self, ids):
        time.sleep(self.engine.pace)
        self.engine.steps += 1
        for row, id in zip(self.past, ids, strict=True):
            row.append(int(id))
        return self.logits()

    def reorder(self, rows):
        self.past = [list(self.past[row]) for row in rows]


def byte_model(texts=(), *, name="字节", pace=0.0, positions=POSITIONS, **limits):
    """Serve a ByteEngine."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = FAMILIES["gpt2_ml"].tensorflow.config({**sizes, "vocab_size": 257, "max_position_embeddings": positions})
    tokenizer = ByteBPE({**_BYTES, "<|endoftext|>": END}, [])
    engine = ByteEngine(texts, pace, positions)
    return Served(name, Pipeline(config, tokenizer, Path("/nowhere/model"), engine), "toy", Scheduler(engine, **limits))


def task_folder(folder):
    """Save a classification that was never trained, on a tiny encoder; returns its folder."""
    base = small("bert", folder)
    task = make_task(TaskConfig(kind="classify", form="single", head="linear", labels=("好", "坏")), base.tokenizer)
    save_network(build(base.model, task), folder / "task", task.config, tokenizer_of(base))
    return folder / "task"


@contextmanager
def running(*models, grace=60.0, write_timeout=30.0, send_buffer=None, **options):
    """Run a server in a thread; gives its URL.   send_buffer: bytes that the system holds for a slow reader."""
    ready, listening = [], bind("127.0.0.1", 0)
    if send_buffer is not None:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    app = make_app(models, **options)
    server = Server(app, ready=ready.append, grace=grace, write_timeout=write_timeout)
    running.server = server
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        wait_for(lambda: ready)
        yield ready[0]
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


def wait_for(condition, seconds=20.0):
    """Wait until a condition holds."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it does not come true"
        time.sleep(0.005)
