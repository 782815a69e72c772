"""Builds a network with the weights of a file; every name, shape and value is checked.

    net, variables = load_pretrained("resnet50", "resnet50.pth")            # the file's own head
    loaded = load_network("resnet50", "keras/resnet50", num_classes=2)      # downloaded, a new head
    save_matched("resnet50.safetensors", match_arrays("resnet50", read_weights(file)), file)

`match.py` finds and checks the arrays; here a network is built of them, with a new head if asked.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError

from medadv_jax.errors import UserError
from medadv_jax.files import atomic_write
from medadv_jax.models import create_model
from medadv_jax.models.pretrained import download
from medadv_jax.models.pretrained.head import CLASSES
from medadv_jax.models.pretrained.match import (
    VERSION,
    ArrayPath,
    MatchedWeights,
    Options,
    array_shapes,
    images_of,
    match_arrays,
)
from medadv_jax.models.pretrained.own import find_model_folder, read_model_weights
from medadv_jax.models.pretrained.read import FORMAT, read_weights, write_safetensors

Variables = dict[str, Any]  # {"params": …, "batch_stats": …} of float32 numpy arrays


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A network with pretrained weights.

    Attributes:
      net: from `create_model`.
      variables: {"params": …, "batch_stats": …}, float32 numpy arrays.
      normalization: of the network's inputs, a key of `classifier.NORMALIZATIONS`.
      options: of `create_model`, beside num_classes, dtype and conv_impl.
      fresh: names of the arrays that are newly initialised instead of loaded: a new head.
      head: what became of the file's head, for the user.
    """

    net: nn.Module
    variables: Variables
    normalization: str
    options: Options
    fresh: tuple[str, ...]
    head: str


def load_pretrained(
    name: str, path: str | Path, num_classes: int | None = None
) -> tuple[nn.Module, Variables]:
    """Returns the network and its variables, float32 numpy arrays; see `load_network`."""
    loaded = load_network(name, path, num_classes)
    return loaded.net, loaded.variables


def load_network(
    name: str,
    path: str | Path,
    num_classes: int | None = None,
    *,
    class_names: Sequence[str] | None = None,
    width: float = 1.0,
    dtype: Any = "float32",
    conv_impl: str = "auto",
    options: Options | None = None,
    seed: int = 0,
) -> Pretrained:
    """Loads a network with its weights.

    Args:
        name: of the network, a key of `medadv_jax.models.MODELS`.
        path: a converted, torchvision or Keras file, or a published name such as
            "torchvision/resnet50" or "keras/vgg16" (see `download.REGISTRY`); or a run directory
            or a model folder.
        num_classes: logits of a new head; None keeps the file's head.
        class_names: instead of `num_classes`, the names of label 0, 1, …: the file's head is kept
            if it is for these classes, else there is a new one. A file without names has a head
            for them if it has as many logits.
        width: must be 1, the width of all published weights, or that of the model folder.
        dtype: see `create_model`.
        conv_impl: see `create_model`.
        options: of `create_model`, overriding those of the file, as {"head": "gap"}.
        seed: of a new head's initialisation.

    Raises:
        UserError: `read_weights` fails, or the file holds other weights than the network's.
    """
    if width != 1 and not Path(path).expanduser().is_dir():
        raise UserError(
            f"width={width}: files of weights are for the full width; give model.width=1, or"
            " model.weights=none"
        )
    found, new_head = find_weights(name, path), num_classes is not None
    raw = read_model_weights(found) if found.is_dir() else read_weights(found)
    matched = match_arrays(name, raw, options, new_head=new_head, class_names=class_names)
    if (own := matched.options.get("width", 1)) != width:
        raise UserError(f"model.width={width:g}: {found} has width {own:g}; give that")
    if class_names is not None and matched.num_classes is None:
        num_classes = len(class_names)
    variables, fresh = build_variables(matched, num_classes, seed)
    classes = num_classes or matched.num_classes or 1
    net = create_model(name, classes, dtype=dtype, conv_impl=conv_impl, **matched.options)
    return Pretrained(net, variables, matched.normalization, matched.options, fresh, matched.head)


def find_weights(name: str, path: str | Path) -> Path:
    """Returns the path of a file, fetched if it is a published name such as `keras/vgg16`; of a
    run directory its model folder.

    Raises:
        UserError: a name of another network than `name`, a download that fails, or no such file.
    """
    path = str(path)
    if path in download.REGISTRY and not Path(path).exists():
        if path.partition("/")[2].removesuffix("_notop") != name:
            source = path.partition("/")[0]
            raise UserError(f"{path}: these are not weights of {name}; give {source}/{name}")
        return download.fetch(path)
    if not Path(path).expanduser().exists():
        raise UserError(f"{path}: No such file or directory; give a file of weights")
    found = Path(path).expanduser()
    return find_model_folder(found) if found.is_dir() else found


# The head


def build_variables(
    matched: MatchedWeights, num_classes: int | None, seed: int = 0
) -> tuple[Variables, tuple[str, ...]]:
    """Returns the network's variables, and the names of the newly initialised arrays.

    Args:
        matched: from `match_arrays`.
        num_classes: logits of a new head; None keeps the file's head.
        seed: of the new head's initialisation.

    Raises:
        UserError: the file has no head and `num_classes` is None, or it is below 1.
    """
    classes = num_classes or matched.num_classes
    if num_classes is not None and num_classes < 1:
        raise UserError(f"num_classes={num_classes} is impossible; give at least 1")
    if classes is None:
        raise UserError(f"these weights of {matched.name} have no head; give num_classes")
    kept = {
        path: array
        for path, array in matched.arrays.items()
        if num_classes is None or path[-2] != "fc"  # the last layer of every network
    }
    expected = array_shapes(matched.name, classes, tuple(sorted(matched.options.items())))
    absent = tuple(path for path in expected if path not in kept)
    new = _initialised(matched, classes, absent, seed) if absent else {}
    flat = {path: kept.get(path, new.get(path)) for path in expected}
    return unflatten_dict(flat), tuple("/".join(path) for path in absent)


def _initialised(
    matched: MatchedWeights, num_classes: int, paths: tuple[ArrayPath, ...], seed: int
) -> dict[ArrayPath, np.ndarray]:
    draw = _compiled_init(matched.name, num_classes, tuple(sorted(matched.options.items())), paths)
    return dict(zip(paths, map(np.asarray, draw(jax.random.key(seed))), strict=True))


@functools.lru_cache(maxsize=16)
def _compiled_init(
    name: str, num_classes: int, options: tuple, paths: tuple[ArrayPath, ...]
) -> Callable[[jax.Array], list[jax.Array]]:
    """Returns a function from a key to the arrays at `paths`; jit drops the rest of `init`."""
    net, images = create_model(name, num_classes, **dict(options)), images_of(name)

    def draw(key: jax.Array) -> list[jax.Array]:
        flat: Any = flatten_dict(net.init(key, jnp.zeros(images.shape, images.dtype)))
        return [flat[path] for path in paths]

    return jax.jit(draw)


# Converted files


def save_matched(target: str | Path, matched: MatchedWeights, source: str | Path) -> None:
    """Saves matched weights as a converted file; `source` is the original file."""
    variables: Variables = unflatten_dict(dict(matched.arrays))
    save_converted(target, variables, _metadata(matched, Path(source).expanduser()))


def _metadata(matched: MatchedWeights, source: Path) -> dict[str, str]:
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "arch": matched.name,
        "source": matched.source,
        "source_file": source.name,
        "source_sha256": digest,
        "options": json.dumps(matched.options, sort_keys=True),
        "normalization": matched.normalization,
        "num_classes": str(matched.num_classes or 0),
        **({CLASSES: json.dumps(matched.classes)} if matched.classes else {}),
    }


def save_converted(path: str | Path, variables: Variables, metadata: Mapping[str, str]) -> None:
    """Saves variables as safetensors, float32 arrays named `collection/layer/array`.

    The file is written atomically: `path` is complete, or as it was before.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path).expanduser()
    arrays = {
        "/".join(keys): np.asarray(array, np.float32, order="C")
        for keys, array in flatten_dict(variables).items()
    }
    try:
        with atomic_write(path) as beside:
            write_safetensors(beside, arrays, {**metadata, "format": FORMAT, "version": VERSION})
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be written: {reason}") from error
