"""Sources by name."""

import pytest

from data_pipelines.errors import DataError
from data_pipelines.sources.movielens import (
    Movielens1m,
)
from data_pipelines.sources.registry import SOURCES, find_source


def test_sources_are_found_by_name_and_a_wrong_name_by_its_nearest() -> None:
    assert {"amazon_2023_sample", "hm", "movielens_1m", "movielens_small", "netflix", "sequences"} <= set(SOURCES)
    assert find_source("movielens_1m") is Movielens1m
    with pytest.raises(DataError, match=r"there is no source 'movielens_smal'; did you mean 'movielens_small'\?"):
        find_source("movielens_smal")
