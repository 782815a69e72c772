"""The images of a folder with what its folders say of them: class and split."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from medadv_jax.data.source import SPLIT_WORDS, SourceFile, list_files
from medadv_jax.errors import UserError

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".dcm", ".dicom",
)  # fmt: skip
LAYOUT = "FOLDER/<class>/… or FOLDER/{train,val,test}/<class>/…"


@dataclass(frozen=True)
class Row:
    """An image, and what folders or a table say of it; "" where they are silent."""

    file: SourceFile
    label: str
    patient: str = ""
    split: str = ""  # 'train' | 'val' | 'test' | ''
    attributes: Mapping[str, str] = field(default_factory=dict)


def read_folder(
    folder: Path, origin: str = "config.data.dir"
) -> tuple[list[Row], list[SourceFile]]:
    """Returns the images below a folder, and those that lie in no folder of a class.

    The folders at the top are classes, or all of them are splits that hold the classes. `origin`:
    the field or flag that gives the folder, for errors.

    Raises:
      UserError: no images, or folders of both kinds at the top.
    """
    files = list_files(folder, SUFFIXES)
    if not files:
        raise UserError(
            f"{origin}: no image in {folder}; expected is {LAYOUT}, of files {' '.join(SUFFIXES)}"
        )
    parts = [PurePosixPath(file.place).parts for file in files]
    depth = _class_depth(f"{origin}={folder}", {path[0] for path in parts if len(path) > 1})
    rows, outside = [], []
    for file, path in zip(files, parts, strict=True):
        if len(path) < depth + 2:
            outside.append(file)
            continue
        split = SPLIT_WORDS[path[0].lower()] if depth else ""
        rows.append(Row(file, path[depth], split=split))
    return rows, outside


def _class_depth(where: str, tops: set[str]) -> int:
    """Returns how many folders stand above those of the classes: 1 if the top ones are splits."""
    splits = {name for name in tops if name.lower() in SPLIT_WORDS}
    if splits and splits != tops:
        raise UserError(
            f"{where}: {', '.join(sorted(splits))} is a split, and"
            f" {', '.join(sorted(tops - splits)[:3])} is none; expected is {LAYOUT}; move the"
            " others away, or give config.data.csv"
        )
    return 1 if splits else 0
