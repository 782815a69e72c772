"""Splits a data set into training, validation and test examples.

By default no patient appears in more than one split (`patient`). `image` splits by image, as the
paper does; `official` takes the published test images; k folds split by patient. Afterwards an
independent audit looks for groups, exact copies and ids that two splits have in common, and stops
the run if it finds any (`data/examples.py`).

Randomness depends on the seed and on the ids alone, never on the order of the examples.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from medadv_jax.config import Config
from medadv_jax.data.breakhis.folds import PublishedFold, apply_fold
from medadv_jax.data.examples import Example, KnownPatients, audit_splits, linked_groups
from medadv_jax.data.group_split import assign_groups, hash_shuffle, split_count
from medadv_jax.data.split_settings import SPLITS, SplitSettings, check_request, require_images
from medadv_jax.errors import UserError

SHARES = (0.70, 0.15, 0.15)  # the paper's 1400/300/300 of 2000
# Of earlier versions, whose splits.json does not name the classes.
_CLASSES_BEFORE = {
    "phantoms": ("negative", "positive"),
    "chest_xray": ("normal", "pneumonia"),
    "breakhis": ("benign", "malignant"),
}
_PUBLISHED_TESTS = {"chest_xray": 624, "chest_xray14": 25_596}  # images of the published test split


@dataclass(frozen=True)
class Splits:
    """Indices into the examples, sorted by id, and the findings of the audit.

    `asked` is config.data.split, `done` what the split is: "image: patients unknown" where patients
    were asked for and the names tell none. `class_names`: of label 0, 1, …
    """

    train: list[int]
    validation: list[int]
    test: list[int]
    audit: dict[str, Any]
    notes: list[str]
    asked: str = "patient"
    done: str = "patient"
    class_names: tuple[str, ...] = ("negative", "positive")

    def to_json(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Returns the content of splits.json."""
        groups = linked_groups(examples)
        content: dict[str, Any] = {"notes": self.notes, "asked": self.asked, "done": self.done}
        content |= {"classes": self.class_names, "counts": {}, "audit": self.audit}
        for name in SPLITS:
            part = getattr(self, name)
            by_class = Counter(examples[i].label for i in part)
            content["counts"][name] = {
                "images": len(part),
                "by_class": {str(k): by_class[k] for k in range(len(self.class_names))},
                "groups": len({groups[i] for i in part}),
            }
        ids = {name: [examples[i].id for i in getattr(self, name)] for name in SPLITS}
        used = sorted({*self.train, *self.validation, *self.test})
        if kinds := sorted({name for i in used for name in examples[i].attributes}):
            content["attributes"] = {
                kind: {examples[i].id: examples[i].attributes.get(kind, "") for i in used}
                for kind in kinds
            }
        return content | ids | {"md5": {examples[i].id: examples[i].md5 for i in used}}


def saved_class_names(saved: Mapping[str, Any], dataset: str) -> tuple[str, ...]:
    """Returns the names of label 0, 1, … of a run; with several labels an image those of all.

    Args:
      saved: the content of `splits.json`; one of an earlier version has no names.
      dataset: `config.data.name`.
    """
    own = saved.get("findings") or saved.get("classes")
    return tuple(own or _CLASSES_BEFORE.get(dataset, ("class 0", "class 1")))


def changed_images(
    saved: Mapping[str, Any], md5: Mapping[str, str], names: Iterable[str] = SPLITS
) -> list[str]:
    """Returns the ids whose images have another content than when the splits were saved, sorted.

    Args:
      saved: the content of `splits.json`; one of an earlier version has no md5 sums.
      md5: id -> md5 sum of the image now.
      names: the splits to compare.
    """
    before = saved.get("md5", {})
    ids = {id_ for name in names for id_ in saved[name]} & before.keys() & md5.keys()
    return sorted(id_ for id_ in ids if before[id_] != md5[id_])


@dataclass
class _Task:
    """Inputs and findings of one call of `make_splits`."""

    examples: Sequence[Example]
    groups: list[str]  # of each example; see `linked_groups`
    config: SplitSettings
    seed: int
    class_names: tuple[str, ...]
    fold: PublishedFold | None = None  # of BreakHis
    audit: dict[str, Any] = field(default_factory=lambda: {"copies": [], "contradictions": []})
    notes: list[str] = field(default_factory=list)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)


def make_splits(
    examples: Sequence[Example],
    data_config: Config,
    seed: int,
    class_names: tuple[str, ...] = ("negative", "positive"),
) -> Splits:
    """Splits `examples` as `data_config` says.

    Args:
      examples: every readable image of the data set; their ids differ.
      data_config: has the fields name, split, official_list, per_class, train_all, num_folds
        and fold.
      seed: of all random choices.
      class_names: of label 0, 1, …

    Raises:
      UserError: the requested split is impossible, or the audit found a leak.
    """
    names = [field.name for field in fields(SplitSettings)]
    config = SplitSettings(**{name: getattr(data_config, name) for name in names})
    check_request(examples, config, class_names)
    fold = None
    if config.split == "official" and config.name == "breakhis":
        examples, fold = apply_fold(examples, config.official_list)
    task = _Task(examples, linked_groups(examples), config, seed, class_names, fold)
    split = _folds if config.num_folds else _METHODS[config.split]
    parts = [sorted(part, key=lambda i: examples[i].id) for part in split(task)]
    _note_copies(task)
    allow_groups = config.split == "image"
    task.audit |= audit_splits(examples, dict(zip(SPLITS, parts, strict=True)), allow_groups)
    crossing = sorted(set(itertools.chain(*task.audit["groups_in_common"].values())))
    if crossing:
        task.notes.append(
            f"config.data.split=image leaks: {len(crossing)} of {len(set(task.groups))} patients "
            "have images in two splits; accuracies will be too high; config.data.split=patient "
            "does not leak"
        )
    if (
        config.split != "official"
        and config.name == "folder"
        and any(example.source_split for example in examples)
    ):
        task.notes.append("the data's own splits are not used; config.data.split=official does")
    done = _describe(task)
    train, validation, test = parts
    return Splits(train, validation, test, task.audit, task.notes, config.split, done, class_names)


def _describe(task: _Task) -> str:
    """Returns what the split really is, and notes where patients are unknown."""
    known = KnownPatients.of(task.examples)
    done = known.describe(task.config.split)
    task.audit["patients_unknown"] = known.unknown
    if not known.enough:
        remedy = "name the files as data/README.md says"
        if task.config.name == "folder":
            remedy = "nothing protects against it; give config.data.group_pattern, or a table with"
            remedy += " a column patient"
        task.notes.append(
            f"split by {done} for {known.unknown} of {known.images}; images of one patient may be"
            f" in training and in test; {remedy}"
        )
    return done


def _by_patient(task: _Task) -> list[list[int]]:
    usable = _without_copies(task, range(len(task.examples)))
    _require_groups(task, usable, 3)
    return _balance(task, _divide_groups(task, usable, SHARES), SHARES)


def _by_image(task: _Task) -> list[list[int]]:
    parts: list[list[int]] = [[], [], []]
    usable = _without_copies(task, range(len(task.examples)))
    labels = [task.examples[i].label for i in usable]
    require_images(task.config, labels, task.class_names)
    for label in range(task.num_classes):
        members, start = _shuffled_ids(task, usable, label), 0
        for part, count in zip(parts, split_count(len(members), SHARES), strict=True):
            part += members[start : start + count]
            start += count
    return _balance(task, parts, SHARES)


def _official(task: _Task) -> list[list[int]]:
    """Tests on all published test images; divides the rest into training and validation."""
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
    # Copies of test images are among these, since their groups are linked.
    shared = [i for i in pool if task.groups[i] in tested_groups]
    pool = _without_copies(task, sorted(set(pool) - set(shared)))
    shared_groups = sorted({task.groups[i] for i in shared})
    task.audit["left_out_group_in_test"] = {"images": len(shared), "groups": shared_groups}
    task.notes.append(
        f"config.data.split=official: {_published_tests(task, len(test))} are the test "
        f"split, neither balanced nor cut; {len(shared)} training images of {len(shared_groups)} "
        "groups that also occur in test are left out; config.data.per_class bounds train + "
        "validation alone"
    )
    outside = sum(not example.source_split for example in examples)
    task.audit["in_no_published_split"] = outside
    if outside:
        task.notes.append(f"{outside} images are in no published split and are not used")
    if task.fold and task.fold.missing:
        task.notes.append(task.fold.describe_missing())
    lacking = {*range(task.num_classes)} - {examples[i].label for i in test}
    if lacking:
        named = ", ".join(task.class_names[label] for label in sorted(lacking))
        task.notes.append(f"no test image is of class {named}")
    shares = SHARES[:2]
    parts = _own_validation(task, pool)
    if not parts:
        _require_groups(task, pool, 2)
        parts = _divide_groups(task, pool, shares)
    return [*_balance(task, parts, shares), test]


def _own_validation(task: _Task, pool: Sequence[int]) -> list[list[int]]:
    """Returns training and validation as a user's folders or table have them; [] if they do not.

    Training images of groups that are also in validation are left out. The published data sets have
    validation parts too small to use: theirs are divided anew.
    """
    if task.config.name != "folder":
        return []
    validation = [i for i in pool if task.examples[i].source_split == "val"]
    held = {task.groups[i] for i in validation}
    train = [i for i in pool if task.groups[i] not in held]
    if not validation:
        return []
    for name, part in (("training", train), ("validation", validation)):
        labels = {task.examples[i].label for i in part}
        for label, class_name in enumerate(task.class_names):
            if label not in labels:
                raise UserError(
                    f"config.data.split=official: class {class_name} has no {name} image; add some,"
                    " or set config.data.split=patient"
                )
    dropped = len(pool) - len(train) - len(validation)
    if dropped:
        task.notes.append(
            f"{dropped} training images of groups that also occur in validation are left out"
        )
    return [train, validation]


def _published_tests(task: _Task, found: int) -> str:
    """Returns how many of the published test images there are, in words."""
    published = task.fold.tests if task.fold else _PUBLISHED_TESTS.get(task.config.name, found)
    if found == published:
        return f"all {found} published test images"
    return f"{found} test images, not the {published} published ones,"


def _folds(task: _Task) -> list[list[int]]:
    """Tests on fold `fold` of `num_folds`; over all folds each example is tested once."""
    from sklearn.model_selection import StratifiedGroupKFold  # imported lazily: takes a second

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
    if len({task.examples[i].label for i in test}) < task.num_classes:
        task.notes.append(f"fold {task.config.fold} has one class only: fewer folds are better")
    return [*_divide_groups(task, rest, SHARES[:2]), test]


_METHODS = {"patient": _by_patient, "image": _by_image, "official": _official}


def _require_groups(task: _Task, indices: Iterable[int], needed: int) -> None:
    members = [(task.examples[i].label, task.groups[i]) for i in indices]
    for label, name in enumerate(task.class_names):
        count = len({group for of_class, group in members if of_class == label})
        if count < needed:
            field_value = f"config.data.split={task.config.split}"
            if task.config.num_folds:
                field_value = f"config.data.num_folds={task.config.num_folds}"
            raise UserError(
                f"{field_value}: class {name} has {count} patients, at least {needed} are needed; "
                "set config.data.split=image, which leaks, or add images"
            )


def _without_copies(task: _Task, indices: Iterable[int]) -> list[int]:
    """Keeps one of each set of exact copies; drops all of them if their labels differ."""
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
    return [by_id[name] for name in hash_shuffle(by_id, f"{task.seed}/image")]


def _balance(
    task: _Task, parts: Sequence[Sequence[int]], shares: Sequence[float]
) -> list[list[int]]:
    """Reduces each part to equal classes and its share of per_class; 0 keeps all images.

    With train_all, the first part stays as it is.
    """
    if not task.config.per_class:
        return [list(part) for part in parts]
    wanted = split_count(round(task.config.per_class * sum(shares)), shares)
    balanced = []
    for part, most in zip(parts, wanted, strict=True):
        by_class = [_shuffled_ids(task, part, label) for label in range(task.num_classes)]
        count = min(most, *map(len, by_class))
        balanced.append([i for members in by_class for i in members[:count]])
    taken = [len(part) // task.num_classes for part in balanced]
    if taken != wanted:
        task.notes.append(
            f"config.data.per_class={task.config.per_class} asks for "
            f"{'/'.join(map(str, wanted))} images a class; there are "
            f"{'/'.join(map(str, taken))}, as near these shares as can be"
        )
    return [list(parts[0]), *balanced[1:]] if task.config.train_all else balanced


def _divide_groups(task: _Task, indices: Sequence[int], shares: Sequence[float]) -> list[list[int]]:
    """Gives every group to one part, so that each class is divided in proportion to `shares`."""
    counts = {task.groups[i]: np.zeros(task.num_classes, int) for i in indices}
    for i in indices:
        counts[task.groups[i]][task.examples[i].label] += 1
    totals = np.sum(list(counts.values()), axis=0)
    quotas = np.array([split_count(total, shares) for total in totals.tolist()]).T
    needs = quotas
    if task.config.per_class:
        most = min(round(task.config.per_class * sum(shares)), *totals.tolist())
        needs = np.array([split_count(most, shares)] * task.num_classes).T
    part_of = assign_groups(counts, quotas, needs, task.seed)
    return [[i for i in indices if part_of[task.groups[i]] == p] for p in range(len(shares))]
