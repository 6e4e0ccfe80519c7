"""The second start: from the shell to the text without torch; and what importing OpenVINO does not do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from opening import open_engine

GOLDENS = Path(__file__).parent.parent / "data" / "goldens"

PROGRAM = """
import sys
from pathlib import Path
from hanmo.inference.openvino.engine import OpenVinoEngine, open_weights
from hanmo.generate import GREEDY, Limits
from hanmo.generate.stop import NEVER
from hanmo.generate.options import GenerationConfig
from hanmo.generate.text import write
from hanmo.tokenizers import WordPiece

words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(0x4E00 + i) for i in range(115))]
engine = OpenVinoEngine(open_weights(Path(sys.argv[1]), weights="float32", folder=Path(sys.argv[2])))
config = GenerationConfig(sampling=GREEDY, limits=Limits(max_tokens=9), stop=NEVER)
[[written]] = write(engine, WordPiece(words), ["一丁"], config=config, seed=1)
assert "torch" not in sys.modules, "torch was imported"
print(*written.ids)
"""


def test_a_second_start_writes_the_same_text_and_never_imports_torch(tmp_path):
    checkpoint = GOLDENS / "gpt2_ml" / "model.ckpt"
    engine = open_engine(checkpoint, weights="float32", folder=tmp_path)
    rows, logits = engine.prefill([[5, 6]], room=9)
    expected = [int(logits.argmax())]
    while len(expected) < 9:
        expected.append(int(rows.step(expected[-1:]).argmax()))
    program = [sys.executable, "-c", PROGRAM, str(checkpoint), str(tmp_path)]
    result = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert [int(id) for id in result.stdout.split()] == expected


@pytest.mark.parametrize("module", ["hanmo.inference.openvino.engine", "hanmo.export.openvino"])
def test_openvino_sends_no_telemetry_and_writes_nothing_into_the_home_folder(tmp_path, module):
    program = f"import {module}\nfrom openvino.tools import ovc\nprint(type(ovc.telemetry).__module__)"
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**kept, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout == "openvino.tools.ovc.telemetry_stub\n", result.stderr
    assert list(tmp_path.iterdir()) == []
