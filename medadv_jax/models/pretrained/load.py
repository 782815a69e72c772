"""From a file of weights to the variables of a network, every name and shape checked.

    net, variables = load_pretrained("resnet50", "resnet50.pth")        # with the file's own head
    pretrained = load("resnet50", "keras/resnet50", num_classes=2)      # fetched, with a new head
    store("resnet50.safetensors", match("resnet50", read_weights(file)), file)    # converted, once

Which array goes where, and which options make our network the original one, is written in
`torchvision.py` and `keras.py`; both layouts, and our own converted files, go the same way here.
"""

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from medadv_jax.errors import UserError
from medadv_jax.models import HEAD, create_model
from medadv_jax.models.pretrained import download, keras_names, torchvision_names
from medadv_jax.models.pretrained.layers import Source, same
from medadv_jax.models.pretrained.read import FORMAT, RawWeights, read_weights, write_safetensors

ArrayPath = tuple[str, ...]  # ("params", "conv1", "kernel")
Options = dict[str, Any]  # JSON scalars
Variables = dict[str, Any]  # {"params": …, "batch_stats": …} of float32 numpy arrays

VERSION = "1"  # of our own files
LAYOUTS: dict[str, Any] = {"torchvision": torchvision_names, "keras": keras_names}
_LISTED = 3  # names of each kind in an error


@dataclasses.dataclass(frozen=True)
class Matched:
    """The arrays of a file in our layout, all checked; without a head if the file has none.

    Attributes:
      name: of the network.
      source: the layout of the original file.
      options: of `create_model`, which make our network the original one.
      normalization: what the network's inputs were normalised with.
      num_classes: of the head; None: there is none.
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
    """A network that starts from given weights.

    Attributes:
      net: from `create_model`.
      variables: {"params": …, "batch_stats": …}, float32 numpy arrays.
      normalization: a key of `classifier.NORMALIZATIONS`, as the original network expects.
      options: of `create_model`, beside num_classes, dtype and conv_impl.
      fresh: names of the arrays that are not from the file but freshly initialised: a new head.
    """

    net: nn.Module
    variables: Variables
    normalization: str
    options: Options
    fresh: tuple[str, ...]


def load_pretrained(
    name: str, path: str | Path, num_classes: int | None = None
) -> tuple[nn.Module, Variables]:
    """Returns the network and its variables from a file of weights; see `load`."""
    loaded = load(name, path, num_classes)
    return loaded.net, loaded.variables


def load(
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
        name: of a network; see `medadv_jax.models`.
        path: a converted file, a torchvision or Keras file, or a name such as
            "torchvision/resnet50" or "keras/vgg16" (see `fetch.REGISTRY`).
        num_classes: a new head with this many logits; None keeps that of the file.
        width: 1; published weights have one width.
        dtype: see `create_model`.
        conv_impl: see `create_model`.
        options: of `create_model`, instead of those of the file: {"head": "gap"}.
        seed: of a new head.

    Raises:
        UserError: the file is not one of this network, or anything that `read_weights` refuses.
    """
    if width != 1:
        raise UserError(f"width={width} has no published weights; give 1, or weights=none")
    matched = match(name, read_weights(_find(name, path)), options)
    variables, fresh = complete(matched, num_classes, seed)
    classes = num_classes or matched.num_classes or 1
    net = create_model(name, classes, dtype=dtype, conv_impl=conv_impl, **matched.options)
    return Pretrained(net, variables, matched.normalization, matched.options, fresh)


def _find(name: str, path: str | Path) -> Path:
    """The file itself, or the fetched one of a name like `keras/vgg16`."""
    if str(path) not in download.REGISTRY or Path(path).exists():
        return Path(path)
    if str(path).partition("/")[2].removesuffix("_notop") != name:
        raise UserError(f"{path}: these are not weights of {name}")
    return download.fetch(str(path))


def convert(
    name: str, raw: RawWeights, num_classes: int | None = None, seed: int = 0
) -> tuple[Options, Variables]:
    """Returns the options of `create_model` (`num_classes` among them) and the variables.

    An int as `num_classes` replaces the head by a freshly initialised one, drawn from `seed`; a
    file without a head needs that. None keeps the file's own. UserError as in `match`.
    """
    matched = match(name, raw)
    variables, _ = complete(matched, num_classes, seed)
    return {**matched.options, "num_classes": num_classes or matched.num_classes or 1}, variables


# Matching: names, shapes, values


def match(name: str, raw: RawWeights, options: Options | None = None) -> Matched:
    """Finds every array of the network in a file and brings it into our layout.

    Args:
        name: of a network.
        raw: a file; see `read_weights`.
        options: of `create_model`, instead of those of the file. With another `head` the file's
            own is left out.

    Raises:
        UserError: arrays are missing, too many, or of another shape; or hold NaN, infinities or
            a negative variance; or our own file is damaged or of another network.
    """
    source, own, normalization = _origin(name, raw)
    wanted = {**own, **(options or {})}
    sources = _sources(name, raw, wanted if raw.layout in LAYOUTS else own)
    head = {path for path in sources if path[1] in HEAD[name]}
    top = any(sources[path].name in raw.arrays for path in head)
    used = {path: found for path, found in sources.items() if top or path not in head}
    num_classes = _num_classes(raw, sources) if top else None

    expected = _shapes(name, num_classes or 1, own if raw.layout not in LAYOUTS else wanted, raw)
    if wanted.get("head") != own.get("head"):
        used = {path: found for path, found in used.items() if path not in head}
        num_classes = None
    _check_options(name, raw, used, expected)
    arrays = _checked(name, raw, used, expected, {found.name for found in sources.values()})
    return Matched(name, source, wanted, normalization, num_classes, arrays)


def _origin(name: str, raw: RawWeights) -> tuple[str, Options, str]:
    """Layout of the original, the options that it asks for, and its normalisation."""
    if raw.layout in LAYOUTS:
        layout = LAYOUTS[raw.layout]
        if name not in layout.OPTIONS:
            known = ", ".join(sorted(layout.OPTIONS))
            raise UserError(f"{raw.path}: {name!r} has no weights; choose one of {known}")
        return raw.layout, layout.OPTIONS[name], layout.NORMALIZATION[name]
    told = raw.metadata
    if told.get("arch") != name:
        raise UserError(f"{raw.path}: converted weights of {told.get('arch')}, not of {name}")
    try:
        options = json.loads(told["options"])
        known = LAYOUTS[told["source"]].NORMALIZATION.values()
        if told["version"] != VERSION or told["normalization"] not in known:
            raise ValueError
        return told["source"], dict(options), told["normalization"]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{raw.path}: its metadata is damaged or not of version {VERSION}; convert it again"
        ) from error


def _sources(name: str, raw: RawWeights, options: Options) -> dict[ArrayPath, Source]:
    if raw.layout == "torchvision":
        return torchvision_names.sources(name, aux=bool(options.get("aux")))
    if raw.layout == "keras":
        return keras_names.sources(name)
    return {path: Source("/".join(path), same) for path in _shapes(name, 1, options, raw)}


def _num_classes(raw: RawWeights, sources: Mapping[ArrayPath, Source]) -> int:
    bias = raw.arrays.get(sources["params", "fc", "bias"].name)
    if bias is None or bias.ndim != 1 or not bias.size:
        raise UserError(f"{raw.path}: its head has no {sources['params', 'fc', 'bias'].name}")
    return bias.size


def _shapes(
    name: str, num_classes: int, options: Options, raw: RawWeights
) -> dict[ArrayPath, tuple[int, ...]]:
    try:
        return _abstract(name, num_classes, tuple(sorted(options.items())))
    except UserError as error:
        raise UserError(f"{raw.path}: {error}") from error


@functools.lru_cache(maxsize=16)
def _abstract(name: str, num_classes: int, options: tuple) -> dict[ArrayPath, tuple[int, ...]]:
    """path → shape of every array of the network."""
    net = create_model(name, num_classes, **dict(options))
    flat: Any = flatten_dict(jax.eval_shape(net.init, jax.random.key(0), images_of(name)))
    return {path: leaf.shape for path, leaf in flat.items()}


def images_of(name: str, batch: int = 1) -> jax.ShapeDtypeStruct:
    """Returns the shape of images of the size of the paper, on which dense layers depend."""
    size = 299 if name == "inception_v3" else 224
    return jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)


def _check_options(
    name: str,
    raw: RawWeights,
    sources: Mapping[ArrayPath, Source],
    expected: Mapping[ArrayPath, tuple[int, ...]],
) -> None:
    """Refuses options under which the network has other arrays than its original."""
    odd = sorted(path for path in sources.keys() ^ expected.keys() if path[1] not in HEAD[name])
    if odd:
        names = _listed("other", ["/".join(path) for path in odd])
        raise UserError(f"{raw.path}: {name} with these options is another network: {names} arrays")


def _checked(
    name: str,
    raw: RawWeights,
    sources: Mapping[ArrayPath, Source],
    expected: Mapping[ArrayPath, tuple[int, ...]],
    known: set[str],
) -> dict[ArrayPath, np.ndarray]:
    """Returns path → float32 array of everything in `sources`; raises UserError with all faults."""
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
    if array.dtype.kind not in "fV" and array.dtype.name != "bfloat16":
        raise UserError(f"{raw.path}: {key} is {array.dtype}, not floating point")
    with np.errstate(over="ignore"):  # float64 beyond float32 is found below
        array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{raw.path}: {key} holds NaN or infinities; it is damaged or diverged")
    if path[0] == "batch_stats" and path[-1] == "var" and (array < 0).any():
        raise UserError(f"{raw.path}: {key} holds a negative variance; it is damaged")
    return array


# The head


def complete(
    matched: Matched, num_classes: int | None, seed: int = 0
) -> tuple[Variables, tuple[str, ...]]:
    """Returns variables with a head, and the names of the arrays that were freshly initialised.

    `num_classes` and `seed`: see `convert`. UserError if a head is needed and none is there.
    """
    classes = num_classes or matched.num_classes
    if num_classes is not None and num_classes < 1:
        raise UserError(f"num_classes={num_classes} is impossible; give at least 1")
    if classes is None:
        raise UserError(f"these weights of {matched.name} have no head; give num_classes")
    kept = {
        path: array
        for path, array in matched.arrays.items()
        if num_classes is None or path[-2] != "fc"  # so the last layer is named in every network
    }
    expected = _abstract(matched.name, classes, tuple(sorted(matched.options.items())))
    absent = tuple(path for path in expected if path not in kept)
    new = _initialised(matched, classes, absent, seed) if absent else {}
    flat = {path: kept.get(path, new.get(path)) for path in expected}
    return unflatten_dict(flat), tuple("/".join(path) for path in absent)


def _initialised(
    matched: Matched, num_classes: int, paths: tuple[ArrayPath, ...], seed: int
) -> dict[ArrayPath, np.ndarray]:
    draw = _drawing(matched.name, num_classes, tuple(sorted(matched.options.items())), paths)
    return dict(zip(paths, map(np.asarray, draw(jax.random.key(seed))), strict=True))


@functools.lru_cache(maxsize=16)
def _drawing(
    name: str, num_classes: int, options: tuple, paths: tuple[ArrayPath, ...]
) -> Callable[[jax.Array], list[jax.Array]]:
    """Returns key → the arrays asked for: under jit XLA drops the rest of `init`."""
    net, images = create_model(name, num_classes, **dict(options)), images_of(name)

    def draw(key: jax.Array) -> list[jax.Array]:
        flat: Any = flatten_dict(net.init(key, jnp.zeros(images.shape, images.dtype)))
        return [flat[path] for path in paths]

    return jax.jit(draw)


# Our own files


def store(target: str | Path, matched: Matched, source: str | Path) -> None:
    """Stores converted weights, with what is known of them; `source` is the original file."""
    variables = unflatten_dict(dict(matched.arrays))
    save_converted(target, variables, metadata_of(matched, source))


def metadata_of(matched: Matched, source: str | Path) -> dict[str, str]:
    """Returns what is stored beside converted weights; `source` is the original file."""
    with Path(source).expanduser().open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "arch": matched.name,
        "source": matched.source,
        "source_file": Path(source).name,
        "source_sha256": digest,
        "options": json.dumps(matched.options, sort_keys=True),
        "normalization": matched.normalization,
        "num_classes": str(matched.num_classes or 0),
    }


def save_converted(path: str | Path, variables: Variables, metadata: Mapping[str, str]) -> None:
    """Stores variables as safetensors, `collection/layer/array`, with metadata.

    The file is written beside and renamed: it is there whole, or not at all.
    """
    path = Path(path).expanduser()
    arrays = {
        "/".join(keys): np.asarray(array, np.float32)
        for keys, array in flatten_dict(variables).items()
    }
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        told = {**metadata, "format": FORMAT, "version": VERSION}
        write_safetensors(beside, arrays, told)
        os.replace(beside, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)
