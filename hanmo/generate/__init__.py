"""Text generation over NumPy or torch arrays: sampling, beam search, stop rules. No module here imports torch."""

from hanmo.generate.beam import Beam, beam_search
from hanmo.generate.draw import fresh_seed
from hanmo.generate.loop import End, Engine, Limits, Rows, Token, keep_last, sample
from hanmo.generate.options import GenerationConfig
from hanmo.generate.sampling import GREEDY, PRESETS, Sampling
from hanmo.generate.stop import Stopper, StopRules
from hanmo.generate.text import GeneratedText, Stream, search, stream, write

__all__ = [
    "GREEDY",
    "PRESETS",
    "Beam",
    "End",
    "Engine",
    "GeneratedText",
    "GenerationConfig",
    "Limits",
    "Rows",
    "Sampling",
    "StopRules",
    "Stopper",
    "Stream",
    "Token",
    "beam_search",
    "fresh_seed",
    "keep_last",
    "sample",
    "search",
    "stream",
    "write",
]
