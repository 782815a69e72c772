"""A config: its type, its fields by dotted name, config files, and fields as typed."""

import difflib
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from medadv_jax.errors import UserError

# An ml_collections.ConfigDict. Its own annotations say that any attribute may be None, a number
# or a list, so that no arithmetic on a field would pass a type checker; values are checked once,
# before a run, by `experiment/validate.py`.
Config = Any


def flatten(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Returns "section.field" -> value for every field of a config, or of its dict."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        is_section = isinstance(value, ConfigDict | dict)
        fields |= flatten(value, f"{prefix}{name}.") if is_section else {prefix + name: value}
    return fields


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
