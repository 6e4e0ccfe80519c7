"""How fast a model writes on this machine, and how well it predicts a text with its weights rounded."""
