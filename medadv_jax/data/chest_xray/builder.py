"""Chest X-rays (Kermany et al., Mendeley Data 2018), in the layout of Kaggle's copy.

`person12_bacteria_46.jpeg` is a patient with pneumonia, whose bacterial and viral images belong
together; `NORMAL2-IM-0381-0001.jpeg` is a normal one, whose group is the prefix and first number.
"""

import re
from pathlib import PurePosixPath

from medadv_jax.data.source import FolderBuilder, Parsed, UnlabelledError

_SUFFIX = r"\.(?:jpeg|jpg|png)"  # some copies are re-encoded; their names tell as much
_PNEUMONIA = re.compile(rf"(person\d+)_(bacteria|virus)_\d+(?:_\d+)?{_SUFFIX}", re.IGNORECASE)
_NORMAL = re.compile(rf"((?:NORMAL2-)?IM-\d{{4}})-\d{{4}}(?:-\d{{4}})?{_SUFFIX}", re.IGNORECASE)
_SPLITS = ("train", "val", "test")


class ChestXray(FolderBuilder, skip_registration=True):
    """Normal (0) and pneumonia (1)."""

    name = "chest_xray"
    SUFFIXES = (".jpeg", ".jpg", ".png")
    FOLDER_NAME = "chest_xray"
    LAYOUT = "chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg"
    # Kaggle hands out public data sets at this address without an account.
    URL = "https://www.kaggle.com/api/v1/datasets/download/paultimothymooney/chest-xray-pneumonia"
    CLASS_NAMES = ("normal", "pneumonia")
    DESCRIPTION = "Chest X-rays of children of one to five years, mostly grey, 400 to 2900 pixels."
    HOMEPAGE = "https://www.kaggle.com/datasets/paultimothymooney/chest-xray-pneumonia"
    CITATION = "Kermany et al., Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification, Mendeley Data 2018"  # noqa: E501

    @classmethod
    def parse(cls, path: str) -> Parsed:
        """Reads label and patient from the name, the published split from the folder."""
        name, folders = PurePosixPath(path).name, PurePosixPath(path).parent.parts
        split = next((part.lower() for part in reversed(folders) if part.lower() in _SPLITS), "")
        if match := _PNEUMONIA.fullmatch(name):
            return Parsed(1, match[1].lower(), source_split=split, subtype=match[2].lower())
        if match := _NORMAL.fullmatch(name):
            return Parsed(0, match[1].upper(), source_split=split)
        label = _folder_label(folders)
        return Parsed(label, f"file:{path}", source_split=split, on_grammar=False)


def _folder_label(folders: tuple[str, ...]) -> int:
    for folder in reversed(folders):
        if folder.lower() in ChestXray.CLASS_NAMES:
            return ChestXray.CLASS_NAMES.index(folder.lower())
    raise UnlabelledError("a name of another kind, no folder NORMAL or PNEUMONIA above it")
