"""The metadata of the images, and what must not lie in two splits: patients and exact copies."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medadv_jax.errors import UserError

UNKNOWN_PATIENT = "file:"  # begins the group of an image whose patient is unknown
_MAX_UNKNOWN_SHARE = 0.01  # of the images; above it a split by group is one by image


@dataclass(frozen=True)
class Example:
    """The metadata of an image."""

    id: str
    label: int  # with two classes 1 = positive
    group: str  # patient or case
    magnification: int  # 0 = unknown
    source_split: str  # 'train' | 'val' | 'test' | ''
    md5: str
    subtype: str = ""  # of the tissue or the infection; "": unknown
    attributes: Mapping[str, str] = field(default_factory=dict, hash=False)  # of a user's table


@dataclass(frozen=True)
class KnownPatients:
    """Of how many images the patient is unknown."""

    unknown: int
    images: int

    @classmethod
    def of(cls, examples: Sequence[Example]) -> "KnownPatients":
        """Counts the images that are a group of their own for want of a readable patient."""
        unknown = sum(example.group.startswith(UNKNOWN_PATIENT) for example in examples)
        return cls(unknown, len(examples))

    @property
    def enough(self) -> bool:
        """False if a split by group keeps no patient in one split: over 1 % are unknown."""
        return self.unknown <= _MAX_UNKNOWN_SHARE * self.images

    def describe(self, split: str) -> str:
        """Returns what a split really is: "patient", "image" or "official", with a caveat.

        Args:
          split: `config.data.split`.
        """
        if self.enough:
            return split
        return f"{'image' if split == 'patient' else split}: patients unknown"


def audit_splits(
    examples: Sequence[Example], parts: Mapping[str, Sequence[int]], allow_groups: bool = False
) -> dict[str, dict[str, list[str]]]:
    """Lists the groups (linked by copies), md5 sums and ids that two splits have in common.

    Args:
      examples: every image of the data set; those outside all splits still link groups.
      parts: split -> indices into `examples`.
      allow_groups: common groups are listed but are no error.

    Returns:
      "groups_in_common", "md5_in_common" and "ids_in_common": each "split/split" -> sorted names.

    Raises:
      UserError: two splits have something in common that is not allowed.
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
    """Returns the group of each example; groups that share an exact copy of an image become one.

    The same image under two patients' names means that they are one patient or that a name is
    wrong. In both cases the two belong in the same split.
    """
    parent = {example.group: example.group for example in examples}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    first_with: dict[str, str] = {}
    for example in examples:
        one, other = root(example.group), root(first_with.setdefault(example.md5, example.group))
        # The smaller name is kept, so that the order of the examples does not matter.
        parent[max(one, other)] = min(one, other)
    return [root(example.group) for example in examples]
