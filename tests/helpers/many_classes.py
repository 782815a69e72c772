"""A data set of three classes for tests, in place of the phantoms."""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from medadv_jax.data.cache import CacheSpec, DataSettings
from medadv_jax.data.phantoms.builder import Phantoms

NAMES = ("<b>bold</b>", "costs $5 and $6", "plain_text")  # data, no markup and no formula


class ThreeClasses(Phantoms, skip_registration=True):
    """Images whose class is their brightest channel; each patient has two."""

    CLASS_NAMES = NAMES

    @classmethod
    def cache_spec(cls, settings: DataSettings) -> CacheSpec:
        """See `CachedBuilder.cache_spec`."""
        spec = super().cache_spec(settings)
        return dataclasses.replace(spec, content=["three classes", spec.content])

    def records(self, report: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """See `CachedBuilder.records`."""
        size, rng = self.image_config.image_size, np.random.default_rng(0)
        for i in range(self.image_config.num_images):  # pyright: ignore
            label = i % 3
            image = rng.integers(60, 190, (size, size, 3))
            image[..., label] += 12
            image = image.astype(np.uint8)
            yield {
                "image": image, "label": label, "id": f"image-{i:03d}",
                "group": f"patient-{label}-{i // 6}", "magnification": 0, "source_split": "",
                "md5": hashlib.md5(image.tobytes()).hexdigest(), "subtype": "",
            }  # fmt: skip
