"""The public names of the package: there, documented, and cheap until they are used."""

import subprocess
import sys
from pathlib import Path

import pytest

import data_pipelines


def test_public_names_are_there_and_documented() -> None:
    for name in data_pipelines.__all__:
        assert getattr(data_pipelines, name) is not None
        assert name in (data_pipelines.__doc__ or "")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = data_pipelines.nothing


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, data_pipelines; sys.exit(bool({'numpy', 'polars', 'tensorflow_datasets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
