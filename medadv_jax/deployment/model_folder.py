"""The model folder: `model.safetensors`, `model.json`, and `README.md`, the card.

It is written beside and renamed, and needs neither run, data nor pickle. `model.json` holds its own
SHA-256 and that of the weights; the card is for people, who may edit it, and is not read.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError

from medadv_jax.classifier import Variables
from medadv_jax.data.images import BadImageError, read_bounded
from medadv_jax.deployment import description as descriptions
from medadv_jax.deployment.card import card_text
from medadv_jax.deployment.description import Description
from medadv_jax.errors import UserError
from medadv_jax.files import atomic_folder, sha256
from medadv_jax.models.pretrained.own import DESCRIPTION, WEIGHTS
from medadv_jax.models.pretrained.read import write_safetensors

CARD = "README.md"
_MOST = {WEIGHTS: 4 << 30, DESCRIPTION: 16 << 20}  # bytes; a hostile file fills no memory


def is_model_folder(path: Path) -> bool:
    """Returns whether a folder claims to be a model folder."""
    return (path / DESCRIPTION).is_file()


def write_model_folder(folder: Path, description: Description, variables: Variables) -> Description:
    """Writes a model folder, in place of what is there.

    Args:
      folder: its path.
      description: the SHA-256 of the weights is added to its field `weights`.
      variables: see `Classifier`; float32 arrays.

    Returns:
      The description as it is written.
    """
    arrays = {
        "/".join(path): np.ascontiguousarray(leaf) for path, leaf in flatten_dict(variables).items()
    }
    with atomic_folder(folder) as beside:
        write_safetensors(beside / WEIGHTS, arrays, {"format": "medadv_jax"})
        digest = sha256((beside / WEIGHTS).read_bytes())
        done = dataclasses.replace(description, weights={**description.weights, "sha256": digest})
        content = done.to_json()
        text = json.dumps(content | {"sha256": _seal(content)}, indent=2, ensure_ascii=False)
        (beside / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
        shutil.copymode(beside / DESCRIPTION, beside / WEIGHTS)  # else the owner's alone
        (beside / CARD).write_text(card_text(done), encoding="utf-8")
    return done


def read_description(folder: Path) -> Description:
    """Returns what `model.json` says.

    Raises:
      UserError: it is missing, damaged, or of a newer version.
    """
    path = folder / DESCRIPTION
    try:
        content = json.loads(_read(folder, DESCRIPTION))
        version = content["schema_version"]
        if version > descriptions.SCHEMA_VERSION:
            raise UserError(
                f"{path}: of schema {version}, and this version reads up to"
                f" {descriptions.SCHEMA_VERSION}; update medadv_jax"
            )
        if content.pop("sha256") != _seal(content):
            raise ValueError("its SHA-256 is another")
        return descriptions.from_json(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise descriptions.refuse(path, error) from error


def read_model_folder(folder: Path) -> tuple[Description, Variables]:
    """Returns the description, and the variables as numpy arrays.

    Raises:
      UserError: a file is missing or damaged, or of a newer version.
    """
    description = read_description(folder)
    content = _read(folder, WEIGHTS)
    if sha256(content) != description.weights["sha256"]:
        raise descriptions.refuse(
            folder / WEIGHTS, ValueError(f"its SHA-256 is not that in {DESCRIPTION}")
        )
    try:
        arrays = safetensors.numpy.load(content)
        variables: Variables = unflatten_dict({tuple(k.split("/")): v for k, v in arrays.items()})
        variables.setdefault("batch_stats", {})  # a network without BatchNorm has none
        classifier = descriptions.make_classifier(description)
        descriptions.check_variables(classifier, variables, description.image_size)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise descriptions.refuse(folder, error) from error
    return description, variables


def _read(folder: Path, name: str) -> bytes:
    try:
        return read_bounded(folder / name, _MOST[name])
    except OSError as error:
        raise UserError(
            f"{folder / name}: {error.strerror or error}; give a whole model folder"
        ) from error
    except BadImageError as error:  # a pipe, or too large
        raise UserError(f"{folder / name}: {error}; give a whole model folder") from error


def _seal(content: dict[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode())
