"""BreakHis's published folds: files of lines `name.png|magnification|fold|train` or `…|test`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

from medadv_jax.data.bounded import BadImageError, read_text
from medadv_jax.data.breakhis.builder import BreakHis
from medadv_jax.data.examples import Example
from medadv_jax.errors import UserError

_MAX_BYTES = 16 << 20  # of a list; the published ones have 0.4e6


@dataclass(frozen=True)
class PublishedFold:
    """How many images a fold file lists, and how many of them are not there.

    The copies that the builder leaves out on purpose do not count.
    """

    listed: int
    tests: int  # of the listed ones
    missing: int
    missing_tests: int

    def describe_missing(self) -> str:
        """Returns a line for people."""
        return (
            f"config.data.official_list: {self.missing} of {self.listed} listed images are missing"
            f" ({self.missing_tests} of {self.tests} test images): this is not the published split"
        )


def apply_fold(examples: Sequence[Example], path: str) -> tuple[list[Example], PublishedFold]:
    """Sets `source_split` from a fold file.

    Raises:
      UserError: as `read_fold`, or none of its names is among the images.
    """
    fold = read_fold(path)
    stems = [_stem(example.id) for example in examples]
    there = {*stems}
    if not fold.keys() & there:
        name = next(iter(fold), "none")
        raise UserError(
            f"config.data.official_list={path}: none of its {len(fold)} names, such as {name}, is"
            f" among the {len(examples)} images, such as {stems[0]}; check config.data.dir and the"
            " file"
        )
    kept = {name: side for name, side in fold.items() if not BreakHis.drop_reason(name)}
    missing = [side for name, side in kept.items() if name not in there]
    tests = list(kept.values()).count("test")
    found = [replace(e, source_split=fold.get(s, "")) for e, s in zip(examples, stems, strict=True)]
    return found, PublishedFold(len(kept), tests, len(missing), missing.count("test"))


def read_fold(path: str) -> dict[str, str]:
    """Returns image name in upper case without suffix -> "train" or "test", from a `dsfold*.txt`.

    UTF-8 and UTF-16 are read; folders before a name, of either kind, are ignored.

    Raises:
      UserError: no path, no such file, no text, a malformed line, or a name in both parts.
    """
    if not path:
        raise UserError(
            "config.data.official_list='': config.data.split=official needs one of BreakHis' "
            "published fold files, for example dsfold1.txt"
        )
    if not Path(path).expanduser().is_file():
        raise UserError(f"config.data.official_list={path}: no such file; give a dsfold*.txt")
    sides: dict[str, str] = {}
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        parts = [part.strip() for part in line.split("|")]
        if not line.strip():
            continue
        side, stem = parts[-1].lower(), _stem(parts[0])
        if len(parts) != 4 or side not in ("train", "test"):
            raise UserError(
                f"config.data.official_list={path}: line {number} is {line!r}; expected "
                "name.png|magnification|fold|train or …|test"
            )
        if sides.setdefault(stem, side) != side:
            raise UserError(
                f"config.data.official_list={path}: {stem} is in train and in test; give one "
                "fold a file"
            )
    return sides


def _read_text(path: str) -> str:
    try:
        return read_text(Path(path).expanduser(), _MAX_BYTES)
    except (OSError, UnicodeError, BadImageError) as error:
        raise UserError(
            f"config.data.official_list={path}: cannot be read as text ({error}); give a"
            " dsfold*.txt in UTF-8"
        ) from error


def _stem(name: str) -> str:
    """Returns a name without folders and suffix in upper case; a Windows path is one too."""
    return PureWindowsPath(name).stem.upper()
