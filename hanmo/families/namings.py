"""What other projects call the tensors of families that have tables of their own, as renames into those tables.

Data only, applied by `checkpoint/renamed.py`; nothing is written in these names. WRAPPERS are names of modules around
a network that was saved with them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hanmo.families.albert import GROUP

WRAPPERS = (
    *("module", "model", "_orig_mod"),  # DataParallel, Lightning and DeepSpeed, torch.compile
    *("net", "network", "backbone", "base_model", "encoder", "text_encoder", "transformer"),
    *("bert", "bert_model", "plm", "ptm", "lm"),
)


@dataclass(frozen=True)
class Naming:
    """The names that one project gives the tensors of a network.

    project: whose.   marks: names that are all there, and tell this naming from others.
    renames: regular expression → replacement, applied to every name, one after the other.
    how: regular expression of a new name → the way of `checkpoint.renamed.HOW` that makes its tensor from those that
    got this name; "same" where none matches.
    config_keys: a key of the project's config.json → those that the family reads; the first tells that it is the
    project's, and the shapes tell what is not here.
    config_fixed: key → the only value that is the family's network.   config_ignored: keys that are not true here.
    """

    project: str
    marks: tuple[str, ...]
    renames: tuple[tuple[str, str], ...]
    how: Mapping[str, str] = field(default_factory=dict)
    config_keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    config_fixed: Mapping[str, str] = field(default_factory=dict)
    config_ignored: tuple[str, ...] = ()


# dbiir/UER-py and Tencent/TencentPretrain: scripts/convert_{bert,gpt2}_from_*_to_huggingface.py, and
# convert_tencentpretrain_from_old_to_new.py for the names of before.
_UER_ENDS = ((r"\.gamma$", ".weight"), (r"\.beta$", ".bias"))
_UER_LAYER = "encoder.transformer.0.self_attn.linear_layers.0.weight"
_UER_BERT = Naming(
    "UER-py",
    marks=(_UER_LAYER, "embedding.layer_norm.gamma"),
    renames=(
        *_UER_ENDS,
        (r"^embedding\.word[._]embedding\.", "bert.embeddings.word_embeddings."),
        (r"^embedding\.(pos\.|position_)embedding\.", "bert.embeddings.position_embeddings."),
        (r"^embedding\.(seg\.|segment_)embedding\.", "bert.embeddings.token_type_embeddings."),
        (r"^embedding\.layer_norm\.", "bert.embeddings.LayerNorm."),
        (r"^encoder\.transformer\.(\d+)\.", r"bert.encoder.layer.\1."),
        (r"\.self_attn\.linear_layers\.0\.", ".attention.self.query."),
        (r"\.self_attn\.linear_layers\.1\.", ".attention.self.key."),
        (r"\.self_attn\.linear_layers\.2\.", ".attention.self.value."),
        (r"\.self_attn\.final_linear\.", ".attention.output.dense."),
        (r"\.layer_norm_1\.", ".attention.output.LayerNorm."),
        (r"\.feed_forward\.linear_1\.", ".intermediate.dense."),
        (r"\.feed_forward\.linear_2\.", ".output.dense."),
        (r"\.layer_norm_2\.", ".output.LayerNorm."),
        (r"^target\.(sp\.|(sp|nsp|sop)_)linear_1\.", "bert.pooler.dense."),
        (r"^target\.(sp\.|(sp|nsp|sop)_)linear_2\.", "cls.seq_relationship."),
        (r"^target\.mlm[._]linear_1\.", "cls.predictions.transform.dense."),
        (r"^target\.(mlm\.)?layer_norm\.", "cls.predictions.transform.LayerNorm."),
        (r"^target\.mlm[._]linear_2\.weight$", "cls.predictions.decoder.weight"),
        (r"^target\.mlm[._]linear_2\.bias$", "cls.predictions.bias"),
        (r"^output_layer_1\.", "bert.pooler.dense."),  # of its text classifiers
        (r"^output_layer_2\.", "classifier."),
    ),
    # The first row is of padding; texts' segments are 1 and 2.
    how={r"^bert\.embeddings\.token_type_embeddings\.weight$": "without_first"},
    config_keys={
        "layers_num": ("num_hidden_layers",),
        "heads_num": ("num_attention_heads",),
        "hidden_act": ("hidden_act",),
        "dropout": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    },
)
_UER_GPT2 = Naming(
    "UER-py",
    marks=(_UER_LAYER, "encoder.layer_norm.gamma"),
    renames=(
        *_UER_ENDS,
        (r"^embedding\.word[._]embedding\.", "transformer.wte."),
        (r"^embedding\.(pos\.|position_)embedding\.", "transformer.wpe."),
        (r"^encoder\.layer_norm\.", "transformer.ln_f."),
        (r"^encoder\.transformer\.(\d+)\.", r"transformer.h.\1."),
        (r"\.self_attn\.linear_layers\.[012]\.", ".attn.c_attn."),
        (r"\.self_attn\.final_linear\.", ".attn.c_proj."),
        (r"\.layer_norm_1\.", ".ln_1."),
        (r"\.feed_forward\.linear_1\.", ".mlp.c_fc."),
        (r"\.feed_forward\.linear_2\.", ".mlp.c_proj."),
        (r"\.layer_norm_2\.", ".ln_2."),
        (r"^target\.(lm\.)?output_layer\.weight$", "lm_head.weight"),
    ),
    how={
        r".*\.c_attn\.weight$": "join_transpose",
        r".*\.c_attn\.bias$": "join",
        r".*\.(c_proj|c_fc)\.weight$": "transpose",
    },
    config_keys={
        "layers_num": ("n_layer",),
        "heads_num": ("n_head",),
        "hidden_act": ("activation_function",),
        "dropout": ("resid_pdrop", "attn_pdrop"),
    },
)

# Tongjilibo/bert4torch, bert4torch/models/bert.py: variable_mapping, of its first versions and of later ones. Its
# GPT2_ML has the same names without segments, and norms in other places.
_BERT4TORCH = Naming(
    "bert4torch",
    marks=("encoderLayer.0.multiHeadAttention.q.weight", "embeddings.segment_embeddings.weight"),
    renames=(
        (r"^embeddings\.segment_embeddings\.", "embeddings.token_type_embeddings."),
        (r"^embeddings\.layerNorm\.", "embeddings.LayerNorm."),
        (r"^encoderLayer\.(\d+)\.", r"encoder.layer.\1."),
        (r"\.multiHeadAttention\.q\.", ".attention.self.query."),
        (r"\.multiHeadAttention\.k\.", ".attention.self.key."),
        (r"\.multiHeadAttention\.v\.", ".attention.self.value."),
        (r"\.multiHeadAttention\.o\.", ".attention.output.dense."),
        (r"\.(layerNorm1|attnLayerNorm)\.", ".attention.output.LayerNorm."),
        (r"\.feedForward\.intermediateDense\.", ".intermediate.dense."),
        (r"\.feedForward\.outputDense\.", ".output.dense."),
        (r"\.(layerNorm2|ffnLayerNorm)\.", ".output.LayerNorm."),
        (r"^pooler\.", "pooler.dense."),
        (r"^nsp\.", "cls.seq_relationship."),
        (r"^mlmDense\.", "cls.predictions.transform.dense."),
        (r"^mlmLayerNorm\.", "cls.predictions.transform.LayerNorm."),
        (r"^mlmBias$", "cls.predictions.bias"),
        (r"^mlmDecoder\.", "cls.predictions.decoder."),
    ),
)

# brightmart/albert_zh, modeling.py: embedding_lookup_factorized maps token vectors before positions are added, so that
# the product of both matrices is an embedding as wide as the network; the MLM head is tied to it likewise.
_ALBERT_ZH = Naming(
    "albert_zh",
    marks=("bert/encoder/layer_shared/attention/self/query/kernel", "bert/embeddings/word_embeddings_2"),
    renames=(
        (r"^bert/embeddings/word_embeddings_2$", "bert/embeddings/word_embeddings"),
        (r"^bert/encoder/layer_shared/attention/output/LayerNorm/", f"{GROUP}/LayerNorm/"),
        (r"^bert/encoder/layer_shared/attention/", f"{GROUP}/attention_1/"),
        (r"^bert/encoder/layer_shared/intermediate/", f"{GROUP}/ffn_1/intermediate/"),
        (r"^bert/encoder/layer_shared/output/LayerNorm/", f"{GROUP}/LayerNorm_1/"),
        (r"^bert/encoder/layer_shared/output/", f"{GROUP}/ffn_1/intermediate/output/"),
    ),
    how={r"^bert/embeddings/word_embeddings$": "product"},
    config_fixed={"ln_type": "postln"},  # modeling_preln.py puts the same names in another order
    config_ignored=("embedding_size",),
)

NAMINGS = (_UER_BERT, _UER_GPT2, _BERT4TORCH, _ALBERT_ZH)
