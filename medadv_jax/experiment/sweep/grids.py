"""A grid: config files × values of fields → cells. The named ones stand in configs/grids/."""

import dataclasses
import fnmatch
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medadv_jax.config import (
    Config,
    call_config_file,
    expand_path,
    flatten,
    load_config,
    set_field,
)
from medadv_jax.errors import UserError
from medadv_jax.experiment.validate import validate

ROOT = Path(__file__).parents[3]
NAMED = ROOT / "configs" / "grids"
CONFIGS = tuple(  # the two data sets and four networks of the paper
    f"configs/{dataset}_{network}.py"
    for dataset in ("pneumonia", "breakhis")
    for network in ("vgg16", "vgg19", "resnet", "inception")
)

Fields = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Grid:
    """Which runs there are.

    Attributes:
      configs: paths of config files, from the repository.
      fields: field -> value, for every cell.
      special: pattern of a config file's name, such as "*_inception" -> fields for its cells,
        which come before `fields`; a later pattern comes before an earlier one.
      axes: field -> values; every combination is a cell.
      rows: name -> fields that come before the others; every row is a cell. None: one without name.
      given: field -> value of the command line, which come before all others.
    """

    configs: tuple[str, ...]
    fields: Fields = dataclasses.field(default_factory=dict)
    special: Mapping[str, Fields] = dataclasses.field(default_factory=dict)
    axes: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    rows: Mapping[str, Fields] = dataclasses.field(default_factory=dict)
    given: Fields = dataclasses.field(default_factory=dict)

    def override(
        self, configs: Sequence[str], fields: Fields, axes: Mapping[str, Sequence[Any]]
    ) -> "Grid":
        """Returns the grid with other config files, and fields and axes of the command line, which
        come before its own."""
        both = sorted(set(fields) & set(axes))
        if both:
            raise UserError(f"--config.{both[0]} and --sweep.{both[0]}: give one of them")
        kept = {name: values for name, values in self.axes.items() if name not in fields}
        return dataclasses.replace(
            self, configs=tuple(configs) or self.configs, axes={**kept, **axes}, given=fields
        )


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
      name: of its folder; the config file, and the values of the axes.
      config_file: its path.
      overrides: field -> value as typed.
      config: what they make together.
      folder: its workdir.
    """

    name: str
    config_file: Path
    overrides: Mapping[str, str]
    config: Config
    folder: Path


def load_grid(name: str) -> Grid:
    """Returns a grid by its name in configs/grids/, or by the path of a file like those.

    Raises:
      UserError: no such grid, or whatever its program raises.
    """
    known = sorted(path.stem for path in NAMED.glob("*.py") if path.stem != "__init__")
    path = NAMED / f"{name}.py" if name in known else expand_path(name, "--grid")
    if not path.is_file():
        named = f"or one of {', '.join(known)}" if known else f"as there are none in {NAMED}"
        raise UserError(f"--grid={name}: unknown; give a file, {named}")
    try:
        return call_config_file(path, "get_grid")
    except UserError:
        raise
    except Exception as error:  # a grid is a program, and may fail in any way
        raise UserError(f"--grid={name}: cannot be read ({error!r}); see configs/grids/") from error


def make_cells(grid: Grid, folder: Path) -> list[Cell]:
    """Returns the cells of a grid, the config files in turn, then the rows, then the axes.

    Args:
      grid: of at least one config file.
      folder: of the sweep; each cell has a folder in it.

    Raises:
      UserError: an unknown field, an impossible value, or two cells of one name or config.
    """
    if not grid.configs:
        raise UserError("no config file: give --grid=NAME, or --configs=configs/demo.py")
    empty = [name for name, values in grid.axes.items() if not values]
    if empty:
        raise UserError(f"--sweep.{empty[0]}=: no value; give some, comma-separated")
    cells = [
        _make_cell(grid, path, row, dict(zip(grid.axes, values, strict=True)), folder)
        for path in grid.configs
        for row in grid.rows or ("",)
        for values in itertools.product(*grid.axes.values())
    ]
    _refuse_twins(cells)
    return cells


def _refuse_twins(cells: Sequence[Cell]) -> None:
    """Raises UserError for cells of one name or of one config: 0.03 and 3e-2 are one value."""
    names, runs = set(), {}
    for cell in cells:
        if cell.name in names:
            raise UserError(
                f"two cells are called {cell.name}: give each value and config file once"
            )
        names.add(cell.name)
        twin = runs.setdefault(repr(flatten(cell.config)), cell.name)
        if twin != cell.name:
            raise UserError(f"{twin} and {cell.name} are one run: give each value once")


def _make_cell(grid: Grid, config_path: str, row: str, axes: Fields, folder: Path) -> Cell:
    path = expand_path(config_path, "--configs")
    if not path.is_absolute() and not path.is_file():
        path = ROOT / path
    values = {**grid.fields}
    for pattern, fields in grid.special.items():
        if fnmatch.fnmatchcase(path.stem, pattern):
            values |= fields
    values |= {**grid.rows.get(row, {}), **axes, **grid.given}
    texts = {field: str(value) for field, value in values.items()}
    config = load_config(path)
    for field, text in texts.items():
        if field == "reuse":
            raise UserError("config.reuse: a sweep sets it by itself; leave it out")
        set_field(config, field, text)
    parts = [
        path.stem,
        *([row] if row else []),
        *(f"{field}={_safe(texts[field])}" for field in axes),
    ]
    name = "-".join(parts)
    try:
        validate(config)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    return Cell(name, path, texts, config, folder / name)


def _safe(text: str) -> str:
    """Returns a value as a part of a file's name."""
    return re.sub(r"[^\w.,+=-]", "_", text)
