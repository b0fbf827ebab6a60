"""What all tests share."""

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def ray_ends_with_the_module() -> Iterator[None]:
    """Building an RLlib algorithm starts Ray, and the next module's tests should not find it running."""
    yield
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        sys.modules["ray"].shutdown()
