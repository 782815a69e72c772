"""ChestX-ray14 (Wang et al., CVPR 2017) as the NIH publishes it: a table, folders, two lists.

`Data_Entry_2017.csv` names the findings and the patient of each image, `images_001/images/*.png`
and so on hold the images, `train_val_list.txt` and `test_list.txt` the official split, which is
by patient. An image has any number of the 14 findings: "No Finding", or several with "|" between.
"""

import csv
import dataclasses
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from medadv_jax.config import expand_path
from medadv_jax.data.bounded import BadImageError, read_text
from medadv_jax.data.cache import CacheSpec, DataSettings, ImageConfig
from medadv_jax.data.source import FileBuilder, ParsedName, SourceFile, list_files
from medadv_jax.errors import UserError

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia",
    "Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening",
    "Hernia",
)  # fmt: skip
_NONE = "No Finding"
_TABLES = "Data_Entry_2017*.csv"  # the NIH's newer copy is named …_v2020.csv
_LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
_COLUMNS = _NAME, _LABELS, _PATIENT = "Image Index", "Finding Labels", "Patient ID"
_MAX_BYTES = 64 << 20  # of the table; the NIH's has 8 MB


class _Listed(NamedTuple):
    """What is known of the images before they are read."""

    images: list[tuple[SourceFile, ParsedName]]
    strange: list[tuple[SourceFile, str]]  # not in the table, or of an unknown finding; why
    files: list[SourceFile]
    absent: int  # images of the table that are not in the folder


class ChestXray14(FileBuilder, skip_registration=True):
    """14 findings; label 1 is an image with any of them, and `attributes` names them."""

    name = "chest_xray14"
    MULTI_LABEL = True
    CLASS_NAMES = FINDINGS
    LAYOUT = "Data_Entry_2017.csv, images_001/images/*.png …, train_val_list.txt and test_list.txt"
    DESCRIPTION = "112,120 frontal chest X-rays of 30,805 patients, 1024 pixels."
    HOMEPAGE = "https://nihcc.app.box.com/v/ChestXray-NIHCC"
    CITATION = (
        "Wang et al., ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks, CVPR 2017"
    )

    @classmethod
    def cache_spec(cls, settings: DataSettings) -> CacheSpec:
        """See `CachedBuilder.cache_spec`."""
        folder, size, fit = _find_folder(settings), settings.image_size, settings.fit
        config = ImageConfig(name=f"{fit}_{size}", image_size=size, fit=fit, source=str(folder))
        listed = _list_images(folder)
        content = {
            "files": [[file.path, file.size, file.modified] for file in listed.files],
            "images": hashlib.sha256(repr([p for _, p in listed.images]).encode()).hexdigest(),
        }
        return CacheSpec(config, content, len(listed.images), FINDINGS)

    def labelled(self, report: dict[str, Any]) -> list[tuple[SourceFile, ParsedName]]:
        """See `FileBuilder.labelled`."""
        listed = _list_images(Path(self.image_config.source))
        report["files_listed"] = len(listed.files)
        report["rejected"] += [{"file": f.place, "reason": why} for f, why in listed.strange]
        if listed.absent:
            report["notes"].append(f"{listed.absent} images of the table are not in the folder")
        found = [name for _, parsed in listed.images for name in _findings(parsed)]
        counts = Counter(found)
        named = ", ".join(f"{name} {counts[name]}" for name in FINDINGS)
        report["notes"].append(f"images with each finding: {named}")
        return listed.images


def _findings(parsed: ParsedName) -> list[str]:
    return [name for name in parsed.attributes["findings"].split("|") if name]


def _find_folder(settings: DataSettings) -> Path:
    """Returns the folder of the table; UserError if there is none."""
    origin = "config.data.dir" if settings.dir else "MEDADV_DATA_DIR"
    given = settings.dir or os.environ.get("MEDADV_DATA_DIR", "")
    folder = expand_path(given, origin)
    inner = folder / ChestXray14.name
    folder = inner if inner.is_dir() else folder
    if not given or not sorted(folder.glob(_TABLES)):
        raise UserError(
            f"{origin}={given}: no {_TABLES} there; expected is {ChestXray14.LAYOUT}, from"
            f" {ChestXray14.HOMEPAGE}"
        )
    return folder


def _list_images(folder: Path) -> _Listed:
    """Lists the images in the folder with what the table and the lists say of them."""
    table = {name: (labels, patient) for name, labels, patient in _read_table(folder)}
    split = {name: part for part, file in _LISTS.items() for name in _read_list(folder / file)}
    images, strange, files = [], [], list_files(folder, (".png",))
    for file in files:
        labels, patient = table.pop(file.name, ("", ""))
        found = [name for name in labels.split("|") if name != _NONE]
        unknown = [name for name in found if name not in FINDINGS]
        if unknown:
            why = f"of an unknown finding {unknown[0]!r}" if labels else "not in the table"
            strange.append((file, why))
            continue
        parsed = ParsedName(int(bool(found)), f"patient-{patient}", 0, split.get(file.name, ""))
        attributes = {"findings": "|".join(found)}
        images.append((file, dataclasses.replace(parsed, attributes=attributes)))
    return _Listed(images, strange, files, len(table))


def _read_table(folder: Path) -> Iterator[list[str]]:
    """Yields file name, findings and patient of each row; UserError for another table."""
    path = sorted(folder.glob(_TABLES))[0]
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    lacking = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
    if lacking:
        raise UserError(f"config.data.dir: {path} has no column {lacking[0]!r}; copy it again")
    for row in reader:
        if not all(row[name] for name in _COLUMNS):
            raise UserError(
                f"config.data.dir: {path}: line {reader.line_num} lacks a cell; copy it again"
            )
        yield [row[name].strip() for name in _COLUMNS]


def _read_list(path: Path) -> list[str]:
    """Returns the file names of an official list; [] if it is not there."""
    return _text(path).split() if path.is_file() else []


def _text(path: Path) -> str:
    try:
        return read_text(path, _MAX_BYTES)
    except (OSError, UnicodeError, BadImageError) as error:
        raise UserError(f"config.data.dir: {path} cannot be read as text ({error})") from error
