"""Whether the head of a file is for the classes of the data."""

import json
from collections.abc import Sequence

from medadv_jax.models.pretrained.read import RawWeights

CLASSES = "classes"  # in a file's metadata: the names of its logits, a JSON list


def file_classes(raw: RawWeights, count: int | None) -> tuple[str, ...] | None:
    """Returns the names of a file's `count` logits in their order; None if it has none."""
    try:
        names = json.loads(raw.metadata.get(CLASSES, "null"))
    except ValueError:
        return None
    given = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if given and len(names) == count == len({*names}) else None


def head_order(
    count: int | None, names: Sequence[str] | None, class_names: Sequence[str]
) -> list[int] | None:
    """Returns the logit of a head for each class of the data; None if the head is for others.

    Args:
      count: logits of the head; None: there is no head.
      names: of these logits; None: unknown, and the number decides.
      class_names: of label 0, 1, … of the data.
    """
    if count != len(class_names):
        return None
    if names is None:
        return list(range(len(class_names)))
    return [names.index(name) for name in class_names] if {*names} == {*class_names} else None


def describe_head(
    count: int | None, names: Sequence[str] | None, order: Sequence[int] | None, kept: bool
) -> str:
    """Returns what becomes of a file's head, for the user; arguments as of `head_order`."""
    if not count:
        return "it has no head, or one of another form"
    head = f"its head for {', '.join(names)}" if names else f"its head of {count} classes"
    if not kept:
        return f"{head} is replaced"
    if order is not None and list(order) != sorted(order):
        return f"{head} is kept, in the order of the data"
    return f"{head} is kept" + ("" if names else ", whose names are unknown")
