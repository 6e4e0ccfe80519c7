"""Decoder and models together: the 288 recorded outputs of bert4keras over its tiny golden checkpoints."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hanmo.compat.bert4keras.models import build_transformer_model
from hanmo.compat.bert4keras.snippets import AutoRegressiveDecoder

GOLDENS = Path(__file__).parent.parent / "data" / "goldens"
CASES = json.loads((GOLDENS / "generate.json").read_text(encoding="utf-8"))
NAMES = {"gpt_nosegment": "gpt", "t5_1.0": "t5.1.0", "t5_1.1": "t5.1.1"}
COUNTS = {
    "gpt2_ml": 48,
    "gpt2": 48,
    "gpt_nosegment": 48,
    "bert application=lm": 48,
    "bert application=unilm": 32,
    "t5_1.0": 32,
    "t5_1.1": 32,
}


def build(name):
    kind, _, application = name.partition(" application=")
    return build_transformer_model(
        config_path=str(GOLDENS / kind / "config.json"),
        checkpoint_path=str(GOLDENS / kind / "model.ckpt"),
        model=NAMES.get(kind, kind),
        **({"application": application} if application else {}),
        **({"return_keras_model": False} if kind.startswith("t5") else {}),
    )


def make_decoder(name, model, case):
    class Decoder(AutoRegressiveDecoder):
        @AutoRegressiveDecoder.wraps(default_rtype="probas")
        def predict(self, inputs, output_ids, states):
            if name.startswith("t5"):
                return self.last_token(model.decoder).predict([inputs[0], output_ids])
            token_ids = np.concatenate([inputs[0], output_ids], axis=1)
            if not name.startswith("bert"):
                return self.last_token(model).predict(token_ids)
            segments = np.zeros_like(token_ids)
            if name.endswith("unilm"):
                segments[:, inputs[0].shape[1] :] = 1
            return self.last_token(model).predict([token_ids, segments])

    return Decoder(case["start_id"], case["end_id"], case["maxlen"], case["minlen"])


def test_there_are_as_many_cases_as_were_recorded():
    assert Counter(case["model"] for case in CASES) == COUNTS and len(CASES) == 288


@pytest.mark.parametrize("name", COUNTS)
def test_a_model_writes_what_it_wrote_in_bert4keras(name):
    model, compared = build(name), 0
    for case in CASES:
        if case["model"] != name:
            continue
        decoder = make_decoder(name, model, case)
        inputs = [case["prompt"]]
        if name.startswith("t5"):
            inputs = [model.encoder.predict(np.array(inputs))[0]]
        temperature = {"temperature": case["temperature"]} if "temperature" in case else {}
        if case["fn"] == "beam_search":
            out = decoder.beam_search(inputs, case["topk"], **temperature).tolist()
        else:
            np.random.seed(case["seed"])
            drawn = decoder.random_sample(inputs, case["n"], case.get("topk"), case.get("topp"), **temperature)
            out = [ids.tolist() for ids in drawn]
        assert out == case["out"], case
        compared += 1
    assert compared == COUNTS[name]
