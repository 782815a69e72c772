"""The user's own images as a data set: `data.name=folder`.

Classes are named by folders or by a table. Patients come from the table's column `patient`, else
from `data.group_pattern`; an image of an unknown patient is a group of its own, which the log says.
"""

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medadv_jax.config import expand_path
from medadv_jax.data.cache import CacheSpec, DataSettings, ImageConfig
from medadv_jax.data.examples import UNKNOWN_PATIENT
from medadv_jax.data.folder.names import compile_pattern, find_patient, order_classes
from medadv_jax.data.folder.rows import LAYOUT, Row, read_folder
from medadv_jax.data.folder.table import read_table
from medadv_jax.data.source import FileBuilder, ParsedName, SourceFile
from medadv_jax.errors import UserError

_MOST_NAMED = 20  # classes in a note


@dataclasses.dataclass(eq=False)
class FolderConfig(ImageConfig):
    """The fields of `config.data` that say what the images are."""

    csv: str = ""
    classes: str = ""
    group_pattern: str = ""


class OwnImages(NamedTuple):
    """What is known of the images before they are read."""

    images: list[tuple[SourceFile, ParsedName]]
    outside: list[SourceFile]  # in no folder of a class
    class_names: tuple[str, ...]


class ImageFolder(FileBuilder, skip_registration=True):
    """Any images of two or more classes."""

    name = "folder"
    LAYOUT = LAYOUT
    CLASS_NAMES = ()  # the images tell
    DESCRIPTION = "Images of a user."

    @classmethod
    def cache_spec(cls, settings: DataSettings) -> CacheSpec:
        """See `CachedBuilder.cache_spec`."""
        size, fit = settings.image_size, settings.fit
        config = FolderConfig(
            name=f"{fit}_{size}", image_size=size, fit=fit, source=str(_find_folder(settings)),
            csv=settings.csv, classes=settings.classes, group_pattern=settings.group_pattern,
        )  # fmt: skip
        own = find_images(config)
        files = [*(file for file, _ in own.images), *own.outside]
        content = {
            "files": [[file.path, file.size, file.modified] for file in files],
            "images": hashlib.sha256(repr([p for _, p in own.images]).encode()).hexdigest(),
            "classes": own.class_names,
        }
        return CacheSpec(config, content, len(own.images), own.class_names)

    def labelled(self, report: dict[str, Any]) -> list[tuple[SourceFile, ParsedName]]:
        """See `FileBuilder.labelled`."""
        assert isinstance(self.image_config, FolderConfig)
        own = find_images(self.image_config)
        report["files_listed"] = len(own.images) + len(own.outside)
        reason = "in no folder of a class"
        report["rejected"] += [{"file": f.place, "reason": reason} for f in own.outside]
        counts = Counter(parsed.label for _, parsed in own.images)
        report["notes"].append(_describe_classes(own.class_names, counts))
        return own.images


def _find_folder(settings: DataSettings) -> Path:
    """Returns the folder that the images lie in; UserError if there is none."""
    origin, given = "config.data.dir", settings.dir
    if settings.csv and not given:
        return expand_path(settings.csv, "config.data.csv").parent
    if not given:
        origin, given = "MEDADV_DATA_DIR", os.environ.get("MEDADV_DATA_DIR", "")
    if not given:
        raise UserError(
            f"config.data.dir='': config.data.name=folder needs the folder of the images, {LAYOUT},"
            " or config.data.csv"
        )
    folder = expand_path(given, origin)
    if not folder.is_dir():
        raise UserError(f"{origin}: no folder {folder}; expected is {LAYOUT}")
    return folder


def find_images(config: FolderConfig) -> OwnImages:
    """Lists the images of a folder or a table, with their labels and patients.

    Raises:
      UserError: as `read_table`, `read_folder`, `order_classes` and `compile_pattern`; or the
        pattern is in no file name.
    """
    folder, outside = Path(config.source), []
    if config.csv:
        where, rows = f"config.data.csv={config.csv}", read_table(config.csv, folder)
    else:
        where, (rows, outside) = f"config.data.dir={folder}", read_folder(folder)
    names = order_classes([row.label for row in rows], config.classes, where)
    patients = _find_patients(rows, config.group_pattern)
    images = [
        (
            row.file,
            ParsedName(
                names.index(row.label),
                patient or f"{UNKNOWN_PATIENT}{row.file.place}",
                source_split=row.split,
                attributes=row.attributes,
            ),
        )
        for row, patient in zip(rows, patients, strict=True)
    ]
    return OwnImages(images, outside, names)


def _find_patients(rows: Sequence[Row], pattern: str) -> list[str]:
    """Returns the patient of each image; "": unknown. The table's word counts first."""
    if not pattern:
        return [row.patient for row in rows]
    compiled = compile_pattern(pattern)
    found = [find_patient(compiled, row.file.name) for row in rows]
    if not any(found):
        raise UserError(
            f"config.data.group_pattern={pattern}: is in none of {len(rows)} file names, such as"
            f" {rows[0].file.name}; mend it, or leave it empty"
        )
    return [row.patient or patient for row, patient in zip(rows, found, strict=True)]


def _describe_classes(names: Sequence[str], counts: Counter[int]) -> str:
    named = [f"{i} = {name} ({counts[i]} images)" for i, name in enumerate(names[:_MOST_NAMED])]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    positive = f"; {names[1]} is the positive class" if len(names) == 2 else ""
    return f"{len(names)} classes: {', '.join(named)}{more}{positive}"
