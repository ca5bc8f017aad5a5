"""Rows of the log at Weights & Biases: offline, one run over restarts, and never what ends a training."""

import importlib.util
import json
import re
import sys
from types import SimpleNamespace

import pytest

from unimp_jax.training.log import RunLog, read_log
from unimp_jax.training.wandb_run import FILE, WandbRun, check_wandb

needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")


def log_steps(run, steps, project="project"):
    wandb = WandbRun(project, run, {"loader": {"batch_size": 8}})
    with RunLog(run, step=steps[0] - 1, steps=9, wandb=wandb) as log:
        for step in steps:
            log.write(step, "train", {"loss": 1 / step, "saving_slowest_host": "process 1 (node1)"})


@needs_wandb
def test_offline_a_restart_goes_on_with_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    run.mkdir()
    for steps in ([1, 2, 3], [3, 4]):
        log_steps(run, steps)
    number = json.loads((run / FILE).read_bytes())["id"]
    kept = list((run / "wandb").glob(f"offline-run-*-{number}/run-{number}.wandb"))
    assert len(kept) == 2  # which `wandb sync` sends one after the other
    sent = b"".join(file.read_bytes() for file in kept)
    for words in (b"train/loss", b"train/saving_slowest_host", b"process 1 (node1)", b"batch_size"):
        assert words in sent


class Package:
    """What of wandb is called; it notes how."""

    Error = type("Error", (Exception,), {})
    Settings = SimpleNamespace

    def __init__(self, fails=""):
        self.calls, self.fails = [], fails

    def init(self, **options):
        self.calls.append(("init", options["id"], options["project"], options["resume"], options["name"]))
        if self.fails == "init":
            raise self.Error("api_key not configured\n(no-tty)")
        return self

    def log(self, row, step):
        self.calls.append((step, row["train/loss"]))
        if self.fails == "log":
            raise ConnectionError("the service is gone")

    def finish(self, exit_code):
        self.calls.append(("finish", exit_code))


def test_rows_go_to_one_run_whose_id_the_folder_keeps(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", package := Package())
    for steps in ([1, 2], [2]):
        log_steps(tmp_path, steps)
    opened = ("init", json.loads((tmp_path / FILE).read_bytes())["id"], "project", "allow", tmp_path.name)
    assert package.calls == [opened, (1, 1.0), (2, 0.5), ("finish", 0), opened, (2, 0.5), ("finish", 0)]


def test_a_training_that_fails_is_told_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", package := Package())
    with pytest.raises(ZeroDivisionError):
        log_steps(tmp_path, [1, 0])
    assert package.calls[-1] == ("finish", 1)


def test_what_fails_there_does_not_end_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", Package("log"))
    log_steps(tmp_path, [1, 2])
    assert [row["step"] for row in read_log(tmp_path / "metrics.jsonl")] == [1, 2]
    assert "WARNING: wandb: a row was not sent (ConnectionError: the service is gone)" in capsys.readouterr().err


def test_who_is_not_logged_in_is_told_so_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Package("init"))
    says = "loop.wandb: api_key not configured (no-tty); log in with `wandb login`, set WANDB_MODE=offline"
    with pytest.raises(ValueError, match=re.escape(says)):
        log_steps(tmp_path, [1])


def test_a_missing_package_is_named_before_anything_is_done(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    check_wandb(None)
    with pytest.raises(ValueError, match=r"pip install 'unimp_jax\[wandb\]'"):
        check_wandb("project")
