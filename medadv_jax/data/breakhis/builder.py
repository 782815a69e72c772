"""BreakHis (Spanhol et al., IEEE TBME 2016): 7,909 images of 82 slides of 70 cases.

Names are parsed, folders are not trusted, because mirrors re-arrange them:
`SOB_M_DC-14-17614-200-003.png` is class, subtype, year, slide, magnification, number. A slide
such as 22549AB is a part of the case 22549, so groups are (year, leading digits of the slide).
"""

import re
from pathlib import PurePosixPath

from medadv_jax.data.source import FolderBuilder, Parsed, UnlabelledError

_NAME = re.compile(r"SOB_([BM])_([A-Z]+)-(\d+)-([0-9A-Za-z]+)-(\d+)-(\d+)\.png", re.IGNORECASE)
_LABEL = re.compile(r"SOB_([BM])_", re.IGNORECASE)
# The slide of a name that goes on in another way. Where the slide itself is missing, what stands
# in its place is a magnification and no case.
_SLIDE = re.compile(r"SOB_[BM]_([A-Z]+)-(\d+)-(?!(?:40|100|200|400)-)(\d+)[A-Z]*(?![0-9A-Z])", re.I)
_DROPPED_CASE = ("DC", "14-13412")


class BreakHis(FolderBuilder, skip_registration=True):
    """Benign (0) and malignant (1) breast tumours at 40, 100, 200 and 400 times."""

    name = "breakhis"
    SUFFIXES = (".png",)
    FOLDER_NAME = "BreaKHis_v1"
    LAYOUT = "BreaKHis_v1/ with SOB_*.png at any depth"
    URL = "http://www.inf.ufpr.br/vri/databases/BreaKHis_v1.tar.gz"
    CLASS_NAMES = ("benign", "malignant")
    DESCRIPTION = "Histology of breast tumours, 700 x 460 pixels, H&E."
    HOMEPAGE = (
        "https://web.inf.ufpr.br/vri/databases/breast-cancer-histopathological-database-breakhis/"
    )
    CITATION = "Spanhol et al., A Dataset for Breast Cancer Histopathological Image Classification, IEEE TBME 2016"  # noqa: E501

    @classmethod
    def parse(cls, path: str) -> Parsed:
        """Reads class, case and magnification; what the name does not tell stays unknown."""
        name = PurePosixPath(path).name
        if match := _NAME.fullmatch(name):
            letter, subtype, year, slide, magnification, _ = match.groups()
            case = re.match(r"\d+", slide)
            if case:
                group = f"{year}-{case[0]}"
                return Parsed(_label(letter), group, int(magnification), subtype=subtype)
            return Parsed(_label(letter), f"file:{path}", int(magnification), on_grammar=False)
        if match := _LABEL.match(name):
            return Parsed(_label(match[1]), _case(name) or f"file:{path}", on_grammar=False)
        return Parsed(_folder_label(path), f"file:{path}", on_grammar=False)

    @classmethod
    def drop_reason(cls, path: str) -> str:
        """Slide 13412 is filed as ductal (DC) and as lobular (LC), with the same images."""
        match = _SLIDE.match(PurePosixPath(path).name)
        if match and (match[1].upper(), f"{match[2]}-{match[3]}") == _DROPPED_CASE:
            return "slide 14-13412 filed as DC holds the images filed as LC"
        return ""


def _label(letter: str) -> int:
    return int(letter.upper() == "M")


def _case(name: str) -> str:
    match = _SLIDE.match(name)
    return f"{match[2]}-{match[3]}" if match else ""


def _folder_label(path: str) -> int:
    for folder in reversed(PurePosixPath(path).parent.parts):
        if folder.lower() in BreakHis.CLASS_NAMES:
            return BreakHis.CLASS_NAMES.index(folder.lower())
    raise UnlabelledError("no SOB_B or SOB_M in the name, no folder benign or malignant above it")
