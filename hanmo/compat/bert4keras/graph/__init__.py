"""bert4keras's training scripts on Keras 3 over torch: networks, models, layers, backend functions and optimizers.

Importing a module of this package imports Keras, whose backend must be torch; nothing of it is imported elsewhere.
"""
