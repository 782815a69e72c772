"""Builds a network with the weights of a file; every name, shape and value is checked.

    net, variables = load_pretrained("resnet50", "resnet50.pth")            # the file's own head
    loaded = load_network("resnet50", "keras/resnet50", num_classes=2)      # downloaded, a new head
    save_matched("resnet50.safetensors", match_arrays("resnet50", read_weights(file)), file)

`torchvision_names.py` and `keras_names.py` say which array of a file is which of ours, and which
options of `create_model` reproduce the original network. Converted files are matched here too.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping
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
from medadv_jax.models import HEAD, create_model
from medadv_jax.models.pretrained import download, keras_names, torchvision_names
from medadv_jax.models.pretrained.layers import SourceArray, unchanged
from medadv_jax.models.pretrained.read import FORMAT, RawWeights, read_weights, write_safetensors

ArrayPath = tuple[str, ...]  # ("params", "conv1", "kernel")
Options = dict[str, Any]  # JSON scalars
Variables = dict[str, Any]  # {"params": …, "batch_stats": …} of float32 numpy arrays

VERSION = "1"  # of the format of converted files
LAYOUTS: dict[str, Any] = {"torchvision": torchvision_names, "keras": keras_names}
_LISTED = 3  # names that an error lists of each kind of fault


@dataclasses.dataclass(frozen=True)
class MatchedWeights:
    """The checked arrays of a file under our names; without a head if the file has none.

    Attributes:
      name: of the network, a key of `MODELS`.
      source: "torchvision" or "keras", the library that the original file is for.
      options: of `create_model`, which reproduce the original network.
      normalization: of the network's inputs, a key of `classifier.NORMALIZATIONS`.
      num_classes: logits of the head; None without a head.
      arrays: path → float32 array.
    """

    name: str
    source: str
    options: Options
    normalization: str
    num_classes: int | None
    arrays: Mapping[ArrayPath, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A network with pretrained weights.

    Attributes:
      net: from `create_model`.
      variables: {"params": …, "batch_stats": …}, float32 numpy arrays.
      normalization: of the network's inputs, a key of `classifier.NORMALIZATIONS`.
      options: of `create_model`, beside num_classes, dtype and conv_impl.
      fresh: names of the arrays that are newly initialised instead of loaded: a new head.
    """

    net: nn.Module
    variables: Variables
    normalization: str
    options: Options
    fresh: tuple[str, ...]


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
            "torchvision/resnet50" or "keras/vgg16" (see `download.REGISTRY`).
        num_classes: logits of a new head; None keeps the file's head.
        width: must be 1, the width of all published weights.
        dtype: see `create_model`.
        conv_impl: see `create_model`.
        options: of `create_model`, overriding those of the file, as {"head": "gap"}.
        seed: of a new head's initialisation.

    Raises:
        UserError: `read_weights` fails, or the file holds other weights than the network's.
    """
    if width != 1:
        raise UserError(f"width={width} has no published weights; give 1, or weights=none")
    matched = match_arrays(name, read_weights(_find(name, path)), options)
    variables, fresh = build_variables(matched, num_classes, seed)
    classes = num_classes or matched.num_classes or 1
    net = create_model(name, classes, dtype=dtype, conv_impl=conv_impl, **matched.options)
    return Pretrained(net, variables, matched.normalization, matched.options, fresh)


def _find(name: str, path: str | Path) -> Path:
    """The path itself, or that of the downloaded file for a name such as `keras/vgg16`."""
    if str(path) not in download.REGISTRY or Path(path).exists():
        return Path(path)
    if str(path).partition("/")[2].removesuffix("_notop") != name:
        raise UserError(f"{path}: these are not weights of {name}")
    return download.fetch(str(path))


# Matching: names, shapes, values


def match_arrays(name: str, raw: RawWeights, options: Options | None = None) -> MatchedWeights:
    """Finds every array of a network in a file and converts it to our layout.

    Args:
        name: of the network.
        raw: the file's content; see `read_weights`.
        options: of `create_model`, overriding those of the file. With another `head`, the file's
            head is left out.

    Raises:
        UserError: arrays are missing, unknown or misshapen, hold NaN, infinities or a negative
            variance; or a converted file is damaged or of another network.
    """
    source, own, normalization = _origin(name, raw)
    wanted = {**own, **(options or {})}
    converted = raw.layout not in LAYOUTS
    sources = _sources(name, raw, own if converted else wanted)
    head = {path for path in sources if path[1] in HEAD[name]}
    has_head = any(sources[path].name in raw.arrays for path in head)
    used = {path: found for path, found in sources.items() if has_head or path not in head}
    num_classes = _num_classes(raw, sources) if has_head else None

    expected = _file_shapes(name, num_classes or 1, own if converted else wanted, raw)
    if wanted.get("head") != own.get("head"):
        used = {path: found for path, found in used.items() if path not in head}
        num_classes = None
    _check_options(name, raw, used, expected)
    arrays = _checked(name, raw, used, expected, {found.name for found in sources.values()})
    return MatchedWeights(name, source, wanted, normalization, num_classes, arrays)


def _origin(name: str, raw: RawWeights) -> tuple[str, Options, str]:
    """Source library, options of `create_model` and normalisation of the original network."""
    if raw.layout in LAYOUTS:
        layout = LAYOUTS[raw.layout]
        if name not in layout.OPTIONS:
            known = ", ".join(sorted(layout.OPTIONS))
            raise UserError(f"{raw.path}: {name!r} has no weights; choose one of {known}")
        return raw.layout, layout.OPTIONS[name], layout.NORMALIZATION[name]
    metadata = raw.metadata
    if metadata.get("arch") != name:
        raise UserError(f"{raw.path}: converted weights of {metadata.get('arch')}, not of {name}")
    try:
        options = json.loads(metadata["options"])
        known = LAYOUTS[metadata["source"]].NORMALIZATION.values()
        if metadata["version"] != VERSION or metadata["normalization"] not in known:
            raise ValueError("unknown version or normalisation")
        return metadata["source"], dict(options), metadata["normalization"]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{raw.path}: its metadata is damaged or not of version {VERSION}; convert it again"
        ) from error


def _sources(name: str, raw: RawWeights, options: Options) -> dict[ArrayPath, SourceArray]:
    """Path of each array of the network → its name in the file, and the transform."""
    if raw.layout == "torchvision":
        return torchvision_names.sources(name, aux=bool(options.get("aux")))
    if raw.layout == "keras":
        return keras_names.sources(name)
    shapes = _file_shapes(name, 1, options, raw)
    return {path: SourceArray("/".join(path), unchanged) for path in shapes}


def _num_classes(raw: RawWeights, sources: Mapping[ArrayPath, SourceArray]) -> int:
    bias = raw.arrays.get(sources["params", "fc", "bias"].name)
    if bias is None or bias.ndim != 1 or not bias.size:
        raise UserError(f"{raw.path}: its head has no {sources['params', 'fc', 'bias'].name}")
    return bias.size


def _file_shapes(
    name: str, num_classes: int, options: Options, raw: RawWeights
) -> dict[ArrayPath, tuple[int, ...]]:
    """`array_shapes`, where the options come from a file: an error names that file."""
    try:
        return array_shapes(name, num_classes, tuple(sorted(options.items())))
    except UserError as error:
        raise UserError(f"{raw.path}: {error}") from error


@functools.lru_cache(maxsize=16)
def array_shapes(name: str, num_classes: int, options: tuple) -> dict[ArrayPath, tuple[int, ...]]:
    """Returns path → shape of every array of a network; `options`: sorted items, hashable."""
    net = create_model(name, num_classes, **dict(options))
    flat: Any = flatten_dict(jax.eval_shape(net.init, jax.random.key(0), images_of(name)))
    return {path: leaf.shape for path, leaf in flat.items()}


def images_of(name: str, batch: int = 1) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of a batch of images of the paper's size."""
    size = 299 if name == "inception_v3" else 224
    return jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)


def _check_options(
    name: str,
    raw: RawWeights,
    sources: Mapping[ArrayPath, SourceArray],
    expected: Mapping[ArrayPath, tuple[int, ...]],
) -> None:
    """Raises UserError where options give the network other arrays than the original has."""
    odd = sorted(path for path in sources.keys() ^ expected.keys() if path[1] not in HEAD[name])
    if odd:
        names = _listed("other", ["/".join(path) for path in odd])
        raise UserError(f"{raw.path}: {name} with these options is another network: {names} arrays")


def _checked(
    name: str,
    raw: RawWeights,
    sources: Mapping[ArrayPath, SourceArray],
    expected: Mapping[ArrayPath, tuple[int, ...]],
    known: set[str],
) -> dict[ArrayPath, np.ndarray]:
    """Returns path → float32 array for all `sources`; one UserError lists all faults."""
    ignored = LAYOUTS[raw.layout].IGNORED if raw.layout in LAYOUTS else ()
    missing = [found.name for found in sources.values() if found.name not in raw.arrays]
    extra = [
        key
        for key in raw.arrays
        if key not in known and not any(re.fullmatch(pattern, key) for pattern in ignored)
    ]
    arrays: dict[ArrayPath, np.ndarray] = {}
    misshapen: list[str] = []
    for path, found in sources.items():
        if found.name in raw.arrays and path in expected:
            try:
                arrays[path] = found.transform(raw.arrays[found.name])
            except (ValueError, IndexError):  # too many or too few axes
                arrays[path] = np.zeros(0)
            if arrays[path].shape != expected[path]:
                misshapen.append(f"{found.name} {raw.arrays[found.name].shape}")
    faults = [
        _listed(kind, names)
        for kind, names in (("missing", missing), ("extra", extra), ("misshapen", misshapen))
        if names
    ]
    if faults:
        raise UserError(
            f"{raw.path}: not {name} in the layout of {raw.layout}: {'; '.join(faults)}"
        )
    return {path: _as_float32(raw, sources[path].name, path, arrays[path]) for path in arrays}


def _listed(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)} {kind} ({', '.join(name[:80] for name in names[:_LISTED])}{more})"


def _as_float32(raw: RawWeights, key: str, path: ArrayPath, array: np.ndarray) -> np.ndarray:
    """Converts to float32; raises UserError for other types, NaN, infinity, negative variance."""
    if array.dtype.kind not in "fV" and array.dtype.name != "bfloat16":
        raise UserError(f"{raw.path}: {key} is {array.dtype}, not floating point")
    with np.errstate(over="ignore"):  # float64 beyond float32: an infinity, below
        array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{raw.path}: {key} holds NaN or infinities; it is damaged or diverged")
    if path[0] == "batch_stats" and path[-1] == "var" and (array < 0).any():
        raise UserError(f"{raw.path}: {key} holds a negative variance; it is damaged")
    return array


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
