"""Damaged files of every source end in records or in one line that names the file (see `fuzz`)."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.corpus import build_corpus
from data_pipelines.errors import DataError
from data_pipelines.prepare import prepare
from data_pipelines.records import read_items, read_users
from data_pipelines.sources.registry import SOURCES
from data_pipelines.sources.selection import SourceSelection
from tests.data_pipelines import fuzz

ROUNDS = 5
COUNT = 2000


def test_every_source_is_among_them_and_its_files_are_good(tmp_path: Path) -> None:
    assert {source for source, _ in fuzz.SEEDS} == set(SOURCES)
    for number, (source, build) in enumerate(fuzz.SEEDS):
        build(tmp_path / str(number))
        selection = SourceSelection(user_core=1, item_core=1) if source in fuzz.CORED else SourceSelection()
        prepared = prepare(source, tmp_path / "data", tmp_path / str(number), selection=selection)
        assert prepared.interactions >= 3
        assert build_corpus(read_items(source, tmp_path / "data"), read_users(source, tmp_path / "data")).num_users


@pytest.mark.parametrize("number", range(len(fuzz.SEEDS)), ids=lambda number: f"{fuzz.SEEDS[number][0]}-{number}")
def test_damaged_files_end_in_records_or_in_one_line(number: int, tmp_path: Path) -> None:
    for place in range(ROUNDS):
        (tmp_path / str(place)).mkdir()
        _, found = fuzz.outcome(number + len(fuzz.SEEDS) * place, tmp_path / str(place))
        assert found in ("records", "refused"), f"mutation {number + len(fuzz.SEEDS) * place}"


@pytest.mark.slow
def test_two_thousand_damaged_folders() -> None:
    command = [sys.executable, "-m", "tests.data_pipelines.fuzz", "--count", str(COUNT)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == f"{COUNT} in all, 0 wrong"


def test_damage_is_by_the_seed_and_damages(tmp_path: Path) -> None:
    texts = []
    for place in ("a", "b", "c"):
        fuzz.SEEDS[0][1](tmp_path / place)
        good = {path.name: path.read_bytes() for path in (tmp_path / place).rglob("*") if path.is_file()}
        fuzz.damage(tmp_path / place, random.Random("c" if place == "c" else "a"))
        bad = {path.name: path.read_bytes() for path in (tmp_path / place).rglob("*") if path.is_file()}
        assert bad != good
        texts.append(bad)
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (DataError("items.jsonl line 1: wrong"), "refused"),
        (DataError("wrong"), "it names no file: wrong"),
        (DataError("{files} could not be read (x)"), "nobody foresaw it: "),
        (DataError("data: records could not be written (x); nothing was saved"), "nobody foresaw it: data"),
        (ValueError("two\nlines"), "ValueError: two\nlines"),
        (SystemExit(1), "SystemExit: 1"),
        (fuzz.TooLong(), "it took more than 20 s"),
    ],
)
def test_what_is_no_right_end_is_reported(
    error: BaseException, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(*_: object) -> None:
        raise type(error)(*(str(part).format(files=tmp_path / "files") for part in error.args))

    monkeypatch.setattr(fuzz, "prepare", ends)
    assert fuzz.outcome(0, tmp_path)[1].startswith(wrong)


def test_a_batch_is_reported_as_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fuzz", "--first", "7", "--count", "1"])
    monkeypatch.setattr(fuzz, "outcome", lambda number, folder: ("hm", f"{number} {folder.is_dir()}"))
    fuzz.main()
    assert json.loads(capsys.readouterr().out) == [[7, "hm", "7 True"]]
