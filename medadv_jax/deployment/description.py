"""What `model.json` says of a classifier, and the classifier that it describes."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict

from medadv_jax.classifier import NORMALIZATIONS, Classifier, Variables
from medadv_jax.data.images import FITS, WHITE
from medadv_jax.defenses.detectors import DETECTORS, NEED_PURIFIER
from medadv_jax.errors import UserError
from medadv_jax.models import create_model, default_options
from medadv_jax.models.purifiers import create_purifier

SCHEMA_VERSION = 1
# version -> changes the content of a `model.json` of that version to the next one.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
_LARGEST_IMAGE = 4096  # pixels of a side


@dataclasses.dataclass(frozen=True)
class Description:
    """A classifier without its weights; every field is JSON.

    Attributes:
      network: name, width and dtype of `create_model`, and its options.
      purifier: name, bottleneck, width and dtype of `create_purifier`; None: none.
      normalization: a key of `NORMALIZATIONS`.
      classes: the names of label 0, 1, …
      image_size: pixels of a side.
      fit: how an image file becomes a square, a key of `FITS`.
      white: the value of white in files of 16 bits a channel.
      logit_bias: added to the logit of class 1, where another threshold than the larger logit
        decides between two classes; else 0. See `evaluation/decision_threshold.py`.
      false_positive_rate: of clean validation images, at the detectors' thresholds.
      detectors: name of a detector -> the threshold of its score; flagged is what lies above.
      weights: SHA-256 of `model.safetensors` ("sha256"), and of the tensors alone ("tensors", as in
        a run's `networks.json`).
      evaluation: what the run measured, for the card; see `card.py`.
      provenance: config, git commit, versions and data of the run.
    """

    network: Mapping[str, Any]
    purifier: Mapping[str, Any] | None
    normalization: str
    classes: tuple[str, ...]
    image_size: int
    fit: str
    white: int = WHITE
    logit_bias: float = 0.0
    false_positive_rate: float = 0.05
    detectors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, str] = dataclasses.field(default_factory=dict)
    evaluation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `model.json` but for its own SHA-256."""
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}


def from_json(content: dict[str, Any]) -> Description:
    """Returns the description in a `model.json` of this or an earlier version.

    Raises:
      ValueError, KeyError, TypeError: the content is not that of a model folder.
    """
    version = content.pop("schema_version")
    for older in range(version, SCHEMA_VERSION):
        content = MIGRATIONS[older](content)
    names = [field.name for field in dataclasses.fields(Description)]
    found = Description(**{name: content[name] for name in names})
    found = dataclasses.replace(found, classes=tuple(found.classes))
    for field, fits in _RULES.items():
        value = getattr(found, field)
        if not fits(value):
            raise ValueError(f"{field}: {str(value)[:60]!r} is impossible")
    return found


def _are_classes(names: Any) -> bool:
    texts = all(isinstance(name, str) for name in names)
    return texts and len(names) >= 2 and len({*names}) == len(names)


def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


_RULES: dict[str, Callable[[Any], bool]] = {
    "normalization": lambda name: name in NORMALIZATIONS,
    "classes": _are_classes,
    "image_size": lambda size: isinstance(size, int) and _is_number(size, 1, _LARGEST_IMAGE),
    "fit": lambda name: name in FITS,
    "white": lambda value: isinstance(value, int) and _is_number(value, 1, WHITE),
    "logit_bias": lambda value: _is_number(value, -1e6, 1e6),
    "detectors": lambda found: all(
        name in DETECTORS and _is_number(value, -math.inf, math.inf)
        for name, value in found.items()
    ),
    "weights": lambda found: isinstance(found["sha256"], str),
    "evaluation": lambda found: isinstance(found, dict),
    "provenance": lambda found: isinstance(found, dict),
}


def describe_network(network: nn.Module, name: str) -> dict[str, Any]:
    """Returns the field `network` of a module from `create_model(name)`."""
    module: Any = network
    options = {option: getattr(module, option) for option in default_options(name)}
    dtype = np.dtype(module.dtype).name
    return {"name": name, "width": module.width, "dtype": dtype, "options": options}


def describe_purifier(purifier: nn.Module | None, name: str) -> dict[str, Any] | None:
    """Returns the field `purifier` of a module from `create_purifier(name)`, None of None."""
    if purifier is None:
        return None
    module: Any = purifier
    numbers = {"bottleneck": module.bottleneck, "width": module.width}
    return {"name": name, **numbers, "dtype": np.dtype(module.dtype).name}


def make_classifier(description: Description, conv_impl: str = "auto") -> Classifier:
    """Returns the classifier that is described; `conv_impl` as in `create_model`.

    Raises:
      UserError: no such network or purifier.
    """
    network, purifier = description.network, description.purifier
    made = create_model(
        network["name"], len(description.classes), network["width"], network["dtype"], conv_impl,
        **network["options"],
    )  # fmt: skip
    front = None
    if purifier is not None:
        front = create_purifier(
            purifier["name"], purifier["bottleneck"], purifier["width"], purifier["dtype"],
            conv_impl,
        )  # fmt: skip
    return Classifier(made, description.normalization, front)


def check_variables(classifier: Classifier, variables: Variables, image_size: int) -> None:
    """Raises ValueError unless the variables have the classifier's names, shapes and types."""
    like = jax.eval_shape(lambda: classifier.init(jax.random.key(0), image_size))
    expected, found = _shapes(like), _shapes(variables)
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            shapes = [of.get(name, ("nothing",))[0] for of in (found, expected)]
            raise ValueError(f"{name}: {shapes[0]}, where the network has {shapes[1]}")


def _shapes(variables: Variables) -> dict[str, tuple[Any, Any]]:
    flat: dict[tuple[str, ...], Any] = flatten_dict(variables)  # pyright: ignore[reportAssignmentType]
    return {"/".join(path): (leaf.shape, leaf.dtype) for path, leaf in flat.items()}


def usable_detectors(classifier: Classifier) -> list[str]:
    """Returns the names of the detectors that a classifier can have."""
    without = classifier.purifier is None
    return [name for name in DETECTORS if not (without and name in NEED_PURIFIER)]


def refuse(folder: Any, error: Exception) -> UserError:
    """Returns the error of a folder whose content is not that of a model folder."""
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    kind = f"no {reason}" if isinstance(error, KeyError) else reason
    return UserError(f"{folder}: no model folder, or a damaged one: {kind}; copy it again")
