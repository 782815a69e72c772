"""A run's config: its type, config files, fields set by name, and the `config.json` of a run.

config = load_config("configs/demo.py")
set_field(config, "train.epochs", "5")
flatten(config)["train.epochs"]  # 5
"""

import difflib
import re
import runpy
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from medadv_jax.errors import UserError
from medadv_jax.files import DIGESTS, WITHOUT_DIGESTS, read_json

# An ml_collections.ConfigDict, whose own annotations let no arithmetic on a field pass a type
# checker. `experiment/validate.py` checks the values once, before a run.
Config = Any

# Fields that change no result of a run.
FIELDS_WITHOUT_RESULT = ("compile_cache", "data.cache_dir", "train.checkpoint_minutes")
# Fields that runs of earlier versions lack -> the value that those versions had.
_ADDED_FIELDS = {
    "deterministic": False,
    "model.precision": "default",
    "train.optimizer": "adam",
    "train.weight_decay": 0.0,
    "train.momentum": 0.9,
    "train.clip_norm": 0.0,
    "train.warmup_epochs": 0.0,
    "train.ema": 0.0,
    "train.class_weights": "none",
    "train.sampling": "uniform",
    "train.objective": "mixed",
    "train.beta": 6.0,
    "train.method": "multi_step",
    "train.replays": 4,
    "train.weight_perturbation": 0.0,
    "train.dual_norm": "none",
    "train.label_smoothing": 0.0,
    "data.train_all": False,
    "data.labels": "class",
    "data.csv": "",
    "data.classes": "",
    "data.group_pattern": "",
    "eval.images": 0,
    "eval.apgd_steps": 100,
    "eval.queries": 5000,
    "eval.validation_steps": 20,
    "eval.universal_images": 500,
    "eval.universal_epochs": 5,
    "eval.saliency_images": 0,
    "eval.save_images": 0,
    "eval.second_images": 64,
    "eval.second_queries": 100,
    "detector.images": 0,
    "attack.targeted": "none",
    "attack.mask": "none",
    "attack.grey": False,
    "eval.threshold": "argmax",
    "distill.teacher": "adversarial",
    "distill.width": 0.25,
    "distill.epochs": 10,
    "distill.temperature": 5.0,
    "distill.weight": 0.9,
    "defense.sigma": 0.25,
}
_RENAMED_FIELDS = {"model.forms": "model.conv_impl"}  # name in earlier versions -> name now


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
    path = expand_path(path, "--config")
    try:
        return call_config_file(path, "get_config")
    except Exception as error:  # a config file is a program, and may fail in any way
        given = "" if str(path) == "." else path
        where = "" if path.exists() else f", from the current folder {Path.cwd()}"
        raise UserError(
            f"--config={given}: cannot be read; it must be the path of a file like"
            f" configs/demo.py{where}"
        ) from error


def call_config_file(path: Path | str, function: str) -> Any:
    """Runs a Python file and returns what its function without arguments returns.

    The file can import from `configs`: the folder that holds this package is an ancestor of the
    file, else the repository, and is on `sys.path` meanwhile.
    """
    folders = [*Path(path).absolute().parents, Path(__file__).parents[1]]
    found = [str(f) for f in folders if (f / "configs" / "__init__.py").is_file()][:1]
    sys.path[:0] = found
    try:
        return runpy.run_path(str(path))[function]()
    finally:
        for folder in found:
            sys.path.remove(folder)


def explain_field(field: str, value: str | None, fields: dict[str, Any]) -> str:
    """Returns what is wrong with `config.field=value`, "" if nothing is.

    Args:
      field: "section.field".
      value: as typed; None: the flag stands without a value, as a boolean may.
      fields: "section.field" -> value of the config file, which gives the types.
    """
    if field not in fields:
        return f"config.{field}={value}: unknown field; {nearest_field(field, fields)}"
    try:
        _parse(value, type(fields[field]))
    except ValueError:
        names = {int: "an integer", float: "a number", bool: "true or false"}
        return f"config.{field}={value}: must be {names[type(fields[field])]}"
    return ""


def nearest_field(field: str, fields: Iterable[str]) -> str:
    """Returns a field that an unknown one may mean, of its section if possible, else the known."""
    section, _, name = field.rpartition(".")
    own = {f.rpartition(".")[2]: f for f in fields if f.rpartition(".")[0] == section}
    near = [own[n] for n in difflib.get_close_matches(name, own, n=1)]
    near = near or difflib.get_close_matches(field, fields, n=1, cutoff=0.8)
    near = near or [f for f in fields if f.rpartition(".")[2] == name]
    if near:
        return f"did you mean config.{near[0]}? --help lists all"
    sections = [f"{f.partition('.')[0]}.…" if "." in f else f for f in fields]
    known = list(own.values()) if section and own else list(dict.fromkeys(sections))
    return f"known are {', '.join(known)}"


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
    if kind is float and value is not None:
        return parse_number(value)
    return value if value is None else kind(value)


def parse_number(text: str) -> float:
    """Returns a number, or a fraction of two, such as 8/255; ValueError for anything else."""
    above, slash, below = text.partition("/")
    if slash and not float(below):
        raise ValueError(f"{text}: division by zero")
    return float(above) / float(below) if slash else float(text)


class _NumberParser(flags.FloatParser):
    """Reads --config.FIELD=8/255 of a number."""

    def convert(self, argument: Any) -> float:
        """Returns the number that is typed."""
        return parse_number(argument) if isinstance(argument, str) else float(argument)


config_flags.register_flag_parser_for_type(float, _NumberParser())


def expand_path(text: str | Path, name: str) -> Path:
    """Returns a path as a user types it, with ~ as the home folder.

    Raises:
      UserError: no home folder is known; names `name`, the flag or field of the path.
    """
    try:
        return Path(text).expanduser()
    except (RuntimeError, KeyError) as error:
        raise UserError(
            f"{name}={text}: no home folder is known; set HOME, or give a path without ~"
        ) from error


def describe_fields(path: Path) -> dict[str, str]:
    """Returns "section.field" -> comment, of a file that sets fields like configs/default.py.

    Reads the source: a field's comment stands behind it, or in the line above.
    """
    sections, comments, above = {"config": ""}, {}, ""
    for line in path.read_text(encoding="utf-8").splitlines():
        found = re.match(r"\s+(\w+)\.(\w+) = (?:(\w+) = )?[^#]*(?:# (.*))?$", line)
        if found and found[1] in sections:
            parent, name, section, comment = found.groups()
            if section:
                sections[section] = f"{sections[parent]}{name}."
            else:
                comments[sections[parent] + name] = comment or above
        above = line.strip()[2:] if line.strip().startswith("# ") else ""
    return comments


def read_saved_config(path: Path) -> dict[str, Any]:
    """Returns the content of a run's `config.json`, its config completed to today's fields.

    A field that an earlier version did not have gets the value that this version used. Nothing in
    the file is executed.

    Args:
      path: the file.

    Returns:
      "config": the config as nested dicts; "versions", "device", "git_commit": strings of the run.

    Raises:
      UserError: the file is missing or damaged, or it says that there are digests, and there are
        none.
    """
    remedy = "put it back, or give another --workdir"
    try:
        saved = read_json(path, remedy, _complete)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    if "digests" in saved and not (path.parent / DIGESTS).is_file():
        raise UserError(f"{path.parent / DIGESTS}: is missing; put it back, or {WITHOUT_DIGESTS}")
    return saved


def _complete(saved: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of `config.json` with today's fields in its config."""
    config = saved["config"]
    for old, new in _RENAMED_FIELDS.items():
        section, name = _section(config, old)
        if name in section:
            place, field = _section(config, new)
            place.setdefault(field, section.pop(name))
    for field, value in _ADDED_FIELDS.items():
        section, name = _section(config, field)
        section.setdefault(name, value)
    flatten(config)
    return saved


def _section(config: dict[str, Any], field: str) -> tuple[dict[str, Any], str]:
    """Returns the dict that holds "section.field", and the last part of its name."""
    *sections, name = field.split(".")
    for section in sections:
        config = config.setdefault(section, {})
    return config, name
