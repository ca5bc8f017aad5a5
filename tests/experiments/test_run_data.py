"""The data of a run is its data, wherever the run is opened; and what it cannot train on is found before it begins."""

import dataclasses
import json
import shutil

import pytest

from data_pipelines.errors import DataError
from data_pipelines.fingerprint import DATA_PARTS, FILE
from data_pipelines.loader import LoaderConfig
from data_pipelines.prepare import prepare
from data_pipelines.tasks.examples import RowShape
from data_pipelines.tasks.queries import QueryConfig
from experiments.config import DataConfig
from experiments.data import load_records
from experiments.run import open_model, open_to_ask
from experiments.train import open_run, train_run
from tests.experiments.tiny_run import experiment, prepare_source, write_source
from unimp_jax.sharding import MeshConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_source(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """As far as a run is made before it is compiled."""
    folder = tmp_path_factory.mktemp("run") / "run"
    open_run(experiment(data), folder)
    return folder


@pytest.fixture(scope="module")
def fewer_users(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fewer")
    prepare("movielens_small", folder / "data", write_source(folder / "source", users=37))
    return folder / "data"


@pytest.fixture(scope="module")
def reordered_items(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reordered")
    file = write_source(folder / "source") / "movielens-small" / "items.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[1], lines[0], *lines[2:]]))
    prepare("movielens_small", folder / "data", folder / "source")
    return folder / "data"


def test_a_run_says_what_it_is_trained_on(run, data):
    written = json.loads((run / FILE).read_text())
    assert tuple(written) == DATA_PARTS
    assert (written["users"][0], written["items"][0], written["images"][0]) == (40, 30, 29)
    before = (run / FILE).read_bytes()
    open_run(experiment(data), run)
    assert (run / FILE).read_bytes() == before


def test_it_does_not_go_on_with_other_data(run, fewer_users):
    with pytest.raises(
        DataError, match=r"not what this run was trained on .*: users 40, now 37; interactions \d+, now"
    ):
        open_run(experiment(fewer_users), run)


def test_it_is_not_examined_on_other_data(run, fewer_users, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["folder"] = str(fewer_users)
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"not what this run was trained on .*: users 40, now 37"):
        open_model(tmp_path / "run", "latest")


def test_other_users_can_ask_it_about_the_same_items(run, fewer_users, reordered_items):
    opened, _ = open_to_ask(run, "latest", records=fewer_users, mesh=MeshConfig(data=-1))
    assert opened.corpus.num_users == 37
    with pytest.raises(DataError, match=r"not what this run was trained on .*: 30 items with other values; prepare"):
        open_to_ask(run, "latest", records=reordered_items, mesh=MeshConfig(data=-1))


def test_a_run_from_before_is_taken_and_says_so_from_then_on(run, data, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / FILE).unlink()
    open_run(experiment(data), tmp_path / "run")
    assert (tmp_path / "run" / FILE).read_bytes() == (run / FILE).read_bytes()


def test_a_source_that_is_prepared_again_lends_no_item_the_image_of_another(reordered_items, tmp_path):
    records = load_records(DataConfig("movielens_small", prepare_source(tmp_path)))
    shutil.rmtree(tmp_path / "data")
    shutil.copytree(reordered_items, tmp_path / "data")
    with pytest.raises(DataError, match="was prepared again, with other items, while it was read"):
        records.read_image(0)
    assert records.read_image(2) == load_records(DataConfig("movielens_small", reordered_items)).read_image(2)


def test_another_configuration_is_reported_before_other_data(run, fewer_users):
    with pytest.raises(DataError, match=r"another configuration .*seed: 0, now 1"):
        open_run(experiment(fewer_users, seed=1), run)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"row_shape": RowShape(128, 2, 64)},
            r"a selection question does not fit: row_shape.images is 2 and must be at least 3",
        ),
        (
            {"queries": QueryConfig({"recommendation": 0, "search": 0, "rating": 0, "selection": 0})},
            "weights must be 0 or more, and at least one above 0",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_found_before_the_run_is_made(data, tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        open_run(experiment(data, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rows_that_the_devices_do_not_divide_are_refused_before_the_run_is_made(data, tmp_path):
    with pytest.raises(ValueError, match="a batch of 9 rows is not a multiple of 8"):
        train_run(experiment(data, loader=LoaderConfig(batch_size=9, block_examples=64)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_left_out_is_reported_once_at_the_start(tmp_path):
    source = write_source(tmp_path / "source", items=30)
    file = source / "movielens-small" / "users.jsonl"
    users = [json.loads(line) for line in file.read_text().splitlines()]
    for user in users:
        user["events"] = [{**event, "item_id": 1 + event["item_id"] % 2} for event in user["events"]]
    file.write_text("".join(json.dumps(user) + "\n" for user in users))
    (source / "movielens-small" / "items.jsonl").write_text(
        "".join(json.dumps({"item_id": n, "title": "x y" * 90, "year": 1990, "genres": []}) + "\n" for n in (1, 2))
    )
    prepare("movielens_small", tmp_path / "data", source)
    config = experiment(tmp_path / "data")
    config = dataclasses.replace(config, row_shape=RowShape(40, 8, 64))
    opened, _ = open_run(config, tmp_path / "run")
    assert opened.check_training()[:2] == [
        "search is left out: no item has categories; --queries.mix.search 0 leaves it out without this notice",
        "selection is left out: it needs 3 items, but the catalogue has 2; --queries.mix.selection 0 leaves it out "
        "without this notice",
    ]
