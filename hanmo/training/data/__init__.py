"""Training data: text files, documents, packed rows, pairs, masked words."""
