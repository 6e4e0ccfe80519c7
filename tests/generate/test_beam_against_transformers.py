"""Beams against transformers' search on tiny random models: the same texts in the same order, with the same scores."""

import numpy as np
import pytest
import torch

import hanmo
from hanmo.generate import Limits, Sampling, beam_search

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

WIDTH, STEPS, PAD, END = 4, 8, 1, 3
PROMPTS = [[5], [6, 7, 8, 9, 7], [11, 11, 12]]


@pytest.fixture(scope="module", params=["gpt2", "t5"])
def both(request, tmp_path_factory):
    """The model as transformers made it, and the engine of the same weights."""
    torch.manual_seed(1)
    if request.param == "gpt2":
        sizes = {"vocab_size": 40, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=2, eos_token_id=END))
    else:
        sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
        config = transformers.T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0, eos_token_id=END)
        theirs = transformers.T5ForConditionalGeneration(config)
    with torch.no_grad():  # a wide spread: scores of different texts are far apart
        for parameter in theirs.parameters():
            parameter.mul_(8) if parameter.ndim > 1 else None
    folder = tmp_path_factory.mktemp(request.param)
    theirs.eval().save_pretrained(folder)
    return theirs, hanmo.load(folder).engine


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -0.5])
@pytest.mark.parametrize(
    ("theirs_only", "sampling", "least"),
    [
        ({}, {}, 0),
        ({"bad_words_ids": [[4], [9], [13], [20]]}, {"banned": (4, 9, 13, 20)}, 0),
        ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram": 2}, 0),
        ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}, 0),
        ({"repetition_penalty": 0.8}, {"repetition_penalty": 0.8}, 0),
        ({"min_new_tokens": 5}, {}, 5),
        (
            {"bad_words_ids": [[4], [9]], "no_repeat_ngram_size": 3, "repetition_penalty": 1.2, "min_new_tokens": 3},
            {"banned": (4, 9), "no_repeat_ngram": 3, "repetition_penalty": 1.2},
            3,
        ),
    ],
)
def test_beams_are_those_of_transformers(both, theirs_only, sampling, least, length_penalty):
    theirs, engine = both
    answers = theirs.config.is_encoder_decoder
    # Id 1 fills up what transformers returns; id 0, T5's start, counts as written there and must not matter.
    banned = [[0], [PAD], *theirs_only.get("bad_words_ids", [])]
    for prompt in PROMPTS:
        found = theirs.generate(
            torch.tensor([prompt]),
            **{**theirs_only, "bad_words_ids": banned},
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=STEPS,
            num_beams=WIDTH,
            num_return_sequences=WIDTH,
            do_sample=False,
            early_stopping="never",
            length_penalty=length_penalty,
            eos_token_id=END,
            pad_token_id=PAD,
            return_dict_in_generate=True,
            output_scores=True,
        )
        start = 1 if answers else len(prompt)
        expected = [tuple(id for id in row[start:].tolist() if id != PAD) for row in found.sequences]
        ours = beam_search(
            engine,
            prompt,
            WIDTH,
            sampling=Sampling(**{**sampling, "banned": tuple(id for (id,) in banned)}),
            limits=Limits(max_tokens=STEPS, min_tokens=least, end_ids=(END,)),
            length_penalty=length_penalty,
            history=not answers,
        )
        assert [beam.ids for beam in ours] == expected
        np.testing.assert_allclose([beam.score for beam in ours], found.sequences_scores, rtol=1e-4)
