"""BreakHis's published folds: files of lines `name.png|magnification|fold|train` or `…|test`."""

from pathlib import Path, PurePosixPath

from medadv_jax.errors import UserError


def read_fold(path: str) -> dict[str, str]:
    """Returns image name without suffix -> "train" or "test", from a `dsfold*.txt`.

    Raises:
      UserError: no path, no such file, a malformed line, or a name in both parts.
    """
    if not path:
        raise UserError(
            "config.data.official_list='': config.data.split=official needs one of BreakHis' "
            "published fold files, for example dsfold1.txt"
        )
    if not Path(path).expanduser().is_file():
        raise UserError(f"config.data.official_list={path}: no such file; give a dsfold*.txt")
    sides: dict[str, str] = {}
    for number, line in enumerate(Path(path).expanduser().read_text().splitlines(), start=1):
        parts = [part.strip() for part in line.split("|")]
        if not line.strip():
            continue
        side, stem = parts[-1].lower(), PurePosixPath(parts[0]).stem
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
