"""Takes off what a model around a network puts into the names of its arrays.

The attribute that holds the network is in front of its names, `model.conv1.weight`; in Keras the
model within the model, `vgg16/block1_conv1/kernel`.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator

from medadv_jax.errors import UserError
from medadv_jax.models.pretrained.read import RawWeights

_SEPARATORS = {"torchvision": ".", "keras": "/"}
_REMEDY = "keep one: a file of {name: array} for the names that begin with its prefix"


def unwrapped(name: str, raw: RawWeights, body: set[str]) -> tuple[RawWeights, tuple[str, ...]]:
    """Returns the content with the names of the network's own file, and the names left out.

    Arrays beside the network are left out if none of them is a convolution's: they are a head.

    Args:
      name: of the network, for the error.
      raw: the content of a file; a converted one is returned as it is.
      body: names of all arrays of the network, without its head.

    Raises:
      UserError: the network is there several times, or beside another one.
    """
    separator = _SEPARATORS.get(raw.layout)
    if separator is None or body <= raw.arrays.keys():
        return raw, ()
    found = Counter(prefix for key in raw.arrays for prefix in _prefixes(key, separator, body))
    whole = [prefix for prefix, count in found.items() if count == len(body)]
    if len(whole) > 1:
        first = min(body)
        places = ", ".join((prefix + first)[:80] for prefix in whole)
        raise UserError(f"{raw.path}: {name} is there {len(whole)} times ({places}); {_REMEDY}")
    prefix = max(found, key=found.__getitem__, default="")
    beside = tuple(key for key in raw.arrays if not key.startswith(prefix))
    networks = [key for key in beside if raw.arrays[key].ndim > 2]
    if networks and whole:
        within = prefix + min(body)
        raise UserError(
            f"{raw.path}: beside {name} ({within[:80]} …) it holds another network "
            f"({networks[0][:80]} …); {_REMEDY}"
        )
    if networks:  # another network, or a damaged one; what is missing will be listed
        return raw, ()
    arrays = {key[len(prefix) :]: raw.arrays[key] for key in raw.arrays if key.startswith(prefix)}
    return dataclasses.replace(raw, arrays=arrays), beside


def _prefixes(key: str, separator: str, body: set[str]) -> Iterator[str]:
    """Each prefix of a name after which the rest is a name in `body`."""
    start = 0
    while True:
        if key[start:] in body:
            yield key[:start]
        place = key.find(separator, start)
        if place < 0:
            return
        start = place + 1
