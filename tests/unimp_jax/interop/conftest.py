"""What tests of imports share."""

from pathlib import Path

import pytest

from tests.unimp_jax.interop.small_llama import write_llama


@pytest.fixture(scope="session")
def sound(tmp_path_factory) -> Path:
    """A language model in two shards, which nobody changes."""
    return write_llama(tmp_path_factory.mktemp("sound") / "llama")
