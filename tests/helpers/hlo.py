"""Reads compiled programs."""

import re
from collections.abc import Sequence

COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
)


def computations(program: str) -> dict[str, list[str]]:
    """The lines of each computation of an HLO program."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in program.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            lines = found[head[1]] = []
        elif line.startswith(" "):
            lines.append(line)
    return found


def reachable(text: dict[str, str], names: Sequence[str]) -> set[str]:
    """The computations that `names` call, themselves among them."""
    seen, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name in seen or name not in text:
            continue
        seen.add(name)
        waiting += [called for called in re.findall(r"%?([\w.\-]+)", text[name]) if called in text]
    return seen
