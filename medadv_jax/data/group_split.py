"""Assigns groups of different sizes (patients) to splits of given sizes.

Randomness comes from hashes of a text that holds the seed and of the names, so it does not depend
on the order of the names.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

_ATTEMPTS = 64  # of the greedy assignment


def split_count(count: int, shares: Sequence[float]) -> list[int]:
    """Divides a number in proportion to `shares`; the first part absorbs the rounding."""
    held_out = [max(1, round(count * share / sum(shares))) for share in shares[1:]]
    return [count - sum(held_out), *held_out]


def hash_shuffle(names: Iterable[str], purpose: str) -> list[str]:
    """Shuffles names; the relative order of two names depends on them and on `purpose` alone."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{purpose}/{name}".encode()).digest())


def assign_groups(
    counts: Mapping[str, np.ndarray], quotas: np.ndarray, needs: np.ndarray, seed: int
) -> dict[str, int]:
    """Returns group -> part, from the first random attempt that meets all needs, else the best.

    Meeting every count exactly is a bin-packing problem. With groups as small as patients the
    first greedy attempt nearly always succeeds.

    Args:
      counts: group -> (C,) images of each class.
      quotas: (S, C) images of each class that each part should get; they add up to all images.
      needs: (S, C) images of each class that each part must get; at most `quotas`.
      seed: of the attempts.
    """
    attempts = []
    for attempt in range(_ATTEMPTS):
        order = hash_shuffle(counts, f"{seed}/group/{attempt}")
        if attempt % 2 == 0:  # large groups first, so that small ones fill the gaps
            order.sort(key=lambda group: -int(counts[group].sum()))
        part_of, filled = _assign_greedily(order, counts, quotas, tightest=attempt % 4 > 1)
        missing = int(np.maximum(needs - filled, 0).sum())
        cost = int((filled == 0).sum()), missing, int(np.abs(quotas - filled).sum())
        attempts.append((cost, attempt, part_of))
        if missing == 0:
            break
    return min(attempts)[2]


def _assign_greedily(
    order: Sequence[str],
    counts: Mapping[str, np.ndarray],
    quotas: np.ndarray,
    tightest: bool,
) -> tuple[dict[str, int], np.ndarray]:
    """Gives each group to the part whose quota it exceeds least; returns parts and their counts.

    Ties go to the emptiest part, or with `tightest` to the one with the least room: groups of
    just the right size then hit small quotas.
    """
    filled = np.zeros_like(quotas)
    groups_left = np.sum([counts[group] > 0 for group in order], axis=0)  # (C,)
    part_of: dict[str, int] = {}
    for group in order:
        count = counts[group]
        has = count > 0
        room = np.maximum(quotas - filled, 0)
        excess = np.maximum(count - room, 0).sum(axis=1)
        tie = room[:, has].max(axis=1) if tightest else -(room / quotas)[:, has].max(axis=1)
        # The last groups of a class go to parts that have none of it yet.
        lacking = (filled == 0) & has
        urgent = (lacking & (groups_left <= lacking.sum(axis=0))).any(axis=1)
        part = int(np.lexsort((tie, excess, ~urgent))[0])
        part_of[group] = part
        filled[part] += count
        groups_left = groups_left - has
    return part_of, filled
