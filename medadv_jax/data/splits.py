"""Cuts a data set into training, validation and test examples; knows no image and no model.

The default keeps every patient on one side (`patient`). The paper's cut (`image`) and the data
sets' own (`official`) are there by name, and k folds by patient. Whatever was chosen, an audit
that does not know how the cut was made looks for groups, exact copies and ids on two sides, and
stops the run when it finds any.

Every draw depends on the seed and on the ids alone, never on the order of the examples.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from medadv_jax.config import Config
from medadv_jax.data.breakhis.folds import read_fold
from medadv_jax.data.group_split import apportion, assign_groups, shuffled
from medadv_jax.errors import UserError

CLASSES = (0, 1)
SPLITS = ("train", "validation", "test")
SHARES = (0.70, 0.15, 0.15)  # the paper's 1400/300/300 of 2000


@dataclass(frozen=True)
class Example:
    """What splitting needs to know of an image."""

    id: str
    label: int  # 1 = malignant or pneumonia
    group: str  # patient or case
    magnification: int  # 0 = unknown
    source_split: str  # 'train' | 'val' | 'test' | ''
    md5: str
    subtype: str = ""  # of the tissue or the infection; "": unknown


@dataclass(frozen=True)
class Splits:
    """Indices into the examples, in the order of their ids, and what the audit found."""

    train: list[int]
    validation: list[int]
    test: list[int]
    audit: dict[str, Any]
    notes: list[str]

    def to_json(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Returns the content of splits.json, as plain lists, dicts, strings and numbers."""
        groups = linked_groups(examples)
        content: dict[str, Any] = {"notes": self.notes, "counts": {}, "audit": self.audit}
        for name in SPLITS:
            part = getattr(self, name)
            by_class = Counter(examples[i].label for i in part)
            content["counts"][name] = {
                "images": len(part),
                "by_class": {str(label): by_class[label] for label in CLASSES},
                "groups": len({groups[i] for i in part}),
            }
        return content | {name: [examples[i].id for i in getattr(self, name)] for name in SPLITS}


@dataclass(frozen=True)
class _Config:
    """The fields of config.data that say how to cut."""

    name: str
    split: str
    official_list: str
    per_class: int
    num_folds: int
    fold: int


@dataclass
class _Task:
    """One call of `make_splits`: what the ways of cutting share."""

    examples: Sequence[Example]
    groups: list[str]  # of each example, after linking
    config: _Config
    seed: int
    audit: dict[str, Any] = field(default_factory=lambda: {"copies": [], "contradictions": []})
    notes: list[str] = field(default_factory=list)


def make_splits(examples: Sequence[Example], data_config: Config, seed: int) -> Splits:
    """Cuts `examples` as `data_config` asks.

    Args:
      examples: every readable image of the data set; the ids differ.
      data_config: the fields name, split, official_list, per_class, num_folds and fold.
      seed: fixes every draw.

    Raises:
      UserError: the cut that was asked for does not exist, or the audit found a leak.
    """
    config = _Config(**{field.name: getattr(data_config, field.name) for field in fields(_Config)})
    _check(examples, config)
    if config.split == "official" and config.name == "breakhis":
        examples = _with_published_fold(examples, config.official_list)
    task = _Task(examples, linked_groups(examples), config, seed)
    cut = _folds if config.num_folds else _CUTS[config.split]
    parts = [sorted(part, key=lambda i: examples[i].id) for part in cut(task)]
    _note_copies(task)
    allow_groups = config.split == "image"
    task.audit |= audit_splits(examples, dict(zip(SPLITS, parts, strict=True)), allow_groups)
    crossing = sorted(set(itertools.chain(*task.audit["groups_in_common"].values())))
    if crossing:
        task.notes.append(
            f"config.data.split=image leaks: {len(crossing)} of {len(set(task.groups))} "
            "patients have "
            "images in two splits; accuracies will be too high; config.data.split=patient "
            "does not leak"
        )
    return Splits(*parts, audit=task.audit, notes=task.notes)


def audit_splits(
    examples: Sequence[Example], parts: Mapping[str, Sequence[int]], allow_groups: bool = False
) -> dict[str, dict[str, list[str]]]:
    """Lists what two splits have in common: groups (linked by copies), md5 sums and ids.

    Args:
      examples: every image of the data set, the ones in no split too: they link groups.
      parts: indices into `examples` by the split's name.
      allow_groups: report groups in common, but let them pass.

    Returns:
      "groups_in_common", "md5_in_common" and "ids_in_common": each the sorted names by pair.

    Raises:
      UserError: anything is in common that may not be.
    """
    groups = linked_groups(examples)
    kinds = {
        "groups": {name: {groups[i] for i in part} for name, part in parts.items()},
        "md5": {name: {examples[i].md5 for i in part} for name, part in parts.items()},
        "ids": {name: {examples[i].id for i in part} for name, part in parts.items()},
    }
    found: dict[str, dict[str, list[str]]] = {}
    for kind, members in kinds.items():
        found[f"{kind}_in_common"] = {}
        for one, other in itertools.combinations(members, 2):
            common = sorted(members[one] & members[other])
            if common and not (kind == "groups" and allow_groups):
                raise UserError(
                    f"splits: {one} and {other} share {len(common)} {kind}, for example "
                    f"{', '.join(common[:3])}; this is a leak: please report it, and do not "
                    "use the run"
                )
            found[f"{kind}_in_common"][f"{one}/{other}"] = common
    return found


def linked_groups(examples: Sequence[Example]) -> list[str]:
    """Returns the group of each example; groups that share an exact copy become one.

    The same image under two patients' names means that they are one patient, or that one of
    the names is wrong: in both cases the two belong on one side.
    """
    parent = {example.group: example.group for example in examples}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    first_with: dict[str, str] = {}
    for example in examples:
        one, other = root(example.group), root(first_with.setdefault(example.md5, example.group))
        # The smaller name wins, so that the order of the examples does not matter.
        parent[max(one, other)] = min(one, other)
    return [root(example.group) for example in examples]


def _by_patient(task: _Task) -> list[list[int]]:
    usable = _without_copies(task, range(len(task.examples)))
    _require_groups(task, usable, 3)
    parts = _cut_by_group(task, usable, SHARES)
    return _balance(task, parts, SHARES)


def _by_image(task: _Task) -> list[list[int]]:
    parts: list[list[int]] = [[], [], []]
    usable = _without_copies(task, range(len(task.examples)))
    _require_images(task.config, [task.examples[i].label for i in usable])
    for label in CLASSES:
        members, start = _shuffled_ids(task, usable, label), 0
        for part, count in zip(parts, apportion(len(members), SHARES), strict=True):
            part += members[start : start + count]
            start += count
    return _balance(task, parts, SHARES)


def _official(task: _Task) -> list[list[int]]:
    """Keeps the published test images, all of them; cuts the rest into train and validation."""
    examples = task.examples
    test = [i for i, example in enumerate(examples) if example.source_split == "test"]
    pool = [i for i, example in enumerate(examples) if example.source_split in ("train", "val")]
    if not test or not pool:
        raise UserError(
            f"config.data.split=official: {len(test)} test and {len(pool)} training images in "
            f"{task.config.name}; both are needed; set config.data.split=patient"
        )
    tested = {examples[i].md5 for i in test}
    copies = [i for i in pool if examples[i].md5 in tested]
    task.audit["copies_of_test_images"] = sorted(examples[i].id for i in copies)
    tested_groups = {task.groups[i] for i in test}
    shared = [i for i in pool if task.groups[i] in tested_groups]  # copies among them: linked
    pool = _without_copies(task, sorted(set(pool) - set(shared)))
    shared_groups = sorted({task.groups[i] for i in shared})
    task.audit["left_out_group_in_test"] = {"images": len(shared), "groups": shared_groups}
    task.notes.append(
        f"config.data.split=official: all {len(test)} published test images are the test "
        "split, neither "
        f"balanced nor cut; {len(shared)} training images of {len(shared_groups)} groups that "
        "also occur in test are left out; config.data.per_class bounds train + validation alone"
    )
    task.audit["in_no_published_split"] = sum(not example.source_split for example in examples)
    _require_groups(task, pool, 2)
    shares = SHARES[:2]
    return [*_balance(task, _cut_by_group(task, pool, shares), shares), test]


def _folds(task: _Task) -> list[list[int]]:
    """Tests fold `fold` of `num_folds`; over all folds each example is tested once."""
    from sklearn.model_selection import StratifiedGroupKFold  # here: a second, for folds alone

    usable = _without_copies(task, range(len(task.examples)))
    _require_groups(task, usable, max(3, task.config.num_folds))
    (subset,) = _balance(task, [usable], (1.0,))
    subset = sorted(subset, key=lambda i: task.examples[i].id)
    labels = np.array([task.examples[i].label for i in subset])
    groups = np.array([task.groups[i] for i in subset])
    folds = StratifiedGroupKFold(task.config.num_folds, shuffle=True, random_state=task.seed)
    _, tested = list(folds.split(labels, labels, groups))[task.config.fold]
    test = [subset[i] for i in tested]
    rest = sorted(set(subset) - set(test))
    _require_groups(task, rest, 2)
    task.notes.append(
        f"fold {task.config.fold} of {task.config.num_folds} is tested: {len(test)} of "
        f"{len(subset)} images"
    )
    if len({task.examples[i].label for i in test}) < len(CLASSES):
        task.notes.append(f"fold {task.config.fold} has one class only: fewer folds are better")
    return [*_cut_by_group(task, rest, SHARES[:2]), test]


_CUTS = {"patient": _by_patient, "image": _by_image, "official": _official}


def _check(examples: Sequence[Example], config: _Config) -> None:
    if config.split not in _CUTS:
        raise UserError(
            f"config.data.split={config.split!r}: unknown; choose from {', '.join(_CUTS)}"
        )
    if config.num_folds and config.split != "patient":
        raise UserError(
            f"config.data.num_folds={config.num_folds} cuts by patient and does not go with "
            f"config.data.split={config.split}; set config.data.split=patient or "
            "config.data.num_folds=0"
        )
    if config.num_folds == 1 or not 0 <= config.fold < max(1, config.num_folds):
        raise UserError(
            f"config.data.fold={config.fold} of config.data.num_folds={config.num_folds}: "
            "needs at least 2 "
            "folds, and a fold from 0 to config.data.num_folds - 1"
        )
    repeated = [name for name, count in Counter(e.id for e in examples).items() if count > 1]
    if repeated:
        raise UserError(f"data: {len(repeated)} ids are not unique, for example {repeated[0]}")
    if not (config.per_class == 0 or config.per_class >= len(SPLITS)):
        raise UserError(
            f"config.data.per_class={config.per_class}: set 0 (all images) or at least 3"
        )
    _require_images(config, [example.label for example in examples])


def _require_images(config: _Config, labels: Sequence[int]) -> None:
    for label in CLASSES:
        if labels.count(label) < len(SPLITS):
            raise UserError(
                f"config.data.name={config.name}: {labels.count(label)} images of class {label}, "
                f"at least {len(SPLITS)} are needed; check data.dir"
            )


def _require_groups(task: _Task, indices: Iterable[int], needed: int) -> None:
    members = [(task.examples[i].label, task.groups[i]) for i in indices]
    for label in CLASSES:
        count = len({group for owner, group in members if owner == label})
        if count < needed:
            asked = f"config.data.split={task.config.split}"
            if task.config.num_folds:
                asked = f"config.data.num_folds={task.config.num_folds}"
            raise UserError(
                f"{asked}: class {label} has {count} patients, at least {needed} are needed; "
                "set config.data.split=image, which leaks, or add images"
            )


def _with_published_fold(examples: Sequence[Example], path: str) -> list[Example]:
    """Sets source_split from a fold file of BreakHis."""
    sides = read_fold(path)
    listed = [replace(e, source_split=sides.get(PurePosixPath(e.id).stem, "")) for e in examples]
    if not any(example.source_split for example in listed):
        raise UserError(
            f"config.data.official_list={path}: none of its {len(sides)} names is among the "
            f"{len(examples)} images; check config.data.dir and the file"
        )
    return listed


def _without_copies(task: _Task, indices: Iterable[int]) -> list[int]:
    """Keeps one of each set of exact copies; none, where the copies' labels differ."""
    by_md5: dict[str, list[int]] = defaultdict(list)
    for i in sorted(indices, key=lambda i: task.examples[i].id):
        by_md5[task.examples[i].md5].append(i)
    kept = []
    for copies in by_md5.values():
        names = [task.examples[i].id for i in copies]
        if len({task.examples[i].label for i in copies}) > 1:
            task.audit["contradictions"].append(names)
            continue
        kept.append(copies[0])
        if len(copies) > 1:
            task.audit["copies"].append({"kept": names[0], "dropped": names[1:]})
    return kept


def _note_copies(task: _Task) -> None:
    dropped = sum(len(entry["dropped"]) for entry in task.audit["copies"])
    contradicting = sum(map(len, task.audit["contradictions"]))
    linked = sorted({e.group for e in task.examples} - set(task.groups))
    task.audit["groups_linked_by_copies"] = linked
    if dropped or contradicting or linked:
        task.notes.append(
            f"exact copies: {dropped} dropped, one of each kept; {contradicting} dropped because "
            f"their labels contradict each other; {len(linked)} groups joined to another"
        )


def _shuffled_ids(task: _Task, indices: Iterable[int], label: int) -> list[int]:
    by_id = {task.examples[i].id: i for i in indices if task.examples[i].label == label}
    return [by_id[name] for name in shuffled(by_id, f"{task.seed}/image")]


def _balance(
    task: _Task, parts: Sequence[Sequence[int]], shares: Sequence[float]
) -> list[list[int]]:
    """Cuts every part down to equal classes and to its share of per_class; 0: leaves it whole."""
    if not task.config.per_class:
        return [list(part) for part in parts]
    asked = apportion(round(task.config.per_class * sum(shares)), shares)
    balanced = []
    for part, cap in zip(parts, asked, strict=True):
        by_class = [_shuffled_ids(task, part, label) for label in CLASSES]
        count = min(cap, *map(len, by_class))
        balanced.append([i for members in by_class for i in members[:count]])
    taken = [len(part) // len(CLASSES) for part in balanced]
    if taken != asked:
        task.notes.append(
            f"config.data.per_class={task.config.per_class} asks for "
            f"{'/'.join(map(str, asked))} images "
            f"a class; there are {'/'.join(map(str, taken))}, as near these shares as can be"
        )
    return balanced


def _cut_by_group(task: _Task, indices: Sequence[int], shares: Sequence[float]) -> list[list[int]]:
    """Gives every group to one part, so that each class is cut in proportion to `shares`."""
    counts = {task.groups[i]: np.zeros(len(CLASSES), int) for i in indices}
    for i in indices:
        counts[task.groups[i]][task.examples[i].label] += 1
    totals = np.sum(list(counts.values()), axis=0)
    quotas = np.array([apportion(total, shares) for total in totals.tolist()]).T
    needs = quotas
    if task.config.per_class:
        most = min(round(task.config.per_class * sum(shares)), *totals.tolist())
        needs = np.array([apportion(most, shares)] * len(CLASSES)).T
    part_of = assign_groups(counts, quotas, needs, task.seed)
    return [[i for i in indices if part_of[task.groups[i]] == p] for p in range(len(shares))]
