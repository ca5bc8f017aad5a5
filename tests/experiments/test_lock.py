"""One training at a time in a folder."""

import contextlib
import dataclasses
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from data_pipelines.errors import DataError
from experiments import lock, train
from experiments.config import load_config
from experiments.lock import alone_in, holder, is_free, locked
from tests.experiments.tiny_run import experiment, prepare_source

HOLDS = "import sys, time; from pathlib import Path; from experiments.lock import alone_in\n"
HOLDS += "with alone_in(Path(sys.argv[1])): print('held', flush=True); time.sleep(100)"


@pytest.fixture
def other(tmp_path):
    """A process that trains in the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_training_is_refused_and_told_of_the_first(tmp_path, other, monkeypatch, capsys):
    monkeypatch.setattr(lock, "PATIENCE", 1)
    before = len(os.listdir("/proc/self/fd"))
    with (
        pytest.raises(DataError, match=rf"is in use by another training \(process {other.pid} on .*; stop it first"),
        alone_in(tmp_path),
    ):
        pass
    assert len(os.listdir("/proc/self/fd")) == before
    assert capsys.readouterr().out.count("waiting up to 1 s for it to end") == 1


def test_one_that_was_killed_is_waited_for_and_followed(tmp_path, other):
    timer = threading.Timer(0.5, other.send_signal, [signal.SIGKILL])
    timer.start()
    begin = time.monotonic()
    with alone_in(tmp_path):
        assert time.monotonic() - begin > 0.4
        assert f"process {os.getpid()} on" in holder(tmp_path / "training.lock")
        assert not is_free(tmp_path / "training.lock")
    timer.join()
    assert is_free(tmp_path / "training.lock")


def test_where_there_are_no_locks_training_goes_on_and_says_so(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with alone_in(tmp_path):
        assert "No locks available" in (told := capsys.readouterr().out)
        assert f"nothing prevents a second training in {tmp_path}" in told
    with pytest.raises(ValueError, match="choose a --folder"), locked(tmp_path / "lock"):
        pass


def test_what_goes_wrong_in_a_training_is_not_taken_for_a_lock(tmp_path):
    with pytest.raises(ValueError, match="of its own"), alone_in(tmp_path):
        raise ValueError("of its own")
    assert is_free(tmp_path / "training.lock")


def test_of_two_that_begin_in_a_new_folder_one_does(tmp_path, monkeypatch):
    """The second one, which waited for the lock, reads what the first has written, and writes nothing itself."""
    first = experiment(prepare_source(tmp_path / "prepared"))
    second = dataclasses.replace(first, seed=5, vocabulary=dataclasses.replace(first.vocabulary, attribute_words=2))

    @contextlib.contextmanager
    def late(folder):
        monkeypatch.undo()
        train.open_run(first, folder)
        yield

    monkeypatch.setattr(train, "alone_in", late)
    with pytest.raises(DataError, match="seed: 0, now 5"):
        train.open_run(second, tmp_path / "run")
    assert load_config(tmp_path / "run" / "config.json").seed == 0
    train.open_run(first, tmp_path / "run")
