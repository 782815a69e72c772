"""Data sets of image files: listing, reading the names, decoding."""

import abc
import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
from tqdm import tqdm

from medadv_jax.data.bounded import BadImageError, read_bounded
from medadv_jax.data.cache import CachedBuilder, CacheSpec, DataSettings, ImageConfig
from medadv_jax.data.download import fetch
from medadv_jax.data.examples import UNKNOWN_PATIENT
from medadv_jax.data.images import WHITE, largest_value, read_square
from medadv_jax.errors import UserError

MAX_REJECTED_SHARE = 0.01  # of the files; if more are unusable, the folder is the wrong one
_MAX_CONTRADICTING_SHARE = 0.01  # of the files; if more are, names or folders mean something else
_DECODED_AHEAD = 256  # files decoded ahead of the writer; bounds the memory
NAMED_FILES = 3  # at most, in an error or a note
SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file below the data set's folder."""

    path: str  # relative to that folder, as the operating system has it
    size: int  # bytes
    modified: int  # nanoseconds

    @property
    def place(self) -> str:
        """The path to read names from: UTF-8 with "/".

        Archives written on Windows unpack to names with "\\" for their folders, old ones to bytes
        that are no UTF-8; these are escaped, and so is what moves the cursor of a terminal.
        """
        path = os.fsencode(self.path.replace("\\", "/")).decode("utf-8", "backslashreplace")
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in path)

    @property
    def name(self) -> str:
        """The file name without its folders."""
        return PurePosixPath(self.place).name


@dataclasses.dataclass(frozen=True)
class ParsedName:
    """What an image's path says about it."""

    label: int  # with two classes 1 = positive
    group: str  # patient or case
    magnification: int = 0  # 0 = unknown
    source_split: str = ""  # 'train' | 'val' | 'test' | ''
    follows_pattern: bool = True  # False: the name is not of the data set's usual form
    subtype: str = ""  # of the tissue or the infection; "": unknown
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of a user's table


class UnlabelledError(Exception):
    """Neither the name nor a folder gives the label; the message is the reason."""


class FileBuilder(CachedBuilder, skip_registration=True):
    """A data set of image files; a subclass lists them with their labels and patients."""

    LAYOUT: ClassVar[str]  # what the folder should hold; for errors

    @abc.abstractmethod
    def labelled(self, report: dict[str, Any]) -> list[tuple[SourceFile, ParsedName]]:
        """Lists the files with a label; reports the others and how many files there are."""

    def records(self, report: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """See `CachedBuilder.records`; raises UserError if over 1 % of the files are unusable,
        or have a name and a folder of different classes."""
        folder = Path(self.image_config.source)
        labelled = self.labelled(report)
        unknown = sum(parsed.group.startswith(UNKNOWN_PATIENT) for _, parsed in labelled)
        report["patients_unknown"] = unknown
        if unknown:
            report["notes"].append(f"patients unknown for {unknown} of {len(labelled)} images")
        check_rejected(report, folder, self.LAYOUT)
        report["white"] = self._find_white([folder / file.path for file, _ in labelled], report)
        yield from self._decode(folder, labelled, report)
        check_rejected(report, folder, self.LAYOUT)

    def _find_white(self, paths: Sequence[Path], report: dict[str, Any]) -> int:
        """Returns the smallest 2^n - 1 that holds all pixels of 16 bits; n is from 8 to 16.

        Scanners store 10 or 12 bits in files of 16, which hold no word about it.
        """
        values = list(map_in_threads(largest_value, paths))
        largest = min(max(values, default=0), WHITE)
        if not largest:
            return WHITE
        white = 2 ** max(8, largest.bit_length()) - 1
        report["notes"].append(
            f"{sum(map(bool, values))} files have pixels of 16 bits, up to {largest}: {white} is"
            " white in all of them"
        )
        return white

    def _decode(
        self,
        folder: Path,
        files: Sequence[tuple[SourceFile, ParsedName]],
        report: dict[str, Any],
    ) -> Iterator[dict[str, Any]]:
        """Yields the examples; rejects the files that cannot be decoded."""
        size, fit = self.image_config.image_size, self.image_config.fit
        ids = example_ids([file.place for file, _ in files])

        def read(item: tuple[SourceFile, ParsedName]) -> tuple[np.ndarray | str, str]:
            return _read(folder / item[0].path, size, fit, report["white"])

        results = map_in_threads(read, files)
        bar = tqdm(results, f"decoding {self.name}", len(files), unit="img", disable=None)
        for (file, parsed), example_id, (image, md5) in zip(files, ids, bar, strict=True):
            if isinstance(image, str):
                report["rejected"].append({"file": file.place, "reason": image})
                continue
            yield {
                "image": image,
                "id": example_id,
                "label": parsed.label,
                "group": parsed.group,
                "magnification": parsed.magnification,
                "source_split": parsed.source_split,
                "md5": md5,
                "subtype": parsed.subtype,
                "attributes": dict(parsed.attributes),
            }


class FolderBuilder(FileBuilder, skip_registration=True):
    """A published data set; a subclass reads labels and patients from the names of its files."""

    SUFFIXES: ClassVar[tuple[str, ...]]  # lower case, with the dot
    FOLDER_NAME: ClassVar[str]  # of the unpacked download
    NO_LABEL: ClassVar[str]  # why an image without a label is rejected
    URL: ClassVar[str]  # archive of the download

    @classmethod
    def cache_spec(cls, settings: DataSettings) -> CacheSpec:
        """See `CachedBuilder.cache_spec`; downloads the data set if no folder is given."""
        folder = cls._folder(settings)
        files = list_files(folder, cls.SUFFIXES)
        if not files:
            raise UserError(f"config.data.dir: no image in {folder}; expected is {cls.LAYOUT}")
        size, fit, labels = settings.image_size, settings.fit, settings.labels
        name = f"{fit}_{size}" if labels == "class" else f"{fit}_{size}_{labels}"
        config = ImageConfig(name=name, image_size=size, fit=fit, source=str(folder), labels=labels)
        content = [[file.path, file.size, file.modified] for file in files]
        kept = [file for file in files if not cls.drop_reason(file.place)]
        names = cls.CLASS_NAMES if labels == "class" else tuple(cls.SUBTYPES.values())
        return CacheSpec(config, content, count_distinct(kept), names)

    @classmethod
    def _folder(cls, settings: DataSettings) -> Path:
        given = settings.dir or os.environ.get("MEDADV_DATA_DIR", "")
        if not given:
            downloads = settings.cache_folder / "downloads"
            folder = fetch(cls.name, cls.URL, cls.HOMEPAGE, downloads)
        else:
            folder = Path(given).expanduser()
        if not folder.is_dir():
            origin = "config.data.dir" if settings.dir else "MEDADV_DATA_DIR"
            raise UserError(f"{origin}: no folder {folder}; expected is one with {cls.LAYOUT}")
        inner = folder / cls.FOLDER_NAME
        return inner if folder.name != cls.FOLDER_NAME and inner.is_dir() else folder

    @classmethod
    @abc.abstractmethod
    def parse(cls, path: str) -> ParsedName:
        """Reads a path relative to the data set's folder; raises UnlabelledError."""

    @classmethod
    def folder_label(cls, path: str) -> int:
        """Returns the label of the nearest folder named after a class; raises UnlabelledError."""
        for folder in reversed(PurePosixPath(path).parent.parts):
            if folder.lower() in cls.CLASS_NAMES:
                return cls.CLASS_NAMES.index(folder.lower())
        raise UnlabelledError(cls.NO_LABEL)

    @classmethod
    def drop_reason(cls, path: str) -> str:
        """Returns why a file is left out on purpose; "" if it is kept."""
        return ""

    def labelled(self, report: dict[str, Any]) -> list[tuple[SourceFile, ParsedName]]:
        """See `FileBuilder.labelled`; UserError if over 1 % contradict their folders."""
        folder = Path(self.image_config.source)
        files = list_files(folder, self.SUFFIXES)
        report["files_listed"] = len(files)
        return self._label(self._drop(folder, files, report), report)

    def _drop(
        self, folder: Path, files: Sequence[SourceFile], report: dict[str, Any]
    ) -> list[SourceFile]:
        """Leaves out exact copies and the files with a `drop_reason`."""
        copies = find_copies(folder, files)
        dropped: dict[str, list[str]] = {}
        kept = []
        for file in files:
            reason = self.drop_reason(file.place)
            if not reason and file.path in copies:
                reason = "same name and same bytes as another file"
            if reason:
                dropped.setdefault(reason, []).append(file.place)
            else:
                kept.append(file)
        for reason, paths in dropped.items():
            report["dropped"].append(
                {"reason": reason, "count": len(paths), "first": paths[:NAMED_FILES]}
            )
            report["notes"].append(f"{len(paths)} files left out: {reason}")
        return kept

    def _label(
        self, files: Sequence[SourceFile], report: dict[str, Any]
    ) -> list[tuple[SourceFile, ParsedName]]:
        """Parses the names; rejects the files without a label, and counts contradictions."""
        labelled, unusual, contradicting = [], [], []
        for file in files:
            try:
                parsed = self.parse(file.place)
                labelled.append((file, self._relabel(parsed)))
            except UnlabelledError as error:
                report["rejected"].append({"file": file.place, "reason": str(error)})
                continue
            if not parsed.follows_pattern:
                unusual.append(file.place)
            if self._contradicts(file.place, parsed.label):
                contradicting.append(file.place)
        report["names_unparsed"] = len(unusual)
        self._note_contradictions(contradicting, len(files), report)
        if unusual:
            named = ", ".join(unusual[:NAMED_FILES])
            report["notes"].append(f"{len(unusual)} names are off the grammar, as {named}")
        return labelled

    def _relabel(self, parsed: ParsedName) -> ParsedName:
        """Labels an image by its subtype if the config asks for it; raises UnlabelledError."""
        if self.image_config.labels == "class":
            return parsed
        known = [name.lower() for name in self.SUBTYPES]
        subtype = (parsed.subtype or self.CLASS_NAMES[parsed.label]).lower()  # normal has no other
        if subtype not in known:
            raise UnlabelledError("the name tells none of the known subtypes")
        return dataclasses.replace(parsed, label=known.index(subtype))

    @classmethod
    def _contradicts(cls, path: str, label: int) -> bool:
        """Returns whether a folder named after a class says another label than the name."""
        try:
            return cls.folder_label(path) != label
        except UnlabelledError:
            return False

    def _note_contradictions(
        self, paths: Sequence[str], total: int, report: dict[str, Any]
    ) -> None:
        """Reports names that contradict their folders; UserError if these are over 1 %."""
        report["contradictions"] = len(paths)
        if not paths:
            return
        what = (
            f"the name and the folder of {len(paths)} of {total} images contradict each other, as"
            f" {', '.join(paths[:NAMED_FILES])}"
        )
        if len(paths) > _MAX_CONTRADICTING_SHARE * total:
            raise UserError(
                f"config.data.dir: {what}; that is more than {_MAX_CONTRADICTING_SHARE:.0%}: move"
                " them to the right folder, or rename them"
            )
        report["notes"].append(f"{what}; the names are taken")


def list_files(folder: Path, suffixes: tuple[str, ...]) -> list[SourceFile]:
    """Returns all files with these suffixes below a folder, sorted by path.

    Hidden files and macOS's `__MACOSX` folders are skipped; symbolic links are followed.
    """
    found, visited = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in visited:  # a link to a folder above it
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not _is_hidden(name)]
        for name in names:
            if name.lower().endswith(suffixes) and not any(map(_is_hidden, name.split("\\"))):
                path = Path(parent, name)
                status = path.stat() if path.exists() else path.lstat()  # a broken link is listed
                relative = path.relative_to(folder).as_posix()
                found.append(SourceFile(relative, status.st_size, status.st_mtime_ns))
    return sorted(found, key=lambda file: file.path)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def count_distinct(files: Iterable[SourceFile]) -> int:
    """Counts files; those of equal name and size count once. Reads none of them."""
    return len({(file.name, file.size) for file in files})


def find_copies(folder: Path, files: Sequence[SourceFile]) -> set[str]:
    """Returns the paths of files with the name and the bytes of an earlier file.

    Kaggle's archive of the chest X-rays holds every file twice. Reads only files that share name
    and size with another.
    """
    counts = Counter((file.name, file.size) for file in files)
    seen, copies = set(), set()
    for file in files:
        if counts[file.name, file.size] == 1 or file.size == 0:
            continue
        try:
            key = (file.name, hashlib.md5(read_bounded(folder / file.path)).digest())
        except (OSError, BadImageError):
            continue  # decoding reports it
        if key in seen:
            copies.add(file.path)
        seen.add(key)
    return copies


def example_ids(paths: Sequence[str]) -> list[str]:
    """Returns each file's name without suffix, or its whole path where names repeat."""
    stems = [PurePosixPath(path).stem for path in paths]
    counts = Counter(stems)
    return [stem if counts[stem] == 1 else path for stem, path in zip(stems, paths, strict=True)]


def check_rejected(report: dict[str, Any], folder: Path, layout: str) -> None:
    """Raises UserError if more than MAX_REJECTED_SHARE of the listed files were rejected."""
    rejected, listed = report["rejected"], report["files_listed"]
    if rejected and not folder.is_dir():
        raise UserError(f"config.data.dir: {folder} vanished while it was read; bring it back")
    if len(rejected) <= MAX_REJECTED_SHARE * listed:
        return
    named = "; ".join(f"{item['file']} ({item['reason']})" for item in rejected[:NAMED_FILES])
    raise UserError(
        f"config.data.dir: {len(rejected)} of {listed} files in {folder} cannot be used, more than "
        f"{MAX_REJECTED_SHARE:.0%}: {named}; mend or remove them, expected is {layout}"
    )


def _read(path: Path, size: int, fit: str, white: int) -> tuple[np.ndarray | str, str]:
    """Returns the image and the md5 of its file; for an unusable file, the reason and ""."""
    try:
        content = read_bounded(path)
        return read_square(content, size, fit, white), hashlib.md5(content).hexdigest()
    except OSError as error:
        return f"cannot be read: {error.strerror}", ""
    except BadImageError as error:
        return str(error), ""


def map_in_threads(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Like `map`, in order, with a bounded number of results waiting."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the GIL while decoding
        for start in range(0, len(items), _DECODED_AHEAD):
            yield from pool.map(function, items[start : start + _DECODED_AHEAD])
