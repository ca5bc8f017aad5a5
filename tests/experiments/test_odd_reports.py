"""Reports of runs whose data, answers or logs are not what they were."""

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.errors import DataError
from data_pipelines.fingerprint import FILE, save_fingerprint
from data_pipelines.prepare import prepare
from experiments.config import DataConfig, save_config
from experiments.data import fingerprint_of, load_records
from experiments.evals.base import OURS
from experiments.report import write_report
from experiments.report.compare import compare
from experiments.report.runs import read_groups
from experiments.results import load_evaluation
from tests.experiments.report_runs import with_seed, write_run
from tests.experiments.tiny_run import experiment, prepare_source, write_source
from unimp_jax.training.log import read_log


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_source(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def fewer_items(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fewer")
    prepare("movielens_small", folder / "data", write_source(folder / "source", items=12))
    return folder / "data"


@pytest.fixture(scope="module")
def records(data):
    return load_records(DataConfig("movielens_small", data))


@pytest.fixture(scope="module")
def base(data):
    return experiment(data)


@pytest.mark.parametrize("known", [True, False])
def test_items_of_other_data_are_not_shown(base, records, fewer_items, tmp_path, known):
    """The source was prepared anew, with fewer items; also where the run is from before data had fingerprints."""
    run = write_run(tmp_path / "run", base, records)
    if known:
        save_fingerprint(run / FILE, fingerprint_of(records, base))
    moved = dataclasses.replace(base, data=dataclasses.replace(base.data, folder=fewer_items))
    save_config(moved, run / "config.json")
    said = "items 30, now 12" if known else "this source has 12 items"
    with pytest.raises(DataError, match=f"^the data is not what .*{said}"):
        write_report([run])
    page = write_report([run], out=tmp_path / "out").read_text(encoding="utf-8")
    assert "No users are shown: the data is not what" in page


def test_runs_with_damaged_answers_are_listed(base, records, tmp_path):
    write_run(tmp_path / "whole", base, records)
    runs = {name: write_run(tmp_path / name, with_seed(base, 5), records) for name in ("cut", "else")}
    file = runs["cut"] / "evaluation" / "test-selection.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    pq.write_table(pa.table({"codes": [1]}), runs["else"] / "evaluation" / "test-selection.parquet")
    (groups,), left_out = read_groups([tmp_path], "test")
    assert [run.folder.name for group in groups for run in group.runs] == ["whole"]
    reason = "test-selection.parquet is missing or damaged; run `unimp evaluate` on this run again"
    assert [(Path(one.name).name, one.reason) for one in left_out] == [("cut", reason), ("else", reason)]


def test_a_metric_that_one_run_lacks_is_compared_in_none(base, records, tmp_path):
    """As METEOR, where one of two machines has no WordNet."""
    folders = [write_run(tmp_path / f"run-{seed}", with_seed(base, seed), records) for seed in (0, 1)]
    file = folders[1] / "evaluation" / "test-recommendation.parquet"
    pq.write_table(pq.read_table(file).drop_columns([f"{OURS}: HR@10"]), file)
    ((group,),), _ = read_groups([tmp_path], "test")
    line = compare([group])[0].lines[0]
    assert line.name == "run"
    assert "HR@10" not in line.metrics
    assert "NDCG@10" in line.metrics
    assert write_report([tmp_path]).exists()


def test_a_log_is_read_up_to_what_a_crash_left_of_it(tmp_path):
    lines = [json.dumps({"step": step, "kind": "train"}).encode() for step in (1, 2)]
    for rest in (b"", lines[0][:9], b"\x00" * 64, b"\xff\xfe{", "\u2028".encode(), b"5", b"{}"):
        (tmp_path / "log").write_bytes(b"\n".join([*lines, rest]))
        assert [line["step"] for line in read_log(tmp_path / "log")] == [1, 2]


def test_a_table_without_rows_is_no_evaluation(tmp_path):
    table = {"task": "search", "users": 1, "larger_is_better": True, "rows": []}
    told = {"source": "x", "split": "test", "step": 1, "tables": [table], "samples": []}
    (tmp_path / "test.json").write_text(json.dumps(told))
    with pytest.raises(DataError, match=r"test\.json is not an evaluation: .*the table of search has no rows"):
        load_evaluation(tmp_path / "test.json")
