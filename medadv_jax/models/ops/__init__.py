"""Convolutions, pools and folded BatchNorm, in the form that suits the backend."""
