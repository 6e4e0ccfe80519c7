"""How fast a model writes on this machine, and how well it foretells a text with its weights rounded."""
