"""The tokenizers: text to ids and back, for every kind of vocabulary file; nothing here imports torch."""
