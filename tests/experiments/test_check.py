"""`unimp check` accepts what training accepts, refuses in its words what it refuses, and writes nothing."""

import dataclasses
import importlib.util
import shlex
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from data_pipelines.errors import DataError
from experiments import check as checking
from experiments import cli
from experiments.check import CheckConfig, check_command
from experiments.presets import read_training
from experiments.train import open_run, train_run
from tests.experiments.tiny_run import prepare_source
from unimp_jax.planning.chips import Slices, devices
from unimp_jax.sharding import MeshConfig, make_mesh, row_shards
from unimp_jax.training.checkpoint import CheckpointConfig, Checkpoints

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
ON_8 = CheckConfig(devices=8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_source(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def without_libtpu(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)


def words(data: Path, folder: Path, options: str = "") -> list[str]:
    """A training that fits the small data, and what is changed of it."""
    return ["train", "tiny", "--data.folder", str(data), "--folder", str(folder), *shlex.split(options)]


def run(monkeypatch, capsys, *arguments: str) -> tuple[int | str | None, str, str]:
    """(what the process would exit with, standard output, standard error)."""
    monkeypatch.setattr(sys, "argv", ["unimp", *arguments])
    monkeypatch.setattr(cli, "use_all_cores", lambda: None)
    code: int | str | None = 0
    try:
        cli.main()
    except SystemExit as stopped:
        code = stopped.code
    return code, *capsys.readouterr()


def test_each_finding_is_a_line(data, tmp_path, monkeypatch, capsys):
    command = words(data, tmp_path / "run", "--mesh.fsdp 2")
    code, out, err = run(monkeypatch, capsys, "check", "--devices", "8", "--hosts", "2", "--", *command)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "mesh: data=4 fsdp=2, which makes 8 devices"
    assert lines[1].startswith(
        "rows: 16 per batch, 8 of them loaded by each of 2 processes, 2 at a time on a device; 256 t"
    )
    assert lines[2] == f"data: movielens_small in {data}, 40 users and 30 items"
    assert f"folder: {tmp_path / 'run'}, where a run of 700 steps starts" in lines
    assert {line.partition(":")[0] for line in lines[3:]} <= {"data", "folder", "parameters", "disk", "memory"}


def test_nothing_is_written(data, tmp_path):
    check_command(config=ON_8, command=words(data, tmp_path / "a" / "run"))
    assert not list(tmp_path.iterdir())


REFUSED = [
    ("--mesh.fsdp 3 --mesh.data 1", "fsdp=3 does not make 8 devices"),
    ("--loader.batch-size 9", "a batch of 9 rows is not a multiple of 8: slice=1 x data=8 x fsdp=1 x accumulate=1"),
    ("--training.accumulate 3", "a batch of 16 rows is not a multiple of 24"),
    ("--mesh.tensor 8", "cannot be split over tensor=8; choose a tensor that divides"),
    ("--mesh.context 8 --row_shape.tokens 500", "a row of 500 tokens is not a multiple of context=8"),
    ("--data.source hm", "has no prepared source 'hm'; run `unimp prepare hm"),
    ("--row_shape.tokens 8", "question does not fit: row_shape.tokens is 8"),
    ("--init-from {folder}/nowhere", "nowhere"),
    ("--vocabulary.base-size 100", "base_size 100 is too small for the tokenizer"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_it_refuses_what_training_refuses_in_the_same_words(data, tmp_path, options, message):
    command = words(data, tmp_path / "run", options.format(folder=tmp_path))
    with pytest.raises((ValueError, OSError)) as refused:
        check_command(config=ON_8, command=command)
    training = read_training(command[1:])
    with pytest.raises((ValueError, OSError)) as ended:
        train_run(training.experiment, training.folder)
    assert message in str(refused.value)
    assert (type(refused.value), str(refused.value)) == (type(ended.value), str(ended.value))


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--mesh.tensor 2",
        "--mesh.context 4",
        "--mesh.slice 2 --mesh.fsdp 4 --mesh.data 1",
        "--training.accumulate 1",
    ],
)
def test_it_accepts_what_training_accepts(data, tmp_path, options, capsys):
    command = words(data, tmp_path / "run", options)
    check_command(config=ON_8, command=command)
    training = read_training(command[1:])
    open_run(training.experiment, training.folder)
    make_mesh(training.experiment.mesh)
    check_command(config=ON_8, command=command)  # of the run that is there now
    assert capsys.readouterr().out.count("memory:") == 2


@pytest.mark.parametrize("read_records", [0, 100_000])
def test_the_folder_of_another_run_is_refused_and_that_of_the_same_run_is_not(data, tmp_path, read_records):
    folder, config = tmp_path / "run", dataclasses.replace(ON_8, read_records=read_records)
    training = read_training(words(data, folder)[1:])
    open_run(training.experiment, folder)
    check_command(config=config, command=words(data, folder, "--mesh.fsdp 2 --loop.steps 2000"))
    with pytest.raises(DataError) as refused:
        check_command(config=config, command=words(data, folder, "--optimizer.learning-rate 1"))
    with pytest.raises(DataError) as ended:
        open_run(read_training(words(data, folder, "--optimizer.learning-rate 1")[1:]).experiment, folder)
    assert str(refused.value) == str(ended.value)
    assert "contains a run of another configuration (optimizer.learning_rate: 0.005, now 1.0)" in str(refused.value)


def test_the_folder_of_a_vqgan_and_a_file_in_the_way_are_refused(data, tmp_path):
    (tmp_path / "vqgan.json").touch()
    with pytest.raises(DataError, match="contains the run of a VQGAN"):
        check_command(config=ON_8, command=words(data, tmp_path))
    with pytest.raises(NotADirectoryError):
        check_command(config=ON_8, command=words(data, tmp_path / "vqgan.json" / "run"))


def test_a_folder_that_may_not_be_written_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(checking.os, "access", lambda *_: False)
    with pytest.raises(PermissionError):
        check_command(config=ON_8, command=words(data, tmp_path / "run"))


def test_it_says_from_which_step_a_run_goes_on(data, tmp_path, capsys):
    folder = tmp_path / "run"
    open_run(read_training(words(data, folder)[1:]).experiment, folder)
    with Checkpoints(folder / "checkpoints", CheckpointConfig()) as checkpoints:
        checkpoints.save(30, {"x": jnp.zeros(2)}, {})
    check_command(config=ON_8, command=words(data, folder))
    assert f"folder: {folder}, where the run continues from step 30 of 700" in capsys.readouterr().out


def test_it_says_how_an_elastic_run_goes_on_with_other_devices(data, tmp_path, capsys):
    command = words(data, tmp_path / "run", "--training.elastic True --mesh.data 4 --mesh.fsdp 2")
    open_run(read_training(command[1:]).experiment, tmp_path / "run")  # on eight devices
    check_command(config=dataclasses.replace(ON_8, devices=2), command=command)
    assert "elastic: mesh fsdp=2, 2 rows at a time, accumulate 4, remat none\n" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"training\.elastic: a batch of 16 rows cannot be split over 3 shards"):
        check_command(config=dataclasses.replace(ON_8, devices=3), command=command)


def test_large_data_are_counted_and_not_read(data, tmp_path, capsys):
    """A row that has no room is then found by training alone."""
    config = dataclasses.replace(ON_8, read_records=69)
    check_command(config=config, command=words(data, tmp_path / "run", "--row_shape.tokens 8"))
    assert "40 users and 30 items\ndata: not read (--read-records)" in capsys.readouterr().out
    with pytest.raises(DataError, match="has no prepared source"):
        check_command(config=config, command=words(tmp_path / "nowhere", tmp_path / "run"))


def test_files_that_only_hosts_see_are_not_looked_for(tmp_path, capsys):
    config = dataclasses.replace(ON_8, files=False)
    check_command(config=config, command=words(tmp_path / "nowhere", tmp_path / "run"))
    of_any_geometry = "--init-from /start --mesh.tensor 8"
    check_command(config=config, command=words(tmp_path / "nowhere", tmp_path / "run", of_any_geometry))
    assert capsys.readouterr().out.count("data, folder: not checked (--files False)\n") == 2
    with pytest.raises(ValueError, match="fsdp=3 does not make 8 devices"):
        check_command(config=config, command=words(tmp_path, tmp_path, "--mesh.fsdp 3 --mesh.data 1"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--devices 8 -- train tiny --mesh.fsdp 3 --mesh.data 1", "fsdp=3 does not make 8 devices"),
        (
            "--devices 12 --files False -- train tiny --mesh.tensor 3 --loader.batch-size 4",
            "cannot be split over tensor=3",
        ),
        ("--tpu v5p-16 --num-slices 2 -- train tiny", "slice=1 is not a multiple of the 2 slices, between"),
        ("--devices 16 --num-slices 2 -- train tiny", "slice=1 is not a multiple of the 2 slices, between"),
        ("--tpu v4-16 -- train tiny", "unknown chip v4; known are v5e, v5p, v6e"),
        ("--tpu v5p-15 -- train tiny", "v5p-15 is not a slice; available are v5p-8"),
        ("--devices 8 --hosts 3 -- train tiny", "8 devices cannot be divided equally among 3 hosts"),
        ("--devices 0 -- train tiny", "0 devices cannot be divided equally"),
        ("-- train tiny", "give either --devices N or a slice of TPUs"),
        ("--devices 8 --tpu v5e-8 -- train tiny", "give either --devices N or a slice of TPUs"),
        ("--devices 8 -- evaluate runs/tiny", "give the training command last, after --"),
        ("--devices 8", "give the training command last, after --"),
    ],
)
def test_mistakes_are_reported_in_one_line(monkeypatch, capsys, without_libtpu, options, message):
    code, _, err = run(monkeypatch, capsys, "check", *shlex.split(options))
    assert code == 2
    assert err.startswith("unimp: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_misspelt_option_of_training_is_refused_with_the_right_one(monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, "check", "--devices", "8", "--", "train", "tiny", "--mesh.fsdpp", "2")
    assert code == 2
    assert "--mesh.fsdp" in err


@pytest.mark.parametrize(
    ("tpu", "chips"), [("v5p-64", 32), ("v5litepod-16", 16), ("v5e-16", 16), ("v6e-256", 256), ("v5p-8", 4)]
)
def test_slices_have_as_many_devices_as_chips(without_libtpu, capsys, tpu, chips):
    """As XPK counts them, too."""
    check_command(config=CheckConfig(tpu=tpu, files=False), command=["train", "tiny", "--loader.batch-size", "256"])
    told = capsys.readouterr().out
    assert f"mesh: data={chips}, which makes {chips} devices\n" in told
    assert "memory: to compute the memory of a step, install libtpu: pip install 'unimp_jax[tpu]'" in told


def test_processes_of_the_command_are_the_hosts(capsys):
    command = ["train", "tiny", "--processes.coordinator", "a:1", "--processes.count", "4", "--processes.index", "0"]
    check_command(config=CheckConfig(devices=8, files=False), command=command)
    assert "4 of them loaded by each of 4 processes" in capsys.readouterr().out


@needs_libtpu
def test_on_tpus_rows_lie_as_the_torus_has_them(monkeypatch, capsys):
    """Of v5e-16, a mesh whose rows go across hosts: each host loads all rows that its four chips work on."""

    def too_large(experiment, slices):
        raise checking.DoesNotFit(f"it does not fit {slices}")

    monkeypatch.setattr(checking, "make_plan", too_large)
    command = ["train", "tiny", "--mesh.data", "1", "--mesh.fsdp", "8", "--mesh.context", "2"]
    with pytest.raises(ValueError, match="it does not fit v5e-16"):
        check_command(config=CheckConfig(tpu="v5e-16", files=False), command=command)
    mesh = make_mesh(MeshConfig(fsdp=8, context=2), devices(Slices("v5e-16")))
    most = max(16 // shards * len(own) for own, shards in (row_shards(mesh, process) for process in range(4)))
    assert f"rows: 16 per batch, {most} of them loaded by each of 4 processes" in capsys.readouterr().out


@needs_libtpu
@pytest.mark.slow  # a step is compiled
def test_the_memory_of_a_step_is_that_of_its_plan(data, tmp_path, capsys):
    check_command(config=CheckConfig(tpu="v5e-4"), command=words(data, tmp_path / "run"))
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith("memory: 0.")
    assert told.endswith(" of 16 GiB per device, as compiled for v5e-4")
