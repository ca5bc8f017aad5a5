"""One training at a time in a folder of an object store."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from data_pipelines.errors import DataError
from data_pipelines.object_store import make_path
from experiments import lease, lock
from experiments.lease import leased, read
from experiments.lock import alone_in
from tests.object_store import environment

HOLDS = "import sys, time; from experiments import lease; from experiments.lock import alone_in\n"
HOLDS += "from data_pipelines.object_store import make_path; lease.REFRESH = 0.2\n"
HOLDS += "with alone_in(make_path(sys.argv[1])): print('held', flush=True); time.sleep(100)"


@pytest.fixture
def folder(server, request, monkeypatch):
    monkeypatch.setattr(lease, "SETTLE", 0.2)
    return make_path(f"s3://bucket/{re.sub(r'[^a-z_]', '-', request.node.name)}")


@pytest.fixture
def other(server, folder):
    """A process that trains in the folder."""
    command = [sys.executable, "-c", HOLDS, str(folder)]
    process = subprocess.Popen(
        command, env=environment(server), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_training_is_refused_and_told_of_the_first(folder, other, monkeypatch, capsys):
    monkeypatch.setattr(lock, "PATIENCE", 1)
    with (
        pytest.raises(DataError, match=rf"is in use by another training \(process {other.pid} on .*; stop it"),
        alone_in(folder),
    ):
        pass
    assert capsys.readouterr().out.count("waiting up to 1 s") == 1


def test_one_that_was_killed_on_this_host_is_followed_at_once(folder, other, capsys):
    other.send_signal(signal.SIGKILL)
    other.wait()
    with alone_in(folder):
        assert read(folder / "training.lock")["pid"] == os.getpid()
    assert f"the lease of process {other.pid} on " in capsys.readouterr().out
    assert not (folder / "training.lock").exists()


def test_one_of_another_host_is_waited_for_until_it_is_over(folder, monkeypatch, capsys):
    path = folder / "training.lock"
    held = json.loads(lease.signed("another")) | {"host": "far", "machine": "far", "until": time.time() + 2}
    path.write_text(json.dumps(held))
    begin = time.monotonic()
    with alone_in(folder):
        assert time.monotonic() - begin > 1.5
    assert "far" in capsys.readouterr().out


def test_it_is_kept_as_long_as_it_is_held(folder, monkeypatch):
    monkeypatch.setattr(lease, "REFRESH", 0.1)
    path = folder / "training.lock"
    with leased(path, 0):
        first = read(path)["until"]
        time.sleep(1.0)
        assert read(path)["until"] > first


def test_who_has_lost_it_ends_at_once(folder, other):
    path = folder / "training.lock"
    path.write_bytes(lease.signed("another"))
    said = other.communicate(timeout=30)[1]
    assert other.returncode == 2
    assert f"training.lock was taken over by process {os.getpid()} on" in said
    assert read(path)["token"] == "another"


def test_of_many_that_try_at_once_one_has_it(folder):
    """Also where one was left behind."""
    path, held = folder / "training.lock", []
    path.write_text(json.dumps({"until": 0.0}))
    barrier = threading.Barrier(4)

    def attempt() -> None:
        barrier.wait()
        with leased(path, patience=30):
            held.append("begins")
            time.sleep(0.5)
            held.append("ends")

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert held == ["begins", "ends"] * 4


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"until": "soon"}'])
def test_what_is_no_lease_is_no_obstacle(folder, text):
    (folder / "training.lock").write_text(text)
    with leased(folder / "training.lock", 0):
        pass
