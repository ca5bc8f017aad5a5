"""Standings from evaluated cells: who is ahead, what is lost is said first, and finished cells are not run again."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from data_pipelines.errors import DataError
from experiments.baselines.sasrec import SASRecConfig
from experiments.leaderboard import command
from experiments.leaderboard.board import BenchmarkResult, Standing, page, read_board, standings, write_board
from experiments.leaderboard.board import standing as standing_of
from experiments.leaderboard.command import (
    BENCHMARKS,
    Benchmark,
    LeaderboardConfig,
    experiment_of,
    leaderboard_command,
    run_cell,
)
from experiments.report.compare import paired_values
from experiments.results import Row, TaskTable
from tests.experiments.tiny_run import experiment, prepare_source
from unimp_jax.evaluation.bootstrap import Difference, Interval


def standing(task: str, ours: float, rival: float, p_value: float, larger: bool = True) -> Standing:
    name = "NDCG@10" if larger else "RMSE"
    entrants = [Row(model, {name: Interval(x, x - 0.01, x + 0.01)}) for model, x in (("UniMP", ours), ("R", rival))]
    difference = Difference(ours - rival, ours - rival - 0.01, ours - rival + 0.01, p_value)
    return Standing("D", task, name, 9, larger, (entrants[0],), (entrants[1],), difference)


def test_verdicts_know_which_way_is_better_and_what_chance_is() -> None:
    assert standing("search", 0.6, 0.5, 0.01).verdict == "won"
    assert standing("search", 0.5, 0.6, 0.01).verdict == "lost"
    assert standing("search", 0.6, 0.5, 0.2).verdict == "level"
    assert standing("rating", 0.9, 1.0, 0.01, larger=False).verdict == "won"
    assert standing("rating", 1.0, 0.9, 0.01, larger=False).verdict == "lost"


def test_losses_come_first_and_the_best_of_a_column_is_bold_whoever_has_it() -> None:
    found = [standing("search", 0.6, 0.5, 0.01), standing("rating", 1.0, 0.9, 0.01, larger=False)]
    text = page({"D": BenchmarkResult((0,), (10.0,), tuple(found))})
    assert "**1 won, 0 level, 1 lost.**" in text
    assert text.index("| lost | D | rating") < text.index("| won | D | search")
    assert "| R | **0.9000 [0.8900, 0.9100]** |" in text
    assert "| UniMP | **0.6000 [0.5900, 0.6100]** |" in text
    assert "| UniMP | 1.0000 [0.9900, 1.0100] |" in text


def test_a_saved_board_is_read_back_and_another_file_is_refused(tmp_path: Path) -> None:
    lost = standing("rating", 1.0, 0.9, 0.01, larger=False)
    unbounded = dataclasses.replace(lost, ours=(Row("UniMP", {"RMSE": Interval(1.0, math.nan, math.nan)}),))
    board = {"D": BenchmarkResult((0, 2), (10.0, 11.0), (lost,))}
    write_board(tmp_path / "board.json", board)
    assert read_board(tmp_path / "board.json") == board
    assert '"verdict": "lost"' in (tmp_path / "board.json").read_text(encoding="utf-8")
    write_board(tmp_path / "board.json", {"D": BenchmarkResult((0,), (10.0,), (unbounded,))})
    assert "[no interval]" in page(read_board(tmp_path / "board.json"))
    assert read_board(tmp_path / "none.json") == {}
    (tmp_path / "other.json").write_text('{"standings": [1]}')
    with pytest.raises(DataError, match="is not a leaderboard"):
        read_board(tmp_path / "other.json")


def test_a_cell_is_its_preset_on_its_data_with_its_seed(tmp_path: Path) -> None:
    config = experiment_of(BENCHMARKS["sports"], 2, tmp_path)
    assert (config.data.source, config.data.folder, config.seed) == ("sports", tmp_path, 2)


def test_an_evaluated_cell_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "test.json").write_text("{}")

    def refuse(*_: object) -> None:
        raise AssertionError("it is trained again")

    monkeypatch.setattr(command, "train_run", refuse)
    assert not run_cell(tmp_path, BENCHMARKS["beauty"], 0, tmp_path)


@pytest.mark.parametrize(
    ("task", "columns", "metric"), [("selection", ("hits", "chosen", "right"), "F1"), ("search", ("HR@10",), "HR@10")]
)
def test_a_rival_that_one_seed_lacks_is_not_compared(task: str, columns: tuple[str, ...], metric: str) -> None:
    def run(*models: str) -> Any:
        rows = {f"{model}: {column}": [1.0, 2.0, 2.0] for model in models for column in columns}
        answers = pa.table({"user": ["a", "b", "c"], "item": ["x", "y", "z"], **rows})
        table = TaskTable(task, 3, True, tuple(Row(model, {metric: Interval(1, 1, 1)}) for model in models), "")
        return SimpleNamespace(answers={task: answers}, evaluation=SimpleNamespace(tables=(table,)))

    runs = [run("UniMP", "R", "S"), run("UniMP", "S")]
    found = standing_of("D", runs, runs[0].evaluation.tables[0], metric)
    assert [row.model for row in (*found.ours, *found.rivals)] == ["UniMP", "S"]
    assert paired_values(runs, task, "R", [metric])[0] == {}


@pytest.mark.parametrize("seeds", [1, 3])
def test_one_user_decides_nothing_and_a_model_read_for_no_common_user_is_left_out(seeds: int) -> None:
    def run(seed: int) -> Any:
        values = {"UniMP": [0.5], "R": [0.25], "unread": [float(seed) if seed == 0 else None]}
        columns = {f"{model}: HR@10": pa.array(column, pa.float64()) for model, column in values.items()}
        answers = pa.table({"user": ["a"], "item": ["x"], **columns})
        rows = tuple(Row(model, {"HR@10": Interval(1, math.nan, math.nan)}) for model in values)
        table = TaskTable("search", 1, True, rows, "")
        return SimpleNamespace(answers={"search": answers}, evaluation=SimpleNamespace(tables=(table,)))

    runs = [run(seed) for seed in range(seeds)]
    found = standing_of("D", runs, runs[0].evaluation.tables[0], "HR@10")
    assert found.verdict == "level"
    assert found.difference is not None
    assert (found.difference.mean, found.difference.p_value) == (0.25, 1.0)
    assert ("unread" in [row.model for row in found.rivals]) == (seeds == 1)
    assert "| level | D | search | HR@10 | 0.5000 [no interval] |" in page(
        {"D": BenchmarkResult((0,), (1.0,), (found,))}
    )


def test_unknown_data_sets_equal_seeds_and_nothing_to_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="movielens-small"):
        LeaderboardConfig(benchmarks=("movielens",))
    with pytest.raises(ValueError, match="give one or more different seeds"):
        LeaderboardConfig(seeds=(1, 1))
    with pytest.raises(DataError, match="no evaluated run"):
        leaderboard_command(tmp_path, LeaderboardConfig(), tmp_path / "L.md", read_only=True)


@pytest.mark.slow
def test_cells_are_trained_evaluated_and_shown_beside_every_rival(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = experiment(prepare_source(tmp_path / "prepared"), steps=4)
    monkeypatch.setitem(
        BENCHMARKS, "beauty", Benchmark("A few films", prepared.data.source, "beauty", SASRecConfig(seconds=2.0))
    )
    monkeypatch.setitem(command.PRESETS, "beauty", prepared)
    config = LeaderboardConfig(("beauty",), (0, 1), prepared.data.folder)
    page, again = tmp_path / "L.md", tmp_path / "again.md"
    leaderboard_command(tmp_path / "runs", config, page)
    text = page.read_text(encoding="utf-8")
    for name in ("UniMP", "Markov", "item-kNN", "SASRec", "eSASRec", "HSTU", "Markov + query", "biased factorisation"):
        assert f"| {name} |" in text
    found = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert {one["task"] for one in found["A few films"]["standings"]} >= {
        "recommendation",
        "search",
        "selection",
        "rating",
    }
    assert len(found["A few films"]["seconds"]) == 2
    leaderboard_command(tmp_path / "runs", config, again, read_only=True)
    assert again.read_text(encoding="utf-8") == text


def test_a_task_that_one_seed_was_not_asked_is_not_on_the_page() -> None:
    def run(*tasks: str) -> Any:
        table = {task: TaskTable(task, 2, True, (Row("UniMP", {"F1": Interval(1, 1, 1)}),), "") for task in tasks}
        answers = {task: pa.table({"user": ["a", "b"], "UniMP: F1": [1.0, 1.0]}) for task in tasks}
        return SimpleNamespace(answers=answers, evaluation=SimpleNamespace(tables=tuple(table.values())))

    assert standings("D", [run("selection"), run()]) == []
