"""What cannot be read for the moment is no damage, and damage is no other configuration."""

import errno
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from unimp_jax.training import reading
from unimp_jax.training.checkpoint import CheckpointConfig, CheckpointError, Checkpoints, abstract
from unimp_jax.training.frozen import load_frozen, save_frozen
from unimp_jax.training.reading import DamagedError, View, view_of

STATE = {"weights": jnp.arange(4.0)}
STALE = OSError(errno.ESTALE, os.strerror(errno.ESTALE))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(reading, "WAITS", (0.0, 0.0))


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "view"),
    [
        (STALE, View.OUT_OF_REACH),
        (TimeoutError(), View.OUT_OF_REACH),
        (ConnectionResetError(), View.OUT_OF_REACH),
        (PermissionError(errno.EACCES, "Permission denied"), View.OUT_OF_REACH),
        (MemoryError(), View.OUT_OF_REACH),
        (ValueError('UNAVAILABLE: Error opening "zarr" driver'), View.OUT_OF_REACH),
        (ValueError("RESOURCE_EXHAUSTED: 429 Too Many Requests"), View.OUT_OF_REACH),
        (ValueError('UNKNOWN: Error reading "a": Input/output error'), View.OUT_OF_REACH),
        (caused(Exception("while reading array index"), ValueError("DEADLINE_EXCEEDED: x")), View.OUT_OF_REACH),
        (RuntimeError("something nobody knows"), View.OUT_OF_REACH),
        (FileNotFoundError(errno.ENOENT, "No such file"), View.DAMAGED),
        (json.JSONDecodeError("Expecting value", "", 0), View.DAMAGED),
        (ValueError('NOT_FOUND: Error opening "zarr" driver'), View.DAMAGED),
        (ValueError("DATA_LOSS: CRC-32C checksum verification failed"), View.DAMAGED),
        (caused(Exception("while reading array index"), ValueError("OUT_OF_RANGE: x")), View.DAMAGED),
        (ValueError("Requested shape: (2,) is not compatible with the stored"), View.OF_ANOTHER_CONFIGURATION),
        (ValueError("item and on-disk value metadata tree structures do not match"), View.OF_ANOTHER_CONFIGURATION),
    ],
)
def test_errors_are_distinguished(error, view):
    assert view_of(error) == view


def failing(monkeypatch, error: Exception, times: int) -> list[Path]:
    """Reading state fails so often; what was tried."""
    tried, restore = [], ocp.StandardCheckpointHandler.restore

    def maybe(self, directory, *arguments, **options):
        tried.append(Path(directory))
        if len(tried) <= times:
            raise error
        return restore(self, directory, *arguments, **options)

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", maybe)
    return tried


@pytest.fixture
def saved(tmp_path):
    with Checkpoints(tmp_path / "checkpoints", CheckpointConfig()) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"weights": STATE["weights"] + step}, {"step": step})
    return tmp_path


def restored(folder: Path):
    with Checkpoints(folder / "checkpoints", CheckpointConfig()) as checkpoints:
        return checkpoints.restore_latest(abstract(STATE))


def test_an_error_that_passes_is_waited_for(saved, monkeypatch):
    tried = failing(monkeypatch, STALE, times=2)
    state, notes = restored(saved)
    assert notes == {"step": 2}
    assert state["weights"].tolist() == [2, 3, 4, 5]
    assert [folder.parent.name for folder in tried] == ["2", "2", "2"]


def test_one_that_stays_is_reported_and_nothing_is_set_aside(saved, monkeypatch):
    failing(monkeypatch, STALE, times=99)
    with pytest.raises(CheckpointError, match=r"step 2 could not be read in 3 attempts .*Stale file handle") as told:
        restored(saved)
    assert not isinstance(told.value, DamagedError)
    assert len(str(told.value).splitlines()) == 1
    assert sorted(os.listdir(saved / "checkpoints")) == ["1", "2"]
    assert os.listdir(saved) == ["checkpoints"]


@pytest.mark.parametrize("damage", ["_METADATA", "manifest.ocdbt", "notes", "d"])
def test_missing_and_broken_files_are_damage(saved, capsys, damage):
    for file in (saved / "checkpoints" / "2").rglob("*"):
        if file.is_file() and damage in file.parts[-2:]:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    _, notes = restored(saved)
    assert notes == {"step": 1}
    assert "step 2 cannot be read" in capsys.readouterr().err
    assert os.listdir(saved / "damaged") == ["2.1"]


def test_another_configuration_is_not_set_aside(saved):
    other = {"weights": jax.ShapeDtypeStruct((5,), jnp.float32, sharding=STATE["weights"].sharding)}
    with (
        Checkpoints(saved / "checkpoints", CheckpointConfig()) as checkpoints,
        pytest.raises(CheckpointError, match="step 2 cannot be read into this model"),
    ):
        checkpoints.restore_latest(other)
    assert os.listdir(saved) == ["checkpoints"]


def test_frozen_parameters_are_waited_for_as_well(tmp_path, monkeypatch):
    save_frozen(tmp_path / "frozen", STATE)
    failing(monkeypatch, STALE, times=1)
    assert load_frozen(tmp_path / "frozen", abstract(STATE))["weights"].tolist() == [0, 1, 2, 3]
    with pytest.raises(CheckpointError, match="frozn: the frozen parameters cannot be read"):
        load_frozen(tmp_path / "frozn", abstract(STATE))
