"""A model of the loop's protocol whose scores depend on a row's whole past, so that a mixed-up cache is seen."""

import hashlib

import numpy as np


class ToyEngine:
    def __init__(self, vocab_size=12, max_positions=64, *, convert=lambda array: array, scores=None):
        self.vocab_size, self.max_positions = vocab_size, max_positions
        self.convert, self.scores = convert, scores or self.random_scores
        self.prefilled, self.steps, self.rooms = [], [], []

    def random_scores(self, ids):
        digest = hashlib.sha256(np.asarray(ids, dtype=np.int64).tobytes()).digest()
        return (
            np.random.Generator(np.random.Philox(int.from_bytes(digest[:8], "little"))).normal(size=self.vocab_size) * 2
        )

    def prefill(self, prompts, *, room):
        self.prefilled.append([list(prompt) for prompt in prompts])
        self.rooms.append(room)
        rows = ToyRows(self, [list(prompt) for prompt in prompts])
        return rows, rows.logits()


class ToyRows:
    def __init__(self, engine, past):
        self.engine, self.past = engine, past

    def logits(self):
        return self.engine.convert(np.stack([np.asarray(self.engine.scores(row), np.float32) for row in self.past]))

    def step(self, ids):
        assert len(ids) == len(self.past)
        self.engine.steps.append(len(ids))
        for row, id in zip(self.past, ids, strict=True):
            row.append(int(id))
            assert self.engine.max_positions is None or len(row) <= self.engine.max_positions
        return self.logits()

    def reorder(self, rows):
        self.past = [list(self.past[row]) for row in rows]

    def extend(self, ids):
        logits = [self.step([id]) for id in ids]
        self.engine.steps[len(self.engine.steps) - len(ids) :] = [1]
        return np.concatenate(logits)

    def drop(self, count):
        self.past = [row[: len(row) - count] for row in self.past]

    def join(self, other):
        self.past += other.past


class ToyJoiningEngine(ToyEngine):
    """The same as an engine whose rows join others in one cache."""

    joins = True


class ToyDynamicEngine(ToyEngine):
    """The same as an engine whose rows join and leave a running batch; `steps` has the rows of each step."""

    def dynamic_rows(self):
        return ToyDynamicRows(self)


class ToyDynamicRows:
    def __init__(self, engine):
        self.engine, self.past, self.made = engine, {}, 0

    def add(self, room):
        self.made += 1
        self.past[self.made] = []
        return self.made

    def fork(self, row, count):
        new = [self.add(0) for _ in range(count)]
        self.past |= {number: list(self.past[row]) for number in new}
        return new

    def free(self, row):
        del self.past[row]

    def drop(self, row, count):
        del self.past[row][len(self.past[row]) - count :]

    def step(self, work):
        assert len({piece.row for piece in work}) == len(work)
        self.engine.steps.append(len(work))
        return [self.append(piece) for piece in work]

    def append(self, piece):
        past, scores = self.past[piece.row], []
        for id in piece.ids:
            past.append(int(id))
            scores.append(self.engine.scores(past))
        kept = scores[len(scores) - piece.keep :]
        return np.asarray(kept, np.float32).reshape(piece.keep, self.engine.vocab_size)
