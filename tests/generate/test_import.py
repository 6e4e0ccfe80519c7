import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["hanmo.generate", "hanmo.generate.text", "hanmo.generate.beam"])
def test_importing_generate_does_not_import_torch(module):
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_writing_does_not_import_torch():
    code = (
        "import sys, numpy as np; from hanmo.generate import Limits, Sampling, sample, beam_search\n"
        "from toy_engine import ToyEngine\n"
        "settings = Sampling(top_k=5, top_p=0.9, repetition_penalty=1.2, no_repeat_ngram=3, banned=(0,))\n"
        "assert len(list(sample(ToyEngine(), [[1, 2]], seed=1, sampling=settings, limits=Limits(max_tokens=5)))) == 6\n"
        "assert beam_search(ToyEngine(), [1, 2], 3, limits=Limits(max_tokens=4))\n"
        "sys.exit('torch' in sys.modules)"
    )
    folder = __file__.rpartition("/")[0] or "."
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=folder).returncode == 0
