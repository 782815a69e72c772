"""Predictions under attack, and every number that is derived from them."""
