"""The command line: every field an option, every mistake a line."""

import sys

import pytest

from data_pipelines.sources import SOURCES
from experiments import cli
from experiments.commands import COMMANDS, PRESETS


def run(monkeypatch, capsys, *arguments: str) -> tuple[int | str | None, str]:
    """(what the process would exit with, all that was printed)."""
    monkeypatch.setattr(sys, "argv", ["unimp", *arguments])
    monkeypatch.setattr(cli, "use_all_cores", lambda: None)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed = capsys.readouterr()
    return stopped.value.code, printed.out + printed.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(monkeypatch, capsys, command):
    code, text = run(monkeypatch, capsys, command, "--help")
    assert code == 0
    assert "usage: unimp" in text


@pytest.mark.parametrize("preset", PRESETS)
def test_every_field_of_every_preset_is_an_option(monkeypatch, capsys, preset):
    _, text = run(monkeypatch, capsys, "train", preset, "--help")
    for option in ("--model.decoder.layers", "--optimizer.learning-rate", "--mesh.fsdp", "--tasks.loss-weights.search"):
        assert option in text


def test_prepare_names_all_sources(monkeypatch, capsys):
    _, text = run(monkeypatch, capsys, "prepare", "--help")
    words = "".join(character if character.isalnum() or character == "_" else " " for character in text).split()
    assert set(SOURCES) <= set(words)


def test_a_wrong_name_is_refused_with_the_nearest_right_one(monkeypatch, capsys):
    code, text = run(monkeypatch, capsys, "train", "tiny", "--optimiser.learning-rat", "1")
    assert code == 2
    assert "--optimizer.learning-rate" in text


def test_a_wrong_value_is_refused_with_the_right_ones(monkeypatch, capsys):
    code, text = run(monkeypatch, capsys, "train", "tiny", "--tasks.history-targets", "next-item")
    assert code == 2
    assert "next_item" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "movielens_smal"], "did you mean 'movielens_small'"),
        (["prepare", "movielens_1m", "--source-dir", "nowhere"], "nowhere is not a folder"),
        (["prepare", "hm", "--fetch-images", "True"], "hm does not know --fetch-images"),
        (["prepare", "hm"], "articles.csv, the articles, is needed in the folder that --source-dir names"),
        (["train", "tiny", "--data.folder", "nowhere"], "run `unimp prepare movielens_small"),
        (["evaluate", "nowhere"], "is nowhere the folder of a run?"),
        (["report", "nowhere"], "is nowhere the folder of a run?"),
        (["ids", "nowhere", "ids.parquet"], "is nowhere the folder of a run?"),
    ],
)
def test_mistakes_are_told_in_one_line(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, text = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert text.startswith("unimp: ")
    assert message in text
    assert text.count("\n") == 1
