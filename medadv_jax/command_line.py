"""Between a script and the person who typed it: flags, one-line errors, exit codes."""

import difflib
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from medadv_jax.errors import UserError
from medadv_jax.validation import flatten

_DEBUG = flags.DEFINE_bool("debug", False, "Show tracebacks of errors, and what libraries log.")


def run(main: Callable[[], None]) -> None:
    """Parses the flags and runs `main`; exits 2 on a user's error, 130 when interrupted."""

    def guarded(argv: Sequence[str]) -> None:
        logging.set_verbosity(logging.INFO if _DEBUG.value else logging.WARNING)
        try:
            if len(argv) > 1:
                raise UserError(f"{argv[1]}: not a flag; fields are set by --config.name=value")
            main()
        except UserError as error:
            _fail(error)
        except KeyboardInterrupt:
            print("\ninterrupted; the same command goes on from here", file=sys.stderr)
            sys.exit(130)

    app.run(guarded, flags_parser=_parse)


def _fail(error: Exception) -> None:
    if flags.FLAGS.is_parsed() and _DEBUG.value:
        traceback.print_exception(error)
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def _parse(argv: list[str]) -> list[str]:
    """Parses flags; whatever is wrong with them becomes one line."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        explanation = _explain(argv) or str(error).splitlines()[0]
        _fail(UserError(explanation))
        raise  # not reached


def _explain(argv: Sequence[str]) -> str:
    """Returns what is wrong with the first wrong --config flag, "" if none is."""
    files = [arg for arg in argv if re.match(r"--?config(=|$)", arg)]
    if not files:
        return ""
    path = files[-1].partition("=")[2]
    try:
        fields = flatten(runpy.run_path(path)["get_config"]())
    except Exception:  # a config file is a program, and may fail in any way
        return (
            f"--config={path}: cannot be read; it must be the path of a file like configs/demo.py"
        )
    for arg in argv:
        match = re.match(r"--?(?:no)?config\.([^=\s]+)(?:=(.*))?$", arg)
        if match:
            explanation = _explain_field(match[1], match[2], fields)
            if explanation:
                return explanation
    return ""


def _explain_field(field: str, value: str | None, fields: dict[str, Any]) -> str:
    if field not in fields:
        near = difflib.get_close_matches(field, fields, n=1)
        section = field.rpartition(".")[0]
        known = [name for name in fields if name.rpartition(".")[0] == section] or list(fields)
        hint = f"did you mean config.{near[0]}? " if near else ""
        return f"config.{field}={value}: unknown field; {hint}known are {', '.join(known)}"
    kind = type(fields[field])
    try:
        if kind is bool:
            flags.BooleanParser().parse(value if value is not None else "true")
        elif value is not None:
            kind(value)
    except ValueError:
        names = {int: "an integer", float: "a number", bool: "true or false"}
        return f"config.{field}={value}: must be {names[kind]}"
    return ""
