"""RoBERTa, XLM-R and CamemBERT (facebookresearch/fairseq, in Hugging Face's names): BERT with one segment.

fairseq counts the positions of real tokens from pad_token_id + 1, so the first rows of the position table are never
used. The three differ in their vocabularies alone.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from hanmo.config import ModelConfig
from hanmo.families import bert, keys
from hanmo.families.family import Config, Family

_NAMES = {
    **bert.names("roberta"),
    "pooler.dense": "roberta.pooler.dense",
    "output.dense": "lm_head.dense",
    "output.norm": "lm_head.layer_norm",
    "output.bias": "lm_head.bias",
}


def _config(data: Config, *, family: str) -> ModelConfig:
    offset = keys.read(data, "pad_token_id", int, 1) + 1
    config = bert.huggingface_config(data, family=family, position_offset=offset)
    # The head takes gelu, whatever hidden_act is.
    return replace(config, nsp=False, head_activation="gelu_erf")


def _original(config: ModelConfig, *, model_type: str, word: str) -> dict[str, Any]:
    ids: dict[str, Any] = {"pad_token_id": config.main.position_offset - 1, "bos_token_id": 0, "eos_token_id": 2}
    return bert.huggingface_original(config, model_type=model_type, word=word, **ids)


def _family(name: str, model_type: str, word: str) -> Family:
    names = bert.huggingface_names(
        "roberta",
        _NAMES,
        head="lm_head",
        config=partial(_config, family=name),
        original=partial(_original, model_type=model_type, word=word),
        marks=("roberta.embeddings.position_embeddings.weight",),
        model_type=model_type,
    )
    return Family(name, huggingface=names)


ROBERTA = _family("roberta", "roberta", "Roberta")
XLM_ROBERTA = _family("xlm_roberta", "xlm-roberta", "XLMRoberta")
CAMEMBERT = _family("camembert", "camembert", "Camembert")
