"""Shares groups of different sizes out to parts of given sizes; knows no image and no file.

Every draw depends on the purpose (a text with the seed in it) and on the names alone.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

_ATTEMPTS = 64  # draws of the greedy assignment; the first exact one is taken


def apportion(count: int, shares: Sequence[float]) -> list[int]:
    """Cuts a number in proportion to `shares`; the first part takes what rounding leaves."""
    held_out = [max(1, round(count * share / sum(shares))) for share in shares[1:]]
    return [count - sum(held_out), *held_out]


def shuffled(names: Iterable[str], purpose: str) -> list[str]:
    """Orders names by a hash: a draw that neither their order nor their number changes."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{purpose}/{name}".encode()).digest())


def assign_groups(
    counts: Mapping[str, np.ndarray], quotas: np.ndarray, needs: np.ndarray, seed: int
) -> dict[str, int]:
    """Draws assignments of groups to parts until one has all that is needed; else the best.

    Hitting every count exactly is a packing problem; groups of a patient's size leave so much
    freedom that the first draw nearly always does.

    Args:
      counts: (C,) images of each class, by group.
      quotas: (S, C) images of each class that each part should have, all groups given out.
      needs: (S, C) images of each class that each part must have; at most `quotas`.
      seed: fixes the draws.
    """
    draws = []
    for attempt in range(_ATTEMPTS):
        order = shuffled(counts, f"{seed}/group/{attempt}")
        if attempt % 2 == 0:  # the large ones first: the small ones then fill the gaps
            order.sort(key=lambda group: -int(counts[group].sum()))
        part_of, filled = _fill(order, counts, quotas, tightest=attempt % 4 > 1)
        short = int(np.maximum(needs - filled, 0).sum())
        cost = int((filled == 0).sum()), short, int(np.abs(quotas - filled).sum())
        draws.append((cost, attempt, part_of))
        if short == 0:
            break
    return min(draws)[2]


def _fill(
    order: Sequence[str],
    counts: Mapping[str, np.ndarray],
    quotas: np.ndarray,
    tightest: bool,
) -> tuple[dict[str, int], np.ndarray]:
    """Gives each group to the part that it overfills least, and among those to the emptiest.

    Or to the one with the least room: then groups of just the right size hit small quotas.
    """
    filled = np.zeros_like(quotas)
    to_come = np.sum([counts[group] > 0 for group in order], axis=0)
    part_of: dict[str, int] = {}
    for group in order:
        count = counts[group]
        has = count > 0
        room = np.maximum(quotas - filled, 0)
        overfull = np.maximum(count - room, 0).sum(axis=1)
        wish = room[:, has].max(axis=1) if tightest else -(room / quotas)[:, has].max(axis=1)
        # The last groups of a class go to parts that have none of it yet.
        lacking = (filled == 0) & has
        urgent = (lacking & (to_come <= lacking.sum(axis=0))).any(axis=1)
        part = int(np.lexsort((wish, overfull, ~urgent))[0])
        part_of[group] = part
        filled[part] += count
        to_come = to_come - has
    return part_of, filled
