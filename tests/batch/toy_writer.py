"""A writer over the toy engine, for tests that need no network; it starts without torch."""

import os
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "generate"))

from toy_engine import ToyDynamicEngine, ToyEngine

from hanmo.families import FAMILIES
from hanmo.pipeline import Pipeline
from hanmo.tokenizers import WordPiece

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"今天气不错可以去跑步床前明月光疑是地上霜，。"]
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}


class ToyWriter(Pipeline):
    """Writes by the hash of a row's ids; `engine` is open to the test."""

    def __init__(self, *, pause=0.0, dynamic=False, **options):
        super().__init__(FAMILIES["gpt2_ml"].tensorflow.config(SIZES), WordPiece(WORDS), Path("toy"))
        self.toy = (ToyDynamicEngine if dynamic else ToyEngine)(vocab_size=len(WORDS), max_positions=64, **options)
        if pause:
            prefill = self.toy.prefill
            self.toy.prefill = lambda prompts, room: (time.sleep(pause), prefill(prompts, room=room))[1]

    @property
    def engine(self):
        return self.toy


def started(folder, *, pause):
    """Open a toy, and leave the number of the process in a folder."""
    (folder / str(os.getpid())).touch()
    return ToyWriter(pause=pause)


__all__ = ["SIZES", "WORDS", "ToyWriter", "started"]
