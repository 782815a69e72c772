"""Chest X-rays (Kermany et al., Mendeley Data 2018), under the authors' and under Kaggle's names.

`person12_bacteria_46.jpeg` shows pneumonia; its group is `person12`, bacterial and viral images
alike. `NORMAL2-IM-0381-0001.jpeg` is normal; its group is `NORMAL2-IM-0381`. In the authors' own
release `BACTERIA-1008087-0001.jpeg` is disease, patient and number of the image; the group is
`patient-1008087`, whatever the disease. Copies and augmented images carry more before or after
such a name; they belong to the same patient.
"""

import re
from pathlib import PurePosixPath
from typing import ClassVar

from medadv_jax.data.examples import UNKNOWN_PATIENT
from medadv_jax.data.source import SPLIT_WORDS, FolderBuilder, ParsedName

# What is read of a name, and what else a published one has up to its end.
_NAMES = tuple(
    (re.compile(rf"(?<![0-9A-Z]){start}", re.I), re.compile(rf"{rest}\.(?:jpeg|jpg|png)", re.I))
    for start, rest in (
        (r"(?P<patient>person\d+)(?:[_-](?P<finding>bacteria|virus)(?![A-Z]))?", r"_\d+(?:_\d+)?"),
        (r"(?P<patient>(?:NORMAL2-)?IM-\d{4})-\d{4}(?!\d)", r"(?:-\d{4})?"),
        (r"(?P<finding>BACTERIA|VIRUS|NORMAL)-(?P<number>\d+)-\d+(?!\d)", ""),
    )
)


class ChestXray(FolderBuilder, skip_registration=True):
    """Normal (0) and pneumonia (1)."""

    name = "chest_xray"
    SUFFIXES = (".jpeg", ".jpg", ".png")
    FOLDER_NAME = "chest_xray"
    LAYOUT = "chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg"
    NO_LABEL = "a name of another kind, no folder NORMAL or PNEUMONIA above it"
    # Kaggle serves public data sets at this address without an account.
    URL = "https://www.kaggle.com/api/v1/datasets/download/paultimothymooney/chest-xray-pneumonia"
    CLASS_NAMES = ("normal", "pneumonia")
    SUBTYPES: ClassVar = {"normal": "normal", "bacteria": "bacteria", "virus": "virus"}
    DESCRIPTION = "Chest X-rays of children of one to five years, mostly grey, 400 to 2900 pixels."
    HOMEPAGE = "https://www.kaggle.com/datasets/paultimothymooney/chest-xray-pneumonia"
    CITATION = "Kermany et al., Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification, Mendeley Data 2018"  # noqa: E501

    @classmethod
    def parse(cls, path: str) -> ParsedName:
        """Reads label, patient and subtype from the name, the published split from the folder."""
        name, folders = PurePosixPath(path).name, PurePosixPath(path).parent.parts
        named = [SPLIT_WORDS[part.lower()] for part in folders if part.lower() in SPLIT_WORDS]
        split = named[-1] if named else ""
        for pattern, rest in _NAMES:
            if match := pattern.search(name):
                usual = match.start() == 0 and rest.fullmatch(name, match.end()) is not None
                return _parsed(match, split, usual, path)
        group = f"{UNKNOWN_PATIENT}{path}"
        return ParsedName(cls.folder_label(path), group, 0, split, follows_pattern=False)


def _parsed(match: re.Match[str], split: str, usual: bool, path: str) -> ParsedName:
    """Returns what a match of one of `_NAMES` says; `usual`: it is a published name."""
    found = match.groupdict()
    if "number" in found:
        group = f"patient-{found['number']}"
    else:
        group = found["patient"].lower()
        group = group if group.startswith("person") else group.upper()
    finding = (found.get("finding") or "").lower()
    if group.startswith("person") and not finding:  # the folder tells
        return ParsedName(ChestXray.folder_label(path), group, 0, split, follows_pattern=False)
    subtype = finding if finding in ("bacteria", "virus") else ""
    return ParsedName(int(bool(subtype)), group, 0, split, usual, subtype)
