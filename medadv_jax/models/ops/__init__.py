"""Convolution, pooling and BatchNorm folding, with an implementation for each backend."""
