"""BreakHis (Spanhol et al., IEEE TBME 2016): 7,909 images of 82 slides of 70 cases.

Labels and groups come from the file names, since mirrors re-arrange the folders.
`SOB_M_DC-14-17614-200-003.png` is class, subtype, year, slide, magnification and number. A slide
such as 22549AB is a part of case 22549, so a group is (year, leading digits of the slide).
"""

import re
from pathlib import PurePosixPath
from typing import ClassVar

from medadv_jax.data.examples import UNKNOWN_PATIENT
from medadv_jax.data.source import FolderBuilder, ParsedName

_START = r"SOB_([BM])_([A-Z]+)-(\d+)-([0-9A-Za-z]+)-(\d+)-(\d+)"
_NAME = re.compile(rf"{_START}\.png", re.IGNORECASE)
# A copy has more before or after its name; a magnification and number may follow the slide.
_COPY = re.compile(rf"(?<![0-9A-Z]){_START}(?!\d)", re.IGNORECASE)
_LABEL = re.compile(r"(?<![0-9A-Z])SOB_([BM])_", re.IGNORECASE)
# The slide in a name of another form. A magnification in the slide's place is no slide.
_SLIDE = re.compile(
    r"(?<![0-9A-Z])SOB_[BM]_([A-Z]+)-(\d+)-(?!(?:40|100|200|400)-)(\d+)[A-Z]*(?![0-9A-Z])", re.I
)
_DROPPED_SLIDE = ("DC", "14-13412")


class BreakHis(FolderBuilder, skip_registration=True):
    """Benign (0) and malignant (1) breast tumours at 40, 100, 200 and 400 times."""

    name = "breakhis"
    SUFFIXES = (".png",)
    FOLDER_NAME = "BreaKHis_v1"
    LAYOUT = "BreaKHis_v1/ with SOB_*.png at any depth"
    NO_LABEL = "no SOB_B or SOB_M in the name, no folder benign or malignant above it"
    URL = "http://www.inf.ufpr.br/vri/databases/BreaKHis_v1.tar.gz"
    CLASS_NAMES = ("benign", "malignant")
    SUBTYPES: ClassVar = {
        "A": "adenosis", "F": "fibroadenoma", "PT": "phyllodes_tumor", "TA": "tubular_adenoma",
        "DC": "ductal_carcinoma", "LC": "lobular_carcinoma", "MC": "mucinous_carcinoma",
        "PC": "papillary_carcinoma",
    }  # fmt: skip
    DESCRIPTION = "Histology of breast tumours, 700 x 460 pixels, H&E."
    HOMEPAGE = (
        "https://web.inf.ufpr.br/vri/databases/breast-cancer-histopathological-database-breakhis/"
    )
    CITATION = "Spanhol et al., A Dataset for Breast Cancer Histopathological Image Classification, IEEE TBME 2016"  # noqa: E501

    @classmethod
    def parse(cls, path: str) -> ParsedName:
        """Reads class, case, magnification and subtype from the name, as far as it has them."""
        name, alone = PurePosixPath(path).name, f"{UNKNOWN_PATIENT}{path}"
        if match := _COPY.search(name):
            letter, subtype, year, slide, magnification, _ = match.groups()
            case = re.match(r"\d+", slide)
            if case:
                group, usual = f"{year}-{case[0]}", _NAME.fullmatch(name) is not None
                return ParsedName(_label(letter), group, int(magnification), "", usual, subtype)
            return ParsedName(_label(letter), alone, int(magnification), follows_pattern=False)
        if match := _LABEL.search(name):
            return ParsedName(_label(match[1]), _case(name) or alone, follows_pattern=False)
        return ParsedName(cls.folder_label(path), alone, follows_pattern=False)

    @classmethod
    def drop_reason(cls, path: str) -> str:
        """Drops the ductal (DC) copies of slide 13412, whose images are also filed as lobular."""
        match = _SLIDE.search(PurePosixPath(path).name)
        if match and (match[1].upper(), f"{match[2]}-{match[3]}") == _DROPPED_SLIDE:
            return "slide 14-13412 filed as DC holds the images filed as LC"
        return ""


def _label(letter: str) -> int:
    return int(letter.upper() == "M")


def _case(name: str) -> str:
    match = _SLIDE.search(name)
    return f"{match[2]}-{match[3]}" if match else ""
