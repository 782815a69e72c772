"""Opens a data set by its name and yields batches of uint8 images on the host.

dataset = load_dataset(config.data)
for batch in make_loader(dataset, indices, 32, shuffle_seed=config.seed, epoch=0):
    batch["image"]  # (32, S, S, 3) uint8
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import grain
import numpy as np

from medadv_jax.config import Config
from medadv_jax.data import DATASETS
from medadv_jax.data.cache import CachedBuilder, DataSettings, open_cache
from medadv_jax.data.images import FITS
from medadv_jax.data.splits import Example
from medadv_jax.errors import UserError

_READ_THREADS = 2  # each reads whole batches; reading is far faster than any training step
_BATCHES_AHEAD = 4  # read before they are asked for


class Batch(TypedDict):
    """A batch of fixed shape; rows with mask 0 repeat rows with mask 1."""

    image: np.ndarray  # (B, S, S, 3) uint8
    label: np.ndarray  # (B,) int32; with several labels an image (B, L), 0 or 1
    index: np.ndarray  # (B,) int32, position in Dataset.examples
    mask: np.ndarray  # (B,) float32, 1 = counts


class ImageSource:
    """Random access to the cached images: `source[i]` is image i, (S, S, 3) uint8."""

    def __init__(self, records: Any, folder: Path):
        self._records, self._folder = records, folder

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> np.ndarray:
        try:
            return self._records[index]["image"]
        except Exception as error:  # the file is truncated, or its checksum is wrong
            raise _damaged_cache(self._folder, error) from error


def _damaged_cache(folder: Path, error: object) -> UserError:
    reason = " ".join(str(error).split())[:120]
    return UserError(
        f"config.data.cache_dir: {folder} is damaged ({reason}); delete it, and the images are"
        " decoded anew"
    )


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set at the target image size; `source[i]` is the image of `examples[i]`."""

    name: str
    class_names: tuple[str, ...]  # of label 0, 1, …; with two classes negative, positive
    examples: tuple[Example, ...]
    report: dict[str, Any]  # of the cache's build; see data.cache.empty_report
    source: Sequence[np.ndarray] | ImageSource
    multi_label: bool = False  # an image has any number of the classes, which its `findings` name

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """The labels of all examples, (N,) int32."""
        return np.array([example.label for example in self.examples], np.int32)

    @property
    def strata(self) -> tuple[str, ...]:
        """The names of the values of `labels`."""
        return ("no finding", "finding") if self.multi_label else self.class_names

    @functools.cached_property
    def targets(self) -> np.ndarray:
        """What a network learns: `labels`; with several an image (N, L) int32, 1 where it has l."""
        if not self.multi_label:
            return self.labels
        found = [example.attributes["findings"].split("|") for example in self.examples]
        return np.array([[name in each for name in self.class_names] for each in found], np.int32)


def load_dataset(
    data_config: Config, advance: Callable[[int], None] = lambda images: None
) -> Dataset:
    """Opens the data set of `config.data`; decodes it into the cache the first time.

    Args:
      data_config: `config.data`.
      advance: told the number of images decoded.

    Raises:
      UserError: an unknown name, a folder that is missing or holds something else, too many
        damaged files, or a failed download.
    """
    settings = DataSettings.from_config(data_config)
    builder_class = _builder_class(settings)
    spec = builder_class.cache_spec(settings)
    records, index = open_cache(builder_class, spec, settings.cache_folder, advance)
    columns = index["examples"]
    if len(records) != len(columns["id"]):
        reason = f"{len(records)} images, {len(columns['id'])} names"
        raise _damaged_cache(settings.cache_folder, reason)
    rows = zip(*columns.values(), strict=True)
    return Dataset(
        name=settings.name,
        class_names=spec.class_names,
        examples=tuple(Example(**dict(zip(columns, row, strict=True))) for row in rows),
        report=index["report"],
        source=ImageSource(records, settings.cache_folder),
        multi_label=builder_class.MULTI_LABEL,
    )


class Listing(NamedTuple):
    """What is known of a data set before its images are read.

    Attributes:
      count: images, damaged ones included.
      class_names: of label 0, 1, …
      multi_label: whether an image has any number of them.
    """

    count: int
    class_names: tuple[str, ...]
    multi_label: bool = False


def list_dataset(data_config: Config) -> Listing:
    """Lists the images of `config.data` without reading them.

    Raises:
      UserError: as `load_dataset`, except for damaged files.
    """
    settings = DataSettings.from_config(data_config)
    builder_class = _builder_class(settings)
    spec = builder_class.cache_spec(settings)
    return Listing(spec.count, spec.class_names, builder_class.MULTI_LABEL)


def _builder_class(settings: DataSettings) -> type[CachedBuilder]:
    choices = (("name", settings.name, DATASETS), ("fit", settings.fit, FITS))
    for field, value, known in choices:
        if value not in known:
            allowed = ", ".join(known)
            raise UserError(f"data.{field}: {value!r} is unknown; allowed: {allowed}")
    builder_class = DATASETS[settings.name]
    for field in ("csv", "classes", "group_pattern"):
        value = getattr(settings, field)
        if value and settings.name != "folder":
            raise UserError(f"config.data.{field}={value}: only config.data.name=folder reads it")
    if settings.labels != "class" and not builder_class.SUBTYPES:
        known = ", ".join(name for name, each in DATASETS.items() if each.SUBTYPES)
        raise UserError(
            f"config.data.labels={settings.labels}: {settings.name} has no subtypes; {known} have"
        )
    return builder_class


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Returns the number of batches of one pass; the last one may be padded."""
    return -(-num_examples // batch_size)


def make_loader(
    dataset: Dataset,
    indices: Sequence[int] | np.ndarray,
    batch_size: int,
    *,
    shuffle_seed: int | None,
    epoch: int = 0,
    part: tuple[int, int] = (0, 1),
    num_threads: int = _READ_THREADS,
) -> Iterator[Batch]:
    """Yields one pass over the given examples in batches of one shape, read ahead in threads.

    The last batch is padded by repeating its own examples in turn, with mask 0. Statistics over
    the batch then see images, not zeros.

    Args:
      dataset: the examples and their images.
      indices: positions in `dataset.examples`.
      batch_size: rows of every batch, even if there are fewer examples.
      shuffle_seed: the order depends on (shuffle_seed, epoch) alone; None keeps the given order.
      epoch: number of the pass.
      part: (i, n): yields only rows i·batch_size/n to (i + 1)·batch_size/n of each batch, for
        process i of n. n divides `batch_size`.
      num_threads: threads that read; 0 reads in the caller's thread, on demand.

    Yields:
      `steps_per_epoch(len(indices), batch_size)` batches of numpy arrays; see `Batch`.
    """
    positions = np.asarray(indices, np.int64)
    if not len(positions):
        return iter(())
    order = grain.MapDataset.source(positions.tolist())
    if shuffle_seed is not None:
        order = order.shuffle(seed=_epoch_seed(shuffle_seed, epoch))
    batches = order.batch(batch_size, drop_remainder=False)
    read = functools.partial(_read_batch, dataset, batch_size, part)
    options = grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=_BATCHES_AHEAD if num_threads else 0
    )
    return iter(batches.map(read).to_iter_dataset(options))


def _epoch_seed(seed: int, epoch: int) -> int:
    """Hashes the pair to 32 bits, so that (0, 1) and (1, 0) differ."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


def _read_batch(
    dataset: Dataset, batch_size: int, part: tuple[int, int], positions: np.ndarray
) -> Batch:
    mine = np.split(np.arange(batch_size), part[1])[part[0]]
    rows = positions[mine % len(positions)]
    images = [dataset.source[int(row)] for row in rows[: len(positions)]]
    order = np.arange(len(rows)) % len(images)
    return {
        "image": np.stack(images)[order] if len(images) < len(rows) else np.stack(images),
        "label": dataset.targets[rows],
        "index": rows.astype(np.int32),
        "mask": (mine < len(positions)).astype(np.float32),
    }
