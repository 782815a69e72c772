"""Config files and the text of their fields, for every script that takes `--config`."""

import difflib
import runpy
from pathlib import Path
from typing import Any

from absl import flags

from medadv_jax.config import Config
from medadv_jax.errors import UserError
from medadv_jax.experiment.validate import flatten


def load_config(path: Path | str) -> Config:
    """Returns the config of a file like configs/demo.py.

    Raises:
      UserError: no such file, or whatever its program raises.
    """
    try:
        return runpy.run_path(str(path))["get_config"]()
    except Exception as error:  # a config file is a program, and may fail in any way
        raise UserError(
            f"--config={path}: cannot be read; it must be the path of a file like configs/demo.py"
        ) from error


def explain_field(field: str, value: str | None, fields: dict[str, Any]) -> str:
    """Returns what is wrong with `config.field=value`, "" if nothing is.

    Args:
      field: "section.field".
      value: as typed; None: the flag stands without a value, as a boolean may.
      fields: "section.field" -> value of the config file, which gives the types.
    """
    if field not in fields:
        section, _, name = field.rpartition(".")
        elsewhere = [other for other in fields if other.rpartition(".")[2] == name]
        near = elsewhere or difflib.get_close_matches(field, fields, n=1)
        known = [other for other in fields if other.rpartition(".")[0] == section] or list(fields)
        hint = f"did you mean config.{near[0]}? " if near else ""
        return f"config.{field}={value}: unknown field; {hint}known are {', '.join(known)}"
    try:
        _parse(value, type(fields[field]))
    except ValueError:
        names = {int: "an integer", float: "a number", bool: "true or false"}
        return f"config.{field}={value}: must be {names[type(fields[field])]}"
    return ""


def set_field(config: Config, field: str, value: str) -> None:
    """Sets a field to what is typed; UserError names what is wrong with it."""
    fields = flatten(config)
    explanation = explain_field(field, value, fields)
    if explanation:
        raise UserError(explanation)
    *sections, name = field.split(".")
    for section in sections:
        config = config[section]
    config[name] = _parse(value, type(fields[field]))


def _parse(value: str | None, kind: type) -> Any:
    if kind is bool:
        return flags.BooleanParser().parse(value if value is not None else "true")
    return value if value is None else kind(value)
