"""Pretrained weights: reading, checking, converting, storing and fetching them.

    net, variables = load_pretrained("resnet50", "resnet50.pth", num_classes=None)
    logits = net.apply(variables, images, train=False)   # images normalised as the original's

`files.py` reads a file (`pickles.py`: PyTorch's, `keras_files.py`: Keras'), `torchvision.py` and
`keras.py` say what goes where, `conversion.py` joins the two, `fetch.py` knows the published files.
"""

from medadv_jax.models.pretrained.load import (
    Pretrained,
    convert,
    load,
    load_pretrained,
    match,
    save_converted,
    store,
)
from medadv_jax.models.pretrained.read import RawWeights, read_weights

__all__ = [
    "Pretrained",
    "RawWeights",
    "convert",
    "load",
    "load_pretrained",
    "match",
    "read_weights",
    "save_converted",
    "store",
]
