"""The phantoms as a data set: generated instead of read, cached like the others."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from medadv_jax.data import phantoms
from medadv_jax.data.cache import CachedBuilder, CacheSpec, DataSettings, ImageConfig


@dataclasses.dataclass(eq=False)
class PhantomConfig(ImageConfig):
    """The arguments of `phantoms.generate`."""

    kind: str = "xray"  # xray | histology
    num_images: int = 0
    seed: int = 0


class Phantoms(CachedBuilder, skip_registration=True):
    """Generated stand-ins of both kinds; see `phantoms`."""

    name = "phantoms"
    CLASS_NAMES = ("negative", "positive")
    DESCRIPTION = "Drawn images that stand in for X-rays or histology; no real patient."

    @classmethod
    def cache_spec(cls, settings: DataSettings) -> CacheSpec:
        """See `CachedBuilder.cache_spec`."""
        arguments = {
            "kind": settings.phantom_kind,
            "num_images": settings.phantom_images,
            "seed": settings.phantom_seed,
        }
        size = settings.image_size
        config = PhantomConfig(name=f"drawn_{size}", image_size=size, fit="", **arguments)
        content = {**arguments, "version": phantoms.VERSION}
        return CacheSpec(config, content, settings.phantom_images, cls.CLASS_NAMES)

    def records(self, report: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """See `CachedBuilder.records`."""
        config = self.image_config
        assert isinstance(config, PhantomConfig)
        report["files_listed"] = config.num_images
        report["notes"].append("drawn images: no number from them says anything about patients")
        yield from phantoms.generate(config.kind, config.num_images, config.image_size, config.seed)
