"""Hostile files: mutated models, weights and data against every command; ``python -m fuzz``."""
