"""The order of a user's classes, and the patients that file names tell."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Sequence

from medadv_jax.errors import UserError

_MAX_CLASSES = 1000  # more are no classes: perhaps a folder for each patient
_MAX_PATTERN = 200  # characters
_MAX_NAME = 100  # characters


def order_classes(labels: Collection[str], wanted: str, where: str) -> tuple[str, ...]:
    """Returns the names of class 0, 1, …: sorted, or as `config.data.classes` orders them.

    Names that are all whole numbers are sorted as numbers.

    Args:
      labels: every class that images have.
      wanted: `config.data.classes`; "": sorted.
      where: field and value that the labels come from; begins an error.

    Raises:
      UserError: fewer than two classes, far too many, names that look the same, or other names
        than in `wanted`.
    """
    found = sorted({*labels}, key=_number_first)
    named = ", ".join(found[:5])
    if len(found) < 2:
        count = f"one class ({named})" if found else "no class"
        raise UserError(f"{where}: {count}, at least two are needed")
    if len(found) > _MAX_CLASSES:
        raise UserError(
            f"{where}: {len(found)} classes, as {named}; at most {_MAX_CLASSES} are possible: are"
            " these patients?"
        )
    _refuse_odd_names(found, where)
    if not wanted:
        return tuple(found)
    order = split_names(wanted)
    strange = [name for name in order if name not in found]
    lacking = [name for name in found if name not in order]
    if strange or lacking:
        what = f"{strange[0]} has no images" if strange else f"{lacking[0]} is not listed"
        raise UserError(f"config.data.classes={wanted}: {what}; {where} has {named}")
    return tuple(order)


def split_names(text: str) -> list[str]:
    """Returns the names of a comma-separated list."""
    return [name.strip() for name in text.split(",")]


def _number_first(name: str) -> tuple[int, str]:
    return (int(name) if name.isdecimal() else -1, name)


def _refuse_odd_names(names: Sequence[str], where: str) -> None:
    """Refuses names that are too long to show, and those that differ in case or spaces only."""
    alike = defaultdict(list)
    for name in names:
        if len(name) > _MAX_NAME:
            raise UserError(f"{where}: class {name[:40]}… has over {_MAX_NAME} characters")
        alike[" ".join(unicodedata.normalize("NFKC", name).casefold().split())].append(name)
    for same in alike.values():
        if len(same) > 1:
            raise UserError(
                f"{where}: the classes {same[0]!r} and {same[1]!r} look the same; rename one"
            )


def compile_pattern(text: str) -> re.Pattern[str]:
    """Compiles `config.data.group_pattern`.

    A pattern comes from the user, like a config file, and names are short. One that needs
    exponential time can be stopped with Ctrl-C.

    Raises:
      UserError: no regular expression, or a very long one.
    """
    try:
        if len(text) <= _MAX_PATTERN:
            return re.compile(text)
        reason = f"over {_MAX_PATTERN} characters"
    except (re.error, OverflowError, RecursionError) as error:
        reason = str(error)
    raise UserError(f"config.data.group_pattern={text[:80]}: no regular expression ({reason})")


def find_patient(pattern: re.Pattern[str], name: str) -> str:
    """Returns the first group of a match in a file name, else the whole match; "" for none."""
    match = pattern.search(name)
    return (match[1 if pattern.groups else 0] or "") if match else ""
