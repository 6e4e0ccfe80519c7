"""Every model case of the goldens through the bert4keras face: what bert4keras computed, within 2e-5 (T5 5e-5)."""

import json
from pathlib import Path

import numpy as np
import pytest

from hanmo.compat.bert4keras import backend
from hanmo.compat.bert4keras.layers import Input
from hanmo.compat.bert4keras.models import build_transformer_model

GOLDENS = Path(__file__).parent.parent / "data" / "goldens"
CASES = [
    (folder.name, case)
    for folder in sorted(GOLDENS.iterdir())
    if (folder / "cases.json").is_file()
    for case in json.loads((folder / "cases.json").read_text("utf-8"))
]


def test_no_golden_case_is_left_out():
    kinds = {kind for kind, _ in CASES}
    assert (len(CASES), len(kinds)) == (119, 17)


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_predict_equals_bert4keras(kind, case):
    folder = GOLDENS / kind
    told = json.loads((folder / "cases.json").read_text("utf-8"))[case]
    arrays = np.load(folder / "cases.npz")
    kwargs = dict(told["kwargs"])
    if "compound_tokens" in kwargs:  # JSON has no tuples: two lists of lists are (ids, weights)
        kwargs["compound_tokens"] = [
            tuple(item) if isinstance(item[0], list) else item for item in kwargs["compound_tokens"]
        ]
    if "cond" in told["inputs"]:
        kwargs["layer_norm_cond"] = Input(shape=(arrays[f"{case}/in/cond"].shape[1],), name="cond")
    backend.set_gelu(told["set_gelu"] or "erf")
    try:
        model = build_transformer_model(
            str(folder / "config.json"), str(folder / "model.ckpt"), model=told["model"], **kwargs
        )
    finally:
        backend.set_gelu("erf")
    assert model.input_names == told["inputs"]
    set_extra_weights(model, arrays, case)
    outputs = model.predict([arrays[f"{case}/in/{name}"] for name in told["inputs"]])
    outputs = outputs if isinstance(outputs, list) else [outputs]
    assert [list(output.shape) for output in outputs] == told["outputs"]
    tolerance = 5e-5 if "t5" in kind else 2e-5
    for i, output in enumerate(outputs):
        np.testing.assert_allclose(output, arrays[f"{case}/out/{i}"], rtol=0, atol=tolerance)


def set_extra_weights(model, arrays, case):
    """Give conditional norms the kernels that the golden holds, as Keras's layers take them."""
    names = [key.split("/")[2] for key in arrays.files if key.startswith(f"{case}/extra/")]
    for name in dict.fromkeys(names):
        layer = model.get_layer(name)
        beta, gamma = layer.get_weights()[:2]
        extra = [arrays[f"{case}/extra/{name}/{weight}"] for weight in ("beta_dense", "gamma_dense")]
        layer.set_weights([beta, gamma, *extra])
