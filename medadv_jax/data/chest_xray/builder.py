"""Chest X-rays (Kermany et al., Mendeley Data 2018), in the layout of Kaggle's copy.

`person12_bacteria_46.jpeg` shows pneumonia; its group is `person12`, bacterial and viral images
alike. `NORMAL2-IM-0381-0001.jpeg` is normal; its group is `NORMAL2-IM-0381`.
"""

import re
from pathlib import PurePosixPath

from medadv_jax.data.source import FolderBuilder, ParsedName

_SUFFIX = r"\.(?:jpeg|jpg|png)"  # some copies of the data set are re-encoded
_PNEUMONIA = re.compile(rf"(person\d+)_(bacteria|virus)_\d+(?:_\d+)?{_SUFFIX}", re.IGNORECASE)
_NORMAL = re.compile(rf"((?:NORMAL2-)?IM-\d{{4}})-\d{{4}}(?:-\d{{4}})?{_SUFFIX}", re.IGNORECASE)
_SPLITS = ("train", "val", "test")


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
    DESCRIPTION = "Chest X-rays of children of one to five years, mostly grey, 400 to 2900 pixels."
    HOMEPAGE = "https://www.kaggle.com/datasets/paultimothymooney/chest-xray-pneumonia"
    CITATION = "Kermany et al., Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification, Mendeley Data 2018"  # noqa: E501

    @classmethod
    def parse(cls, path: str) -> ParsedName:
        """Reads label, patient and subtype from the name, the published split from the folder."""
        name, folders = PurePosixPath(path).name, PurePosixPath(path).parent.parts
        split = next((part.lower() for part in reversed(folders) if part.lower() in _SPLITS), "")
        if match := _PNEUMONIA.fullmatch(name):
            return ParsedName(1, match[1].lower(), source_split=split, subtype=match[2].lower())
        if match := _NORMAL.fullmatch(name):
            return ParsedName(0, match[1].upper(), source_split=split)
        label, group = cls.folder_label(path), f"file:{path}"
        return ParsedName(label, group, source_split=split, follows_pattern=False)
