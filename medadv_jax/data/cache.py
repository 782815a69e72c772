"""The TFDS builder that all data sets share: a cache of decoded square images.

A cache is one folder `<cache_dir>/<fingerprint>/<data set>/<config>/<version>/`. It holds
array_record files of raw pixels and `index.json`: the metadata of every example, in the order of
the records, and the report of the build. TFDS writes it under a temporary name and renames it at
the end, so a folder with the final name is complete.

TensorFlow is not needed. That rules out TFDS's image feature, and its shuffling writer, which
uses `tf.io.gfile` once a split exceeds 1 GB.
"""

import abc
import contextlib
import dataclasses
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from medadv_jax.config import Config
from medadv_jax.data.images import WHITE
from medadv_jax.errors import UserError
from medadv_jax.files import read_json, write_record

IMAGE_VERSION = "1.3.0"  # raise it when decoded pixels, fields or read names (groups) change
INDEX_FILE = "index.json"
METADATA_FIELDS = ("id", "label", "group", "magnification", "source_split", "md5", "subtype")
_STORED_SPLIT = "images"  # the only one; TFDS reserves the name "all"
_TEXT_FIELDS = ("id", "group", "source_split", "md5", "subtype")
_IMAGES_PER_SHARD = 4096
_IMAGES_PER_WRITE = 128  # TFDS rewrites the split's metadata after every write


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """The fields of `config.data` that the cached images depend on; see configs/default.py."""

    name: str
    dir: str
    cache_dir: str
    image_size: int
    fit: str
    labels: str
    csv: str
    classes: str
    group_pattern: str
    phantom_kind: str
    phantom_images: int
    phantom_seed: int

    @classmethod
    def from_config(cls, data_config: Config) -> "DataSettings":
        """Selects these fields from `config.data`."""
        values: dict[str, Any] = data_config.to_dict()
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})

    @property
    def cache_folder(self) -> Path:
        """The folder of all caches, with ~ expanded."""
        return Path(self.cache_dir).expanduser()


@dataclasses.dataclass(eq=False)
class ImageConfig(tfds.core.BuilderConfig):
    """The TFDS config of a cache."""

    image_size: int = 224  # pixels, height = width
    fit: str = "crop"  # a key of data.images.FITS; "" for generated images
    source: str = ""  # folder of the image files; "" for generated images
    labels: str = "class"  # class | subtype


@dataclasses.dataclass(frozen=True)
class CacheSpec:
    """Identifies a cache and counts its images; computed without decoding anything."""

    config: ImageConfig
    content: object  # JSON-serialisable; everything else that the images depend on
    count: int  # images, damaged ones included
    class_names: tuple[str, ...]  # of label 0, 1, …; with two classes negative, positive

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 of `content`."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()[:16]


class CachedBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes the examples of `records` into one cached split; a subclass is a data set."""

    VERSION = tfds.core.Version(IMAGE_VERSION)
    CLASS_NAMES: ClassVar[tuple[str, ...]]  # of label 0, 1, …
    MULTI_LABEL: ClassVar[bool] = False  # several of CLASS_NAMES an image, in its `findings`
    SUBTYPES: ClassVar[Mapping[str, str]] = {}  # as names tell them -> class with labels=subtype
    DESCRIPTION = ""
    HOMEPAGE = ""
    CITATION = ""
    advance: Callable[[int], None] = staticmethod(lambda images: None)  # told what is written

    @classmethod
    @abc.abstractmethod
    def cache_spec(cls, settings: DataSettings) -> CacheSpec:
        """Returns which cache these settings need; UserError if there are no images."""

    @abc.abstractmethod
    def records(self, report: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yields the examples and fills in the report of the build.

        Args:
          report: an `empty_report`; it is complete when the iterator is exhausted.

        Yields:
          dicts with `image` (S, S, 3) uint8, METADATA_FIELDS, and if there are any `attributes`,
          a dict of texts.
        """

    @property
    def image_config(self) -> ImageConfig:
        """The TFDS config of this builder."""
        assert isinstance(self.builder_config, ImageConfig)
        return self.builder_config

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.image_config.image_size
        image = tfds.features.Tensor(shape=(size, size, 3), dtype=np.uint8, encoding="bytes")
        text = {name: tfds.features.Text() for name in _TEXT_FIELDS}
        numbers = dict.fromkeys(("label", "magnification"), np.int64)
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
            features=tfds.features.FeaturesDict({"image": image, **text, **numbers}),
            disable_shuffling=True,  # record i is example i of the index
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {_STORED_SPLIT: self._generate_examples(empty_report())}

    def _generate_examples(self, report: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields (position, example); at the end writes the index into the unfinished cache."""
        index: dict[str, list[Any]] = {name: [] for name in (*METADATA_FIELDS, "attributes")}
        for position, record in enumerate(self.records(report)):
            index["attributes"].append(record.pop("attributes", {}))  # in the index alone
            for name in METADATA_FIELDS:
                index[name].append(record[name])
            yield position, record
            self.advance(1)
        content = json.dumps({"examples": index, "report": report}, ensure_ascii=False)
        with write_record(Path(self.data_dir) / INDEX_FILE) as beside:
            beside.write_text(content, encoding="utf-8")

    def _download_and_prepare(self, dl_manager: tfds.download.DownloadManager, download_config):
        """Streams the examples to disk in order; TFDS would shuffle them in memory."""
        info = self._info()  # a new one, since self.info already points at the final folder
        writer = tfds.core.SequentialWriter(info, _IMAGES_PER_SHARD, file_format="array_record")
        writer.initialize_splits([_STORED_SPLIT])
        examples = self._split_generators(dl_manager)[_STORED_SPLIT]
        while batch := [example for _, example in islice(examples, _IMAGES_PER_WRITE)]:
            writer.add_examples({_STORED_SPLIT: batch})
        writer.close_all()
        self.info.set_splits(info.splits)


def empty_report() -> dict[str, Any]:
    """Returns the report of a build before it starts.

    files_listed: number of files (or generated images) found.
    rejected: [{file, reason}] of unusable files.
    dropped: [{reason, count, first}] of files left out on purpose; `first` names a few.
    names_unparsed: number of files whose name does not follow the data set's pattern.
    patients_unknown: number of images that are a group of their own for want of a patient.
    contradictions: number of files whose name and folder say different labels.
    white: the value of 16-bit pixels that is white; the `white` of `images.read_square`.
    notes: lines for people.
    """
    counts = dict.fromkeys(("names_unparsed", "patients_unknown", "contradictions"), 0)
    return {"files_listed": 0, "rejected": [], "dropped": [], **counts, "white": WHITE, "notes": []}


def open_cache(
    builder_class: type[CachedBuilder],
    spec: CacheSpec,
    cache_dir: Path,
    advance: Callable[[int], None] = lambda images: None,
) -> tuple[Any, dict[str, Any]]:
    """Opens a cache; builds it first if it does not exist.

    Args:
      builder_class: the data set.
      spec: from its `cache_spec`.
      cache_dir: the folder of all caches.
      advance: told the number of images written.

    Returns:
      a random-access source of the dicts that `CachedBuilder.records` yields, and the content of
      the index: `examples` (a column for each of METADATA_FIELDS) and `report`.

    Raises:
      UserError: the cache cannot be written or is damaged, or an error of `records`.
    """
    root = cache_dir / spec.fingerprint
    builder = _make_builder(builder_class, spec.config, root)
    folder = Path(builder.data_dir)
    if folder.exists() and not (folder / INDEX_FILE).exists():
        logging.warning("%s has no %s: built anew", folder, INDEX_FILE)
        shutil.rmtree(folder)
    if not folder.exists():
        logging.info("Decoding to %d pixels into %s", spec.config.image_size, folder)
        builder = _make_builder(builder_class, spec.config, root)
        builder.advance = advance
        _build(builder, folder)
        builder = _make_builder(builder_class, spec.config, root)
    open_source: Any = builder.as_data_source  # its decorator hides the arguments from pyright
    remedy = f"delete {folder}, and it is made anew"
    index = read_json(folder / INDEX_FILE, remedy)
    try:
        return open_source("all"), index
    except Exception as error:  # TFDS raises nearly anything on broken files
        raise UserError(f"config.data.cache_dir: {folder} is damaged; {remedy}") from error


def _make_builder(builder_class: Any, config: ImageConfig, cache_dir: Path) -> CachedBuilder:
    with _quiet_absl():  # TFDS warns of configs that the class does not list
        try:
            return builder_class(data_dir=cache_dir, config=config, file_format="array_record")
        except Exception as error:  # it reads the cache's description, and raises nearly anything
            reason = " ".join(str(error).split())[:120]
            raise UserError(
                f"config.data.cache_dir: {cache_dir} is damaged ({reason}); delete it, and it is"
                " made anew"
            ) from error


def _build(builder: CachedBuilder, folder: Path) -> None:
    settings = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        # TFDS prints that it downloads something; it does not.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_config=settings)
    except OSError as error:
        # Renaming fails when another process has built the same cache; that one is used then.
        if not (folder / INDEX_FILE).exists():
            raise UserError(
                f"config.data.cache_dir: {folder} cannot be written ({error}); make room or "
                "choose another"
            ) from error
        logging.info("%s was built by another process meanwhile", folder)


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
