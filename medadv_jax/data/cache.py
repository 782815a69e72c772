"""The TFDS builder that all data sets share: decoded squares in an array_record cache.

A cache is one folder `<cache_dir>/<fingerprint>/<data set>/<config>/<version>/`. TFDS writes it
under a temporary name and renames it when it is whole, so whatever carries the final name is
whole. Beside the images lies `index.json`: the metadata of every example in the order of the
records, and the report of the build.

TensorFlow is not needed, which rules out two parts of TFDS: its image feature (encoding), and its
shuffling writer, which turns to `tf.io.gfile` once a split is larger than 1 GB.
"""

import abc
import contextlib
import dataclasses
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from medadv_jax.config import Config
from medadv_jax.errors import UserError

IMAGE_VERSION = "1.1.0"  # raise it when the same files give other pixels, or the index other fields
INDEX_FILE = "index.json"
METADATA_FIELDS = ("id", "label", "group", "magnification", "source_split", "md5", "subtype")
# TFDS reads all its splits as "all" and so reserves the name: the one split is stored as "images".
_STORED_SPLIT = "images"
_TEXTS = ("id", "group", "source_split", "md5", "subtype")
_IMAGES_PER_SHARD = 4096
_IMAGES_PER_WRITE = 128  # TFDS rewrites the split's metadata after every write


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """The fields of `config.data` that decide about images; see configs/default.py."""

    name: str
    dir: str
    cache_dir: str
    image_size: int
    fit: str
    phantom_kind: str
    phantom_images: int
    phantom_seed: int

    @classmethod
    def from_config(cls, data_config: Config) -> "DataSettings":
        """Takes these fields out of `config.data`, which has more."""
        values: dict[str, Any] = data_config.to_dict()
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})

    @property
    def cache_folder(self) -> Path:
        """The folder of all caches, ~ expanded."""
        return Path(self.cache_dir).expanduser()


@dataclasses.dataclass(eq=False)
class ImageConfig(tfds.core.BuilderConfig):
    """What the cached images depend on, beside the version."""

    image_size: int = 224  # pixels, height = width
    fit: str = "crop"  # a key of data.images.FITS; "" where images are drawn, not read
    source: str = ""  # folder of the images; "" where they are drawn


@dataclasses.dataclass(frozen=True)
class Plan:
    """What would be built, known without decoding anything."""

    config: ImageConfig
    facts: object  # whatever else the images depend on; JSON can hold it
    count: int  # images before damaged ones are left out


class CachedBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes what `records` yields into the cache, one split; subclasses say what that is."""

    VERSION = tfds.core.Version(IMAGE_VERSION)
    CLASS_NAMES: ClassVar[tuple[str, str]]  # negative, positive
    DESCRIPTION = ""
    HOMEPAGE = ""
    CITATION = ""
    advance: Callable[[int], None] = staticmethod(lambda images: None)  # told what is written

    @classmethod
    @abc.abstractmethod
    def plan(cls, settings: DataSettings) -> Plan:
        """Says what would be built; raises UserError when there are no images to be had."""

    @abc.abstractmethod
    def records(self, report: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yields the examples and fills in the report.

        Args:
          report: holds the keys of `empty_report`; complete when the iterator is exhausted.

        Yields:
          dicts of `image` (S, S, 3) uint8 and METADATA_FIELDS.
        """

    @property
    def image_config(self) -> ImageConfig:
        """The config this builder was made with."""
        assert isinstance(self.builder_config, ImageConfig)
        return self.builder_config

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.image_config.image_size
        image = tfds.features.Tensor(shape=(size, size, 3), dtype=np.uint8, encoding="bytes")
        text = {name: tfds.features.Text() for name in _TEXTS}
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
        """Yields (position, example); writes the index into the unfinished cache at the end."""
        index: dict[str, list[Any]] = {name: [] for name in METADATA_FIELDS}
        for position, record in enumerate(self.records(report)):
            for name, column in index.items():
                column.append(record[name])
            yield position, record
            self.advance(1)
        content = json.dumps({"examples": index, "report": report}, ensure_ascii=False)
        (Path(self.data_dir) / INDEX_FILE).write_text(content, encoding="utf-8")

    def _download_and_prepare(self, dl_manager: tfds.download.DownloadManager, download_config):
        """Streams the examples to disk in their order, instead of TFDS's shuffling in memory."""
        info = self._info()  # a new one, since self.info already points at the final folder
        writer = tfds.core.SequentialWriter(info, _IMAGES_PER_SHARD, file_format="array_record")
        writer.initialize_splits([_STORED_SPLIT])
        examples = self._split_generators(dl_manager)[_STORED_SPLIT]
        while batch := [example for _, example in islice(examples, _IMAGES_PER_WRITE)]:
            writer.add_examples({_STORED_SPLIT: batch})
        writer.close_all()
        self.info.set_splits(info.splits)


def empty_report() -> dict[str, Any]:
    """The report of a build before it starts.

    files_listed: number of files (or drawn images) before anything is left out.
    rejected: [{file, reason}] left out because nothing can be made of them.
    dropped: [{reason, count, first}] left out on purpose, with the first few files.
    names_unparsed: number of files whose name is off the data set's grammar.
    notes: lines for people.
    """
    return {"files_listed": 0, "rejected": [], "dropped": [], "names_unparsed": 0, "notes": []}


def _fingerprint(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def prepare(
    builder_class: type[CachedBuilder],
    plan: Plan,
    cache_dir: Path,
    advance: Callable[[int], None] = lambda images: None,
) -> tuple[Any, dict[str, Any]]:
    """Builds the cache unless it is there, and opens it.

    Args:
      builder_class: the data set.
      plan: what its `plan` returned.
      cache_dir: the folder of all caches.
      advance: told the number of images written.

    Returns:
      TFDS' random-access source of dicts as `CachedBuilder.records` yields them, and the content of
      the index: `examples` (a column for each of METADATA_FIELDS) and `report`.

    Raises:
      UserError: the cache cannot be written, or what `records` raises.
    """
    root = cache_dir / _fingerprint(plan.facts)
    builder = _builder(builder_class, plan.config, root)
    folder = Path(builder.data_dir)
    if folder.exists() and not (folder / INDEX_FILE).exists():
        logging.warning("%s has no %s: built anew", folder, INDEX_FILE)
        shutil.rmtree(folder)
    if not folder.exists():
        logging.info("Decoding to %d pixels into %s", plan.config.image_size, folder)
        builder = _builder(builder_class, plan.config, root)
        builder.advance = advance
        _build(builder, folder)
        builder = _builder(builder_class, plan.config, root)
    open_source: Any = builder.as_data_source  # decorated in a way that hides its arguments
    try:
        return open_source("all"), json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    except (ValueError, RuntimeError) as error:  # not JSON, no records
        raise UserError(
            f"config.data.cache_dir: {folder} is damaged; delete it, and it is made anew"
        ) from error


def _builder(builder_class: Any, config: ImageConfig, cache_dir: Path) -> CachedBuilder:
    # TFDS warns of every config that is not listed in the class; ours cannot be.
    with _quiet_absl():
        return builder_class(data_dir=cache_dir, config=config, file_format="array_record")


def _build(builder: CachedBuilder, folder: Path) -> None:
    settings = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        # TFDS prints that it downloads something, which is not so.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_config=settings)
    except OSError as error:
        # Renaming onto a folder that is not empty fails: another process was first. Its cache is
        # of the same files and just as good.
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
