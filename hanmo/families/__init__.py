"""The table of families; a new family is one file beside this one and one line here. Data only."""

from collections.abc import Iterator

from hanmo.families.albert import ALBERT, ALBERT_UNSHARED
from hanmo.families.bert import BERT
from hanmo.families.electra import ELECTRA
from hanmo.families.family import Family, Names, Row, Sizes
from hanmo.families.gpt import GPT
from hanmo.families.gpt2 import GPT2, GPT2_OPENAI
from hanmo.families.gpt2_ml import GPT2_ML
from hanmo.families.nezha import NEZHA
from hanmo.families.roberta import CAMEMBERT, ROBERTA, XLM_ROBERTA
from hanmo.families.roformer import ROFORMER, ROFORMER_V2
from hanmo.families.t5 import MT5_1_1, T5_1_0, T5_1_1

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        BERT,
        ALBERT,
        ALBERT_UNSHARED,
        ELECTRA,
        NEZHA,
        ROFORMER,
        ROFORMER_V2,
        GPT,
        GPT2,
        GPT2_OPENAI,
        GPT2_ML,
        T5_1_0,
        T5_1_1,
        MT5_1_1,
        ROBERTA,
        XLM_ROBERTA,
        CAMEMBERT,
    )
}

FORMATS = ("tensorflow", "huggingface", "republished")


def tables() -> Iterator[tuple[str, str, Names]]:
    """Yield (family, format, table of names) of every family and format."""
    for family in FAMILIES.values():
        for form in FORMATS:
            if (names := family.names(form)) is not None:
                yield family.name, form, names


__all__ = ["FAMILIES", "Family", "Names", "Row", "Sizes", "tables"]
