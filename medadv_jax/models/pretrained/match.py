"""Finds the arrays of a network in the content of a file; every name, shape and value is checked.

    matched = match_arrays("resnet50", read_weights("resnet50.pth"))

`torchvision_names.py` and `keras_names.py` say which array of a file is which of ours, and which
options of `create_model` reproduce the original network; `wrappers.py` takes off the prefixes of
models around the network. Converted files are matched here too.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from medadv_jax.errors import UserError
from medadv_jax.models import HEAD, create_model
from medadv_jax.models.pretrained import keras_names, torchvision_names
from medadv_jax.models.pretrained.head import describe_head, file_classes, head_order
from medadv_jax.models.pretrained.layers import SourceArray, unchanged
from medadv_jax.models.pretrained.read import RawWeights
from medadv_jax.models.pretrained.wrappers import unwrapped

ArrayPath = tuple[str, ...]  # ("params", "conv1", "kernel")
Options = dict[str, Any]  # JSON scalars

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
      left_out: names of arrays in the file that are not used: a head of another form.
      classes: names of the head's logits; None: the file does not say.
      head: what becomes of the file's head, for the user.
    """

    name: str
    source: str
    options: Options
    normalization: str
    num_classes: int | None
    arrays: Mapping[ArrayPath, np.ndarray]
    left_out: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    head: str = ""

    def named(self, classes: Sequence[str]) -> "MatchedWeights":
        """Returns the weights with names for their logits; UserError for too few or too many."""
        if len(classes) != self.num_classes:
            logits = f"{self.num_classes or 'no'} logits"
            raise UserError(f"classes {', '.join(classes)}: {len(classes)} names for {logits}")
        return dataclasses.replace(self, classes=tuple(classes))


def match_arrays(
    name: str,
    raw: RawWeights,
    options: Options | None = None,
    *,
    new_head: bool = False,
    class_names: Sequence[str] | None = None,
) -> MatchedWeights:
    """Finds every array of a network in a file and converts it to our layout.

    A model around the network is taken off: prefixes of the names, and a head of another form.

    Args:
        name: of the network.
        raw: the file's content; see `read_weights`.
        options: of `create_model`, overriding those of the file. With another `head`, the file's
            head is left out.
        new_head: the last layer will be replaced, so the file's is left out in whatever form.
        class_names: of label 0, 1, … The last layer is left out unless it is for these classes, as
            far as the file says; logits in another order are put into this one.

    Raises:
        UserError: arrays are missing, unknown or misshapen, hold NaN, infinities or a negative
            variance; or a converted file is damaged or of another network.
    """
    source, own, normalization = _origin(name, raw)
    wanted = {**own, **(options or {})}
    converted = raw.layout not in LAYOUTS
    sources = _sources(name, raw, own if converted else wanted)
    head = {path for path in sources if path[1] in HEAD[name]}
    body = {found.name for path, found in sources.items() if path not in head}
    raw, beside = unwrapped(name, raw, body)
    other_form = wanted.get("head") != own.get("head")
    keeps_head = not new_head and not other_form and _has_last(raw, sources)
    num_classes = _num_classes(raw, sources, required=keeps_head and class_names is None)
    names = file_classes(raw, num_classes)
    order = head_order(num_classes, names, class_names) if class_names is not None else None
    keeps_head = keeps_head and (class_names is None or order is not None)
    expected = _file_shapes(name, num_classes or 1, own if converted else wanted, raw)

    before_last = set() if other_form else {path for path in head if path[1] != "fc"}
    kept = head if keeps_head else _fitting(raw, sources, expected, before_last)
    used = {path: found for path, found in sources.items() if path in kept or path not in head}
    _check_options(name, raw, used, expected)
    known = {found.name for found in sources.values()}
    left_out = () if keeps_head else _other_head(raw, known, sources["params", "fc", "bias"])
    arrays = _checked(name, raw, used, expected, known | set(left_out))
    if keeps_head and order is not None:
        arrays |= {path: arrays[path][..., order] for path in arrays if path[-2] == "fc"}
        names = names and tuple(class_names or ())
    return MatchedWeights(
        name,
        source,
        wanted,
        normalization,
        num_classes if keeps_head else None,
        arrays,
        (*left_out, *beside),
        names if keeps_head else None,
        describe_head(num_classes, file_classes(raw, num_classes), order, keeps_head),
    )


def original_arrays(raw: RawWeights, matched: MatchedWeights) -> Mapping[str, np.ndarray]:
    """Returns the arrays of a file with the names that the original library gives them."""
    sources = _sources(matched.name, raw, matched.options)
    body = {found.name for path, found in sources.items() if path[1] not in HEAD[matched.name]}
    return unwrapped(matched.name, raw, body)[0].arrays


def _has_last(raw: RawWeights, sources: Mapping[ArrayPath, SourceArray]) -> bool:
    """Whether any array of the last layer is there under its own name."""
    return any(found.name in raw.arrays for path, found in sources.items() if path[1] == "fc")


def _fitting(
    raw: RawWeights,
    sources: Mapping[ArrayPath, SourceArray],
    expected: Mapping[ArrayPath, tuple[int, ...]],
    paths: set[ArrayPath],
) -> set[ArrayPath]:
    """All of `paths`, layers before the last one, if each is there in its shape; else none."""
    for path in paths:
        array = raw.arrays.get(sources[path].name)
        if array is None or _transformed(sources[path], array).shape != expected.get(path):
            return set()
    return paths


def _other_head(raw: RawWeights, known: set[str], last: SourceArray) -> tuple[str, ...]:
    """The arrays of a head of another form: at torchvision's place; in Keras of any dense layer."""
    extra = [key for key in raw.arrays if key not in known]
    if raw.layout == "torchvision":
        place = last.name.partition(".")[0]
        return tuple(key for key in extra if key.startswith(f"{place}."))
    if raw.layout == "keras":
        return tuple(key for key in extra if raw.arrays[key].ndim <= 2)
    return ()


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


def _num_classes(
    raw: RawWeights, sources: Mapping[ArrayPath, SourceArray], required: bool
) -> int | None:
    bias = raw.arrays.get(sources["params", "fc", "bias"].name)
    if bias is not None and bias.ndim == 1 and bias.size:
        return bias.size
    if required:
        raise UserError(f"{raw.path}: its head has no {sources['params', 'fc', 'bias'].name}")
    return None


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
            arrays[path] = _transformed(found, raw.arrays[found.name])
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


def _transformed(source: SourceArray, array: np.ndarray) -> np.ndarray:
    """The array in our layout; an empty one if it has too many or too few axes."""
    try:
        return source.transform(array)
    except (ValueError, IndexError):
        return np.zeros(0)


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
