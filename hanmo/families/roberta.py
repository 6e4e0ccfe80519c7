"""RoBERTa, XLM-R and CamemBERT (facebookresearch/fairseq, in Hugging Face's names): BERT with one segment.

fairseq counts the positions of real tokens from pad_token_id + 1, so the first rows of the position table are never
used. The three differ in their vocabularies alone.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from hanmo.config import ModelConfig
from hanmo.families import bert
from hanmo.families.family import Config, Family, Row, blocks, layers, read, row, torch_pair


def _config(data: Config, *, family: str) -> ModelConfig:
    offset = read(data, "pad_token_id", int, 1) + 1
    config = bert.huggingface_encoder(data, family=family, position_offset=offset)
    # The head takes gelu, whatever hidden_act is.
    return replace(config, nsp=False, head_activation="gelu_erf")


def _original(config: ModelConfig, *, model_type: str, word: str) -> dict[str, Any]:
    ids = {"pad_token_id": config.main.position_offset - 1, "bos_token_id": 0, "eos_token_id": 2}
    return bert.huggingface_original(model_type, word)(config) | ids


def _rows(config: ModelConfig) -> list[Row]:
    bert.check_tied(config)
    return [
        *layers(torch_pair, bert.EMBEDDING, theirs="roberta.embeddings"),
        *blocks(config, bert.huggingface_block, "roberta.encoder.layer.{}"),
        *torch_pair("pooler.dense", "roberta.pooler.dense"),
        *layers(torch_pair, {"output.dense": "dense", "output.norm": "layer_norm"}, theirs="lm_head"),
        row("output.bias", "lm_head.bias"),
    ]


def _family(name: str, model_type: str, word: str) -> Family:
    return Family(
        name,
        huggingface=bert.huggingface_names(
            "roberta",
            config=partial(_config, family=name),
            original=partial(_original, model_type=model_type, word=word),
            rows=_rows,
            heads={"pool": "roberta.pooler.dense.weight", "mlm": "lm_head.bias"},
            dropped={r"^lm_head\.decoder\.(weight|bias)$": "the same tensor as the embedding and lm_head.bias"},
            repeats=bert.huggingface_repeats("roberta", "lm_head"),
            marks=("roberta.embeddings.position_embeddings.weight",),
            model_type=model_type,
        ),
    )


ROBERTA = _family("roberta", "roberta", "Roberta")
XLM_ROBERTA = _family("xlm_roberta", "xlm-roberta", "XLMRoberta")
CAMEMBERT = _family("camembert", "camembert", "Camembert")
