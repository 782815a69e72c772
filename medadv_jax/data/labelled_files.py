"""Image files of a folder with the labels of a given classifier, for an evaluation elsewhere.

A folder of a published data set is read by the names of its files, as its builder does; any other
by its folders, `<class>/…` or `{train,val,test}/<class>/…`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from medadv_jax.data.breakhis import BreakHis
from medadv_jax.data.chest_xray import ChestXray
from medadv_jax.data.examples import UNKNOWN_PATIENT
from medadv_jax.data.folder.rows import read_folder
from medadv_jax.data.source import (
    FolderBuilder,
    ParsedName,
    SourceFile,
    UnlabelledError,
    find_copies,
    list_files,
)
from medadv_jax.errors import UserError

_PUBLISHED: tuple[type[FolderBuilder], ...] = (BreakHis, ChestXray)
Labelled = tuple[SourceFile, ParsedName]


class LabelledFiles(NamedTuple):
    """Files of a folder, with labels and patients.

    Attributes:
      files: each with what is known of it.
      part: "test" if the folder has a test split, which they are of; else "all".
    """

    files: list[Labelled]
    part: str


def published_as(classes: Sequence[str]) -> type[FolderBuilder] | None:
    """Returns the published data set with these classes, in this order; None: there is none."""
    names = tuple(map(_folded, classes))
    return next((each for each in _PUBLISHED if names == each.CLASS_NAMES), None)


def label_files(folder: Path, classes: Sequence[str], origin: str = "--data") -> LabelledFiles:
    """Lists the images of a folder; of one with a test split those of this split alone.

    Copies of a file, of the same name and bytes, count once.

    Args:
      folder: of the images.
      classes: the names of label 0, 1, …; upper and lower case are the same.
      origin: the flag that gives the folder, for errors.

    Raises:
      UserError: no folder, no image in it, or a class that is none of `classes`.
    """
    if not folder.is_dir():
        raise UserError(f"{origin}={folder}: no such folder; give a folder of images")
    found = _published(folder, classes, origin) or _by_folder(folder, classes, origin)
    copies = find_copies(folder, [file for file, _ in found])
    found = [each for each in found if each[0].path not in copies]
    tests = [each for each in found if each[1].source_split == "test"]
    return LabelledFiles(tests or found, "test" if tests else "all")


def _published(folder: Path, classes: Sequence[str], origin: str) -> list[Labelled]:
    """Returns the files as a published data set names them; []: it is none with these classes."""
    builder = published_as(classes)
    if builder is None:
        return []
    found, strange = [], []
    for file in list_files(folder, builder.SUFFIXES):
        try:
            if not builder.drop_reason(file.place):
                found.append((file, builder.parse(file.place)))
        except UnlabelledError:
            strange.append(file.place)
    if found and strange:
        raise UserError(
            f"{origin}={folder}: {len(strange)} files tell none of the model's classes"
            f" ({', '.join(classes)}), as {strange[0]}; remove or rename them"
        )
    return found


def _by_folder(folder: Path, classes: Sequence[str], origin: str) -> list[Labelled]:
    """Returns the files with the class that a folder above them names."""
    rows, outside = read_folder(folder, origin)
    known = {_folded(name): label for label, name in enumerate(classes)}
    strange = sorted({row.label for row in rows if _folded(row.label) not in known})
    strange += [f"of {file.place}, in no folder of a class," for file in outside[:1]]
    if strange:
        raise UserError(
            f"{origin}={folder}: the class {strange[0]} is none of the model's"
            f" ({', '.join(classes)}); rename or remove it"
        )
    return [
        (
            row.file,
            ParsedName(
                known[_folded(row.label)],
                f"{UNKNOWN_PATIENT}{row.file.place}",
                source_split=row.split,
            ),
        )
        for row in rows
    ]


def _folded(name: str) -> str:
    return " ".join(name.casefold().split())
