"""A CSV of images: columns file and label; patient and split if there are any; more are attributes.

What stands in it is text: paths stay below one folder, and nothing is executed. Commas, semicolons
and tabs separate cells, whichever the header shows; UTF-8 and UTF-16 are read.
"""

import csv
import io
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from medadv_jax.config import expand_path
from medadv_jax.data.bounded import BadImageError, read_text
from medadv_jax.data.folder.rows import Row
from medadv_jax.data.source import SPLIT_WORDS, SourceFile
from medadv_jax.errors import UserError

_MAX_BYTES = 64 << 20  # about a million rows
_MAX_CELL = 1000  # characters
_NEEDED = ("file", "label")
_KNOWN = (*_NEEDED, "patient", "split")


def read_table(path: str, folder: Path) -> list[Row]:
    """Returns the images that a CSV names.

    Symbolic links are followed, as in folders: who made them chose what they lead to.

    Args:
      path: `config.data.csv`.
      folder: the files are relative to it.

    Raises:
      UserError: no such file, no text, wrong columns or cells, files that are not there or come
        twice; names the line.
    """
    where = f"config.data.csv={path}"
    lines = _read_lines(path, where)
    header = _read_header(next(lines, (1, []))[1], where)
    rows, line_of, missing = [], {}, []
    for number, cells in lines:
        row = _read_row(header, cells, folder, f"{where}: line {number}")
        if row.file.path in line_of:
            first, before = line_of[row.file.path]
            _refuse_second(row, before, f"{where}: line {number}", first)
        line_of[row.file.path] = number, row
        rows.append(row)
        missing += [f"{row.file.place} (line {number})"] * (row.file.size < 0)
    if not rows:
        raise UserError(f"{where}: no images; below the header, give a line for each")
    if missing:
        raise UserError(
            f"{where}: {len(missing)} of {len(rows)} files are not in {folder}, as {missing[0]};"
            " mend the table, or set config.data.dir to the folder that its paths start from"
        )
    return rows


def _read_lines(path: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (number of the line, stripped cells), without the empty lines."""
    try:
        text = read_text(expand_path(path, "config.data.csv"), _MAX_BYTES)
    except (OSError, UnicodeError, BadImageError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{where}: cannot be read as text ({reason}); save it as UTF-8") from error
    head = text[: text.find("\n")] if "\n" in text else text
    separator = max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise UserError(
            f"{where}: line {reader.line_num} is no line of a CSV ({error}); mend it"
        ) from error


def _read_header(cells: Sequence[str], where: str) -> list[str]:
    """Returns the names of the columns; those of `_KNOWN` in lower case."""
    names = [name.lower() if name.lower() in _KNOWN else name for name in cells]
    if lacking := [name for name in _NEEDED if name not in names]:
        has = ", ".join(name[:40] for name in names[:8]) or "none"
        raise UserError(
            f"{where}: no column {' and no column '.join(lacking)}; its first line names {has};"
            " needed are file and label, known are patient and split"
        )
    folded = [name.lower() for name in names]
    if twice := [name for name in names if folded.count(name.lower()) > 1]:
        raise UserError(f"{where}: two columns are named {twice[0][:40]!r}; rename one")
    if not all(names):
        raise UserError(f"{where}: column {names.index('') + 1} has no name; name or remove it")
    return names


def _read_row(header: Sequence[str], cells: Sequence[str], folder: Path, where: str) -> Row:
    """Returns a line's image; its file has size -1 if it is not there."""
    if len(cells) != len(header):
        raise UserError(f"{where} has {len(cells)} cells, the header {len(header)}; mend it")
    values = dict(zip(header, cells, strict=True))
    for name, value in values.items():
        if not value.isprintable() or len(value) > _MAX_CELL:
            raise UserError(
                f"{where}: the cell of {name[:40]!r} has control characters, or over {_MAX_CELL}"
                " characters; mend it"
            )
    if empty := [name for name in _NEEDED if not values[name]]:
        raise UserError(f"{where} has no {empty[0]}; fill it, or remove the line")
    split = values.get("split", "")
    if split and split.lower() not in SPLIT_WORDS:
        raise UserError(
            f"{where}: split {split[:40]!r} is unknown; known are {', '.join(SPLIT_WORDS)}"
        )
    return Row(
        _find_file(values["file"], folder, where),
        values["label"],
        values.get("patient", ""),
        SPLIT_WORDS.get(split.lower(), ""),
        {name: value for name, value in values.items() if name not in _KNOWN},
    )


def _find_file(text: str, folder: Path, where: str) -> SourceFile:
    """Returns a file below `folder`; one that is not there has size -1."""
    path = PurePosixPath(text.replace("\\", "/"))
    if path.is_absolute() or PureWindowsPath(text).drive or ".." in path.parts:
        raise UserError(
            f"{where}: {text[:80]} leads out of {folder}; give paths below it, or set"
            " config.data.dir"
        )
    try:
        status = Path(folder, path).stat()
    except (OSError, ValueError):
        return SourceFile(path.as_posix(), -1, 0)
    size = -1 if stat.S_ISDIR(status.st_mode) else status.st_size
    return SourceFile(path.as_posix(), size, status.st_mtime_ns)


def _refuse_second(row: Row, before: Row, where: str, first: int) -> None:
    """Refuses a second line of a file."""
    for name in ("label", "patient", "split", "attributes"):
        one, other = getattr(before, name), getattr(row, name)
        if one != other:
            raise UserError(
                f"{where} contradicts line {first}: {name} of {row.file.place} is {other!r} and"
                f" {one!r}; keep one of the lines"
            )
    raise UserError(f"{where} repeats line {first}: {row.file.place}; keep one of the lines")
