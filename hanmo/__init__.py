"""Hanmo 翰墨: Chinese Transformer language models, from the original checkpoints, in PyTorch."""

__version__ = "0.1.0"
