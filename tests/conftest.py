"""Two virtual devices, so that sharding is really run; strict promotion, so that none is silent.

Tests compile much and compute little, so the compiler is told not to try hard.
"""

import os

os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("NO_GCE_CHECK", "true")

from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def healthy():
    """See `formula_case.healthy_case`; imported here, as most tests do without it."""
    from tests.helpers import formula_case

    return formula_case.healthy_case()


@pytest.fixture(scope="session")
def real_data_dir() -> Path:
    """The folder of the public downloads: $MEDADV_DATA_DIR, else the one beside the project."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MEDADV_DATA_DIR", beside))
    if not folder.is_dir():
        pytest.skip(f"no real images: {folder} is missing; set MEDADV_DATA_DIR")
    return folder
