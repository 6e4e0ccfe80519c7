"""Choosing the next id: rules, loops and beams over arrays; nothing here imports torch."""
