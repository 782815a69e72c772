"""Adversarially robust medical-image classifiers in JAX, measured honestly."""
