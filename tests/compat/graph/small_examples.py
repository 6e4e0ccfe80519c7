"""What the tests of bert4keras's examples share: a tiny checkpoint, random rows, and a decoder."""

import json
from pathlib import Path

import numpy as np

from hanmo.compat.bert4keras.models import build_transformer_model
from hanmo.compat.bert4keras.snippets import AutoRegressiveDecoder, DataGenerator, sequence_padding

GOLDENS = Path(__file__).parents[2] / "data/goldens/keras"
FILES = str(GOLDENS / "bert_config.json"), str(GOLDENS / "initial.ckpt")
START, END = 2, 3
RATE = 3e-3


def rows(count=16, labels=2, length=7):
    """List (ids, segments, label): the ids start with 2 and end with 3, and the second one tells the label."""
    random = np.random.RandomState(0)
    found = []
    for i in range(count):
        label = i % labels
        words = [4 + label, *random.randint(8, 16, random.randint(3, length))]
        found.append(([START, *words, END], [0, *[1] * (len(words) + 1)], label))
    return found


class Batches(DataGenerator):
    """Batches of `rows`. inputs, labels: how a row is turned into the lists that are padded; labels may be None."""

    inputs = staticmethod(lambda ids, segments, label: (ids, segments))
    labels = staticmethod(lambda ids, segments, label: [label])

    def __iter__(self, random=False):
        batch = []
        for is_end, row in self.sample(random):
            batch.append(row)
            if len(batch) == self.batch_size or is_end:
                x = [sequence_padding(list(part)) for part in zip(*(self.inputs(*each) for each in batch), strict=True)]
                yield x, None if self.labels is None else sequence_padding([self.labels(*each) for each in batch])
                batch = []


class WithoutLabels(Batches):
    """Batches for models whose loss is a layer."""

    labels = None


class Writer(AutoRegressiveDecoder):
    """Continues ids by a model of ids and segments."""

    def __init__(self, model, segment=1):
        super().__init__(start_id=None, end_id=END, maxlen=4)
        self.model, self.segment = model, segment

    @AutoRegressiveDecoder.wraps(default_rtype="probas")
    def predict(self, inputs, output_ids, states):
        ids, segments = inputs
        ids = np.concatenate([ids, output_ids], 1)
        segments = np.concatenate([segments, np.full_like(output_ids, self.segment)], 1)
        return self.last_token(self.model).predict([ids, segments])


def checkpoint(folder, sizes, **options):
    """Write a random checkpoint of a model, of the size of the common one but for `sizes`; return its two files."""
    files = str(folder / "config.json"), str(folder / "model.ckpt")
    config = json.loads(Path(FILES[0]).read_text("utf-8")) | {"initializer_range": 0.3} | sizes
    Path(files[0]).write_text(json.dumps(config), "utf-8")
    build_transformer_model(files[0], return_keras_model=False, **options).save_weights_as_checkpoint(files[1])
    return files


def fit(model, batches, epochs=8, **options):
    """Train, and return the loss of each epoch."""
    steps = {"steps_per_epoch": len(batches), "epochs": epochs, "verbose": 0}
    return model.fit_generator(batches.forfit(), **steps, **options).history["loss"]
