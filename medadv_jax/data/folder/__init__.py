"""Any folder of images, or any table of them: the user's own data."""

from medadv_jax.data.folder.builder import ImageFolder

__all__ = ["ImageFolder"]
