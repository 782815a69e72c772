"""Data sets that are folders of image files: listing, naming, decoding."""

import abc
import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
from tqdm import tqdm

from medadv_jax.data.cache import CachedBuilder, DataSettings, ImageConfig, Plan
from medadv_jax.data.download import fetch
from medadv_jax.data.images import BadImageError, read_square
from medadv_jax.errors import UserError

MAX_REJECTED_SHARE = (
    0.01  # of the listed files; more means that the folder is not what it should be
)
_FILES_IN_FLIGHT = 256  # decoded ahead of the writer, which bounds the memory
_NAMED = 3  # files named in an error or a note


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file as the folder lists it."""

    path: str  # relative to the source folder, with "/"
    size: int  # bytes
    modified: int  # nanoseconds

    @property
    def name(self) -> str:
        """The file name without its folders."""
        return PurePosixPath(self.path).name


@dataclasses.dataclass(frozen=True)
class Parsed:
    """What name and folder tell about an image."""

    label: int  # 1 = malignant or pneumonia
    group: str  # patient or case
    magnification: int = 0  # 0 = unknown
    source_split: str = ""  # 'train' | 'val' | 'test' | ''
    on_grammar: bool = True  # False: the name is of another grammar
    subtype: str = ""  # of the tissue or the infection; "": unknown


class UnlabelledError(Exception):
    """Neither name nor folder tells the label; the message is the reason."""


class FolderBuilder(CachedBuilder, skip_registration=True):
    """A data set that lies on disk as files; subclasses give names their meaning."""

    SUFFIXES: ClassVar[tuple[str, ...]]  # lower case, with the dot
    FOLDER_NAME: ClassVar[str]  # of the unpacked download
    LAYOUT: ClassVar[str]  # what a folder is expected to hold; for errors
    URL: ClassVar[str]  # archive of the download

    @classmethod
    def plan(cls, settings: DataSettings) -> Plan:
        """See `CachedBuilder.plan`; lists the folder, and fetches it where none is given."""
        folder = cls._folder(settings)
        files = list_files(folder, cls.SUFFIXES)
        if not files:
            raise UserError(f"config.data.dir: no image in {folder}; expected is {cls.LAYOUT}")
        size, fit = settings.image_size, settings.fit
        config = ImageConfig(name=f"{fit}_{size}", image_size=size, fit=fit, source=str(folder))
        facts = [[file.path, file.size, file.modified] for file in files]
        kept = [file for file in files if not cls.drop_reason(file.path)]
        return Plan(config, facts, count_distinct(kept))

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
    def parse(cls, path: str) -> Parsed:
        """Reads a relative path; raises UnlabelledError."""

    @classmethod
    def drop_reason(cls, path: str) -> str:
        """Why this file is left out on purpose; "" keeps it."""
        return ""

    def records(self, report: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """See `CachedBuilder.records`; raises UserError when over 1 % of the files are rejected."""
        folder = Path(self.image_config.source)
        files = list_files(folder, self.SUFFIXES)
        report["files_listed"] = len(files)
        kept = self._drop(folder, files, report)
        kept = self._label(kept, report)
        check_rejected(report, folder, self.LAYOUT)
        yield from self._decode(folder, kept, report)
        check_rejected(report, folder, self.LAYOUT)

    def _drop(
        self, folder: Path, files: Sequence[SourceFile], report: dict[str, Any]
    ) -> list[SourceFile]:
        copies = find_copies(folder, files)
        reasons: dict[str, list[str]] = {}
        kept = []
        for file in files:
            reason = self.drop_reason(file.path)
            if not reason and file.path in copies:
                reason = "same name and same bytes as another file"
            if reason:
                reasons.setdefault(reason, []).append(file.path)
            else:
                kept.append(file)
        for reason, paths in reasons.items():
            report["dropped"].append(
                {"reason": reason, "count": len(paths), "first": paths[:_NAMED]}
            )
            report["notes"].append(f"{len(paths)} files left out: {reason}")
        return kept

    def _label(
        self, files: Sequence[SourceFile], report: dict[str, Any]
    ) -> list[tuple[SourceFile, Parsed]]:
        labelled, unparsed = [], []
        for file in files:
            try:
                parsed = self.parse(file.path)
            except UnlabelledError as error:
                report["rejected"].append({"file": file.path, "reason": str(error)})
                continue
            labelled.append((file, parsed))
            if not parsed.on_grammar:
                unparsed.append(file.path)
        report["names_unparsed"] = len(unparsed)
        if unparsed:
            named = ", ".join(unparsed[:_NAMED])
            report["notes"].append(f"{len(unparsed)} names are off the grammar, as {named}")
        return labelled

    def _decode(
        self,
        folder: Path,
        files: Sequence[tuple[SourceFile, Parsed]],
        report: dict[str, Any],
    ) -> Iterator[dict[str, Any]]:
        size, fit = self.image_config.image_size, self.image_config.fit
        ids = unique_ids([file.path for file, _ in files])

        def read(item: tuple[SourceFile, Parsed]) -> tuple[np.ndarray | str, str]:
            return _read(folder / item[0].path, size, fit)

        results = _map_in_threads(read, files)
        bar = tqdm(results, f"decoding {self.name}", len(files), unit="img", disable=None)
        for (file, parsed), example_id, (image, md5) in zip(files, ids, bar, strict=True):
            if isinstance(image, str):
                report["rejected"].append({"file": file.path, "reason": image})
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
            }


def list_files(folder: Path, suffixes: tuple[str, ...]) -> list[SourceFile]:
    """All files with these suffixes below a folder, sorted; macOS's own files are not seen."""
    found, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        place = os.stat(parent)
        if (place.st_dev, place.st_ino) in seen:  # links may lead in circles
            folders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        folders[:] = [name for name in folders if not _is_hidden(name)]
        for name in names:
            if name.lower().endswith(suffixes) and not _is_hidden(name):
                path = Path(parent, name)
                status = path.stat() if path.exists() else path.lstat()  # a broken link is listed
                relative = path.relative_to(folder).as_posix()
                found.append(SourceFile(relative, status.st_size, status.st_mtime_ns))
    return sorted(found, key=lambda file: file.path)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def count_distinct(files: Iterable[SourceFile]) -> int:
    """Number of files, those of equal name and size counted once; reads none of them."""
    return len({(file.name, file.size) for file in files})


def find_copies(folder: Path, files: Sequence[SourceFile]) -> set[str]:
    """Paths whose name, size and bytes were seen before; Kaggle's archive holds everything twice.

    Reads only files that share name and size with another.
    """
    shared = Counter((file.name, file.size) for file in files)
    seen, copies = set(), set()
    for file in files:
        if shared[file.name, file.size] == 1 or file.size == 0:
            continue
        try:
            key = (file.name, hashlib.md5((folder / file.path).read_bytes()).digest())
        except OSError:
            continue  # decoding will tell why
        if key in seen:
            copies.add(file.path)
        seen.add(key)
    return copies


def unique_ids(paths: Sequence[str]) -> list[str]:
    """The file name without its suffix; the whole path where several files share that."""
    stems = [PurePosixPath(path).stem for path in paths]
    counts = Counter(stems)
    return [stem if counts[stem] == 1 else path for stem, path in zip(stems, paths, strict=True)]


def check_rejected(report: dict[str, Any], folder: Path, layout: str) -> None:
    """Raises UserError when more of the listed files were rejected than chance explains."""
    rejected, listed = report["rejected"], report["files_listed"]
    if rejected and not folder.is_dir():
        raise UserError(f"config.data.dir: {folder} vanished while it was read; bring it back")
    if len(rejected) <= MAX_REJECTED_SHARE * listed:
        return
    named = "; ".join(f"{item['file']} ({item['reason']})" for item in rejected[:_NAMED])
    raise UserError(
        f"config.data.dir: {len(rejected)} of {listed} files in {folder} cannot be used, more than "
        f"{MAX_REJECTED_SHARE:.0%}: {named}; mend or remove them, expected is {layout}"
    )


def _read(path: Path, size: int, fit: str) -> tuple[np.ndarray | str, str]:
    """Returns the image and the md5 of its file, or the reason why not and ""."""
    try:
        content = path.read_bytes()
        return read_square(content, size, fit), hashlib.md5(content).hexdigest()
    except OSError as error:
        return f"cannot be read: {error.strerror}", ""
    except BadImageError as error:
        return str(error), ""


def _map_in_threads(function, items: Sequence[Any]) -> Iterator[Any]:
    """Like `map`, in order, with a bounded number of results waiting."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without the GIL
        for start in range(0, len(items), _FILES_IN_FLIGHT):
            yield from pool.map(function, items[start : start + _FILES_IN_FLIGHT])
