"""RoBERTa, XLM-R and CamemBERT (facebookresearch/fairseq, in Hugging Face's names): BERT with one segment.

fairseq counts the positions of real tokens from pad_token_id + 1, so the first rows of the position table are never
used. The three differ in their vocabularies alone.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from hanmo.config import ModelConfig
from hanmo.families.bert import (
    HUGGINGFACE_DROPPED,
    check_tied,
    huggingface_embedding,
    huggingface_encoder,
    huggingface_layer,
    huggingface_original,
    huggingface_sizes,
)
from hanmo.families.family import Config, Family, Names, Row, blocks, read, row, torch_pair


def _config(data: Config, *, family: str) -> ModelConfig:
    offset = read(data, "pad_token_id", int, 1) + 1
    config = huggingface_encoder(data, family=family, position_offset=offset)
    # The head takes gelu, whatever hidden_act is.
    return replace(config, nsp=False, head_activation="gelu_erf")


def _original(config: ModelConfig, *, model_type: str, word: str) -> dict[str, Any]:
    data = huggingface_original(model_type, word)(config)
    data.pop("embedding_size", None)
    return data | {"pad_token_id": config.main.position_offset - 1, "bos_token_id": 0, "eos_token_id": 2}


def _rows(config: ModelConfig) -> list[Row]:
    check_tied(config)
    return [
        *huggingface_embedding("encoder", "roberta.embeddings"),
        *blocks(config, huggingface_layer, "roberta.encoder.layer.{}"),
        *torch_pair("pooler.dense", "roberta.pooler.dense"),
        *torch_pair("output.dense", "lm_head.dense"),
        *torch_pair("output.norm", "lm_head.layer_norm"),
        row("output.bias", "lm_head.bias"),
    ]


def _family(name: str, model_type: str, word: str) -> Family:
    return Family(
        name,
        huggingface=Names(
            config=partial(_config, family=name),
            original=partial(_original, model_type=model_type, word=word),
            rows=_rows,
            sizes=huggingface_sizes("roberta"),
            heads={"pool": "roberta.pooler.dense.weight", "mlm": "lm_head.bias"},
            dropped=HUGGINGFACE_DROPPED
            | {r"^lm_head\.decoder\.(weight|bias)$": "the same tensor as the embedding and lm_head.bias"},
            repeats={
                "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
                "lm_head.decoder.bias": "lm_head.bias",
            },
            marks=("roberta.embeddings.position_embeddings.weight",),
            model_type=model_type,
            prefix="roberta.",
        ),
    )


ROBERTA = _family("roberta", "roberta", "Roberta")
XLM_ROBERTA = _family("xlm_roberta", "xlm-roberta", "XLMRoberta")
CAMEMBERT = _family("camembert", "camembert", "Camembert")
