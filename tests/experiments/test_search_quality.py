"""What a person who searches for comedies and dramas gets: comedies and dramas."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from data_pipelines.prepare import prepare
from experiments.config import DataConfig
from experiments.evals.config import GenerateConfig
from experiments.presets import PRESETS
from experiments.request import Request
from experiments.session import TrainedRun
from experiments.train import train_run

USERS, WANTED = 20, 8


@pytest.mark.slow
@pytest.mark.parametrize("query", ["Comedy, Drama", "horror"])
def test_most_of_what_is_found_fits_the_query(trained: TrainedRun, query: str) -> None:
    corpus = trained.data.corpus
    categories = dict(zip(corpus.item_ids, corpus.categories, strict=True))
    asked = {name.strip().casefold() for name in query.split(",")}
    for user in corpus.user_ids[:USERS]:
        found = trained.answer(Request(user=user, query=query, task="search"), GenerateConfig(task="search"))["items"]
        fitting = [asked <= {name.casefold() for name in categories[one["item"]]} for one in found]
        assert len(fitting) == 10
        assert sum(fitting) >= WANTED, f"user {user}: {[one['title'] for one in found]}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """`tiny` on the embedded films, without images."""
    folder: Path = tmp_path_factory.mktemp("search")
    prepare("movielens_small", folder / "data")
    preset = PRESETS["tiny"]
    config = dataclasses.replace(
        preset,
        data=DataConfig("movielens_small", folder / "data"),
        tasks=dataclasses.replace(preset.tasks, images=False),
        row_shape=dataclasses.replace(preset.row_shape, images=0),
    )
    train_run(config, folder / "run")
    return TrainedRun(folder / "run")
