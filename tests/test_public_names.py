"""The public names of the packages: there, documented, and cheap until they are used."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ["data_pipelines", "unimp_jax", "experiments"]


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_there_and_documented(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert name in (module.__doc__ or "")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_the_package_imports_nothing_heavy(package: str) -> None:
    heavy = {"numpy", "polars", "tensorflow_datasets", "jax", "flax", "pydantic"}
    code = f"import sys, {package}; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
