"""Training within the memory one has: optimizers, data and the loop."""
