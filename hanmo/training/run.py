"""The former home of `gpt2_ml_config`, kept for one version."""

from hanmo.families.gpt2_ml import gpt2_ml_config

__all__ = ["gpt2_ml_config"]
