"""Pretrained weights: reading, checking, converting, saving and downloading.

    net, variables = load_pretrained("resnet50", "resnet50.pth", num_classes=None)
    logits = net.apply(variables, images, train=False)   # images normalised as for the original

`read.py` reads a file (`listing/` finds its arrays in a subprocess, `keras_files.py` names Keras').
`torchvision_names.py` and `keras_names.py` name the arrays of the networks, `match.py` finds these
in a file, `wrappers.py` within another model; `head.py` says whether its head is for the classes of
the data. `load.py` builds networks, `download.py` gets the published files, `verify.py` compares
logits with the original library's.
"""

from medadv_jax.models.pretrained.load import (
    Pretrained,
    find_weights,
    load_network,
    load_pretrained,
    save_converted,
    save_matched,
)
from medadv_jax.models.pretrained.match import match_arrays
from medadv_jax.models.pretrained.read import RawWeights, read_weights

__all__ = [
    "Pretrained",
    "RawWeights",
    "find_weights",
    "load_network",
    "load_pretrained",
    "match_arrays",
    "read_weights",
    "save_converted",
    "save_matched",
]
