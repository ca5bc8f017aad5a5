"""Workers at cells, with commands of a line: each done once, whatever is killed; failures stay where they are."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import submitit

from data_pipelines.atomic import write_json
from experiments.lock import holder, is_free, locked
from experiments.sweep.command import AblationsConfig, SlurmConfig
from experiments.sweep.devices import DeviceShare, shares
from experiments.sweep.job import CellJob, is_done, read_json
from experiments.sweep.run import Runner, open_runner, run_cells, summary

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
FREE = DeviceShare((), {})
WORK = "echo begins >> marks; sleep {seconds}; echo ends >> marks; touch there"
WORKER = "import sys; from pathlib import Path; from experiments.sweep.devices import DeviceShare\n"
WORKER += "from experiments.sweep.job import CellJob; print(CellJob(Path(sys.argv[1]), DeviceShare((), {}))())"
SWEEP = """
import json, submitit, sys
from pathlib import Path
from experiments.sweep.devices import shares
from experiments.sweep.run import Runner, run_cells
folder = Path(sys.argv[1])
executor = submitit.LocalExecutor(folder / "local" / "%j")
executor.update_parameters(timeout_min=60)
runner = Runner(folder, executor, shares(1, "cpu") * int(sys.argv[3]))
results = run_cells(json.loads(sys.argv[2]), runner)
print(json.dumps([[one.name, one.state] for one in results]), runner.stopping.is_set())
"""


def cell(folder: Path, *lines: str, leaves: str = "there", fingerprint: str = "1") -> Path:
    """A cell whose commands are lines of a shell, run in its folder."""
    commands = [{"words": ["sh", "-c", f"cd '{folder}'; {line}"], "leaves": leaves} for line in lines]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "cell.json", {"commands": commands, "hash": fingerprint})
    return folder


def worker(folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder)], env=ENVIRONMENT, start_new_session=True,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def sweep(folder: Path, needs: dict[str, list[str]], jobs: int = 2) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SWEEP, str(folder), json.dumps(needs), str(jobs)],
        env=ENVIRONMENT, start_new_session=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def starts(folder: Path) -> int:
    """How often a command of the cell was started."""
    return (folder / "log.txt").read_text().count("$ sh -c") if (folder / "log.txt").exists() else 0


def has_ended_early(folder: Path) -> bool:
    return not is_done(folder) and not (folder / "failed.json").exists()


def marks(folder: Path) -> list[str]:
    return (folder / "marks").read_text().split() if (folder / "marks").exists() else []


def wait_for(condition, seconds: float = 120.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not come to that"
        time.sleep(0.01)


def local(folder: Path, jobs: int = 1, says=lambda line: None) -> Runner:
    executor = submitit.LocalExecutor(folder / "local" / "%j")
    executor.update_parameters(timeout_min=60)
    return Runner(folder, executor, shares(1, "cpu") * jobs, say=says)


def work_at(folder: Path) -> str:
    return CellJob(folder, FREE).run()


def test_commands_run_one_after_the_other_and_once(tmp_path):
    folder = cell(tmp_path / "a", "echo 1 >> marks; touch there", "echo 2 >> marks")
    for _ in range(2):
        assert work_at(folder) == "done"
    assert marks(folder) == ["1", "2"]
    assert is_done(folder)
    assert starts(folder) == 2


def test_a_command_that_has_left_what_it_leaves_does_not_run_again(tmp_path):
    folder = cell(tmp_path / "a", "echo first >> marks; touch there", "echo last >> marks; test -e well")
    assert work_at(folder) == "failed"
    (folder / "well").touch()
    assert work_at(folder) == "done"
    assert marks(folder) == ["first", "last", "last"]
    assert not (folder / "failed.json").exists()


def test_a_cell_of_another_configuration_is_not_done(tmp_path):
    folder = cell(tmp_path / "a", "echo 1 >> marks; touch there")
    assert work_at(folder) == "done"
    cell(folder, "echo 1 >> marks; touch there", fingerprint="2")
    assert not is_done(folder)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("echo so it goes; exit 3", "exit status 3"),
        ("echo so it goes; kill -9 $$", "ended by SIGKILL"),
        ("echo so it goes", "ended early: there is missing"),
    ],
)
def test_a_failure_is_recorded_with_the_end_of_the_log(tmp_path, line, reason):
    folder = cell(tmp_path / "a", f"seq 100; {line}")
    assert work_at(folder) == "failed"
    failed = read_json(folder / "failed.json")
    assert failed["reason"] == reason
    assert failed["end"][-1] == "so it goes"
    assert len(failed["end"]) == 20
    assert not is_done(folder)


def test_a_command_that_is_not_there_is_a_failure(tmp_path):
    (tmp_path / "a").mkdir()
    write_json(tmp_path / "a" / "cell.json", {"commands": [{"words": ["/no/program"], "leaves": "x"}], "hash": "1"})
    assert work_at(tmp_path / "a") == "failed"
    assert "No such file" in read_json(tmp_path / "a" / "failed.json")["reason"]


def test_one_at_a_time_and_who_it_is(tmp_path):
    folder = cell(tmp_path / "a", WORK.format(seconds=1))
    first = worker(folder)
    wait_for(lambda: marks(folder))
    assert not is_free(folder / "lock")
    assert f"process {first.pid} on {socket.gethostname()}" in holder(folder / "lock")
    assert work_at(folder) == "busy"
    assert first.communicate() == ("done\n", None)
    assert is_free(folder / "lock")
    assert marks(folder) == ["begins", "ends"]


def test_the_lock_of_one_that_was_killed_is_taken_over(tmp_path):
    folder = cell(tmp_path / "a", WORK.format(seconds=30))
    first = worker(folder)
    wait_for(lambda: marks(folder))
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    cell(folder, WORK.format(seconds=0))
    wait_for(lambda: is_free(folder / "lock"))
    assert work_at(folder) == "done"
    assert marks(folder) == ["begins", "begins", "ends"]


def test_a_training_that_outlives_its_worker_is_left_alone(tmp_path):
    """Or two processes would write into one run."""
    folder = cell(tmp_path / "a", WORK.format(seconds=1))
    first = worker(folder)
    wait_for(lambda: marks(folder))
    first.kill()
    first.wait()
    assert work_at(folder) == "busy"
    wait_for(lambda: is_free(folder / "lock"))
    assert marks(folder) == ["begins", "ends"]


def test_a_folder_of_which_locks_are_not_to_be_had_is_refused(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(ValueError, match="No locks available"), locked(tmp_path / "lock"):
        pass


def test_a_sweep_killed_halfway_and_started_again_does_each_cell_once(tmp_path):
    """SIGKILL to all processes, three times, at different moments."""
    names = ["a", "b", "c"]
    for name in names:
        cell(tmp_path / name, WORK.format(seconds=0.6))
    needs = {name: [] for name in names}
    for done in (0, 1, 2):
        running = sweep(tmp_path, needs, jobs=1)
        wait_for(lambda done=done: sum(is_done(tmp_path / name) for name in names) == done)
        wait_for(lambda done=done: len(marks(tmp_path / names[done])) % 2 == 1)
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
    running = sweep(tmp_path, needs, jobs=1)
    output, _ = running.communicate(timeout=300)
    assert output.splitlines()[-1] == '[["a", "done"], ["b", "done"], ["c", "done"]] False'
    for name in names:
        assert starts(tmp_path / name) == 2
        assert marks(tmp_path / name) == ["begins", "begins", "ends"]


def test_two_sweeps_at_once_share_the_cells(tmp_path):
    names = [f"c{number}" for number in range(6)]
    for name in names:
        cell(tmp_path / name, WORK.format(seconds=0.3))
    running = [sweep(tmp_path, {name: [] for name in names}) for _ in range(2)]
    for one in running:
        output, _ = one.communicate(timeout=300)
        assert json.loads(output.splitlines()[-1].removesuffix(" False")) == [[name, "done"] for name in names]
    assert all(marks(tmp_path / name) == ["begins", "ends"] for name in names)
    assert all(starts(tmp_path / name) == 1 for name in names)


def test_a_failing_cell_stops_only_those_that_need_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cell(tmp_path / "bad", "echo no; exit 1")
    cell(tmp_path / "after", WORK.format(seconds=0))
    cell(tmp_path / "good", WORK.format(seconds=0))
    needs = {"bad": [], "after": ["bad"], "good": []}
    said = []
    runner = local(tmp_path, says=said.append)
    results = run_cells(needs, runner)
    assert [(one.name, one.state) for one in results] == [("bad", "failed"), ("after", "not run"), ("good", "done")]
    assert not runner.stopping.is_set()
    assert [line for line in said if "bad" in line] == ["bad starts", "[1 of 3] bad failed exit status 1"]
    table = summary(tmp_path, results)
    assert "3 cells: 1 done, 1 failed, 1 not run" in table
    assert "bad: failed, exit status 1" in table
    assert "after: not run, it needs bad" in table
    assert "  no" in table.splitlines()
    cell(tmp_path / "bad", WORK.format(seconds=0))  # mended
    assert {one.state for one in run_cells(needs, local(tmp_path))} == {"done"}
    assert marks(tmp_path / "good") == ["begins", "ends"]


def test_a_cell_waits_for_those_that_it_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cell(tmp_path / "a", WORK.format(seconds=0.3))
    cell(tmp_path / "b", "test -e ../a/there && touch there")
    results = run_cells({"b": ["a"], "a": []}, local(tmp_path, 2))
    assert [one.state for one in results] == ["done", "done"]


def test_a_job_that_dies_is_a_failure_that_says_where_its_log_is(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cell(tmp_path / "a", "kill -9 $PPID")
    (result,) = run_cells({"a": []}, local(tmp_path))
    assert result.state == "failed"
    assert result.text.startswith(f"its job ended early; see {tmp_path / 'local'}")


@pytest.mark.parametrize(("send", "number"), [(os.kill, signal.SIGTERM), (os.killpg, signal.SIGINT)])
def test_asked_to_end_all_cells_save_and_end(tmp_path, send, number):
    """By SIGTERM to the sweep, or from the keyboard, which sends SIGINT to all processes."""
    saves = "trap 'echo saved >> marks; exit 0' TERM; echo begins >> marks; while :; do sleep 0.05; done"
    for name in "ab":
        cell(tmp_path / name, saves)
    cell(tmp_path / "c", WORK.format(seconds=0))
    running = sweep(tmp_path, {name: [] for name in "abc"})
    wait_for(lambda: marks(tmp_path / "a") and marks(tmp_path / "b"))
    send(running.pid, number)
    output, _ = running.communicate(timeout=300)
    assert output.splitlines()[-1] == '[["a", "ended"], ["b", "ended"], ["c", "ended"]] True'
    assert [marks(tmp_path / name) for name in "abc"] == [["begins", "saved"]] * 2 + [[]]
    assert [starts(tmp_path / name) for name in "abc"] == [1, 1, 0]
    assert all(has_ended_early(tmp_path / name) for name in "abc")
    assert all(is_free(tmp_path / name / "lock") for name in "ab")


def test_each_process_has_devices_of_its_own(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3, 4, 5, 6, 7})
    cpus = shares(3, "cpu")
    assert [share.cores for share in cpus] == [(0, 1), (2, 3), (4, 5)]
    assert all(share.environment["OMP_NUM_THREADS"] == "2" for share in cpus)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in shares(2, "gpu")] == ["4,5", "6,7"]
    monkeypatch.setenv("TPU_VISIBLE_CHIPS", "0,1,2,3")
    assert [share.environment["TPU_VISIBLE_CHIPS"] for share in shares(4, "tpu")] == list("0123")
    monkeypatch.setenv("TPU_VISIBLE_CHIPS", "0,1,2")
    with pytest.raises(ValueError, match="cannot use 3 TPU chips"):
        shares(1, "tpu")
    with pytest.raises(ValueError, match="1 to 4 jobs can run at once"):
        shares(5, "gpu")


def test_a_job_stays_on_its_cores(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    core = min(os.sched_getaffinity(0))
    command = (
        "python3 -c 'import os; print(*os.sched_getaffinity(0))' > cores; echo $OMP_NUM_THREADS >> cores; touch there"
    )
    cell(tmp_path / "a", command)
    runner = open_runner(AblationsConfig(folder=tmp_path, devices="cpu", jobs=len(os.sched_getaffinity(0))))
    run_cells({"a": []}, runner)
    assert (tmp_path / "a" / "cores").read_text().split() == [str(core), "1"]


def test_a_job_that_is_taken_away_saves_and_queues_again(tmp_path, monkeypatch):
    """As SLURM tells it, by SIGUSR2, here as soon as the command runs; submitit's local executor queues again too."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    saves = (
        "trap 'echo saved >> marks; exit 0' TERM; echo $PPID > job; echo begins >> marks; while :; do sleep 0.05; done"
    )
    folder = cell(tmp_path / "a", f"if test -e marks; then touch there; else {saves}; fi")
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    executor.update_parameters(timeout_min=10)
    job = executor.submit(CellJob(folder, FREE))
    wait_for(lambda: marks(folder))
    os.kill(int((folder / "job").read_text()), signal.SIGUSR2)
    assert job.result() == "done"
    assert marks(folder) == ["begins", "saved"]
    assert starts(folder) == 2
    assert is_done(folder)


def test_a_job_that_is_taken_away_while_its_command_starts_leaves_nothing_behind(tmp_path, monkeypatch):
    """The signal comes when the process is there, and before the worker knows its number."""
    job = CellJob(cell(tmp_path / "a", "exec sleep 100"), FREE)
    real, started = subprocess.Popen, []

    def slow(*words, **more):
        started.append(real(*words, **more))
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(0.2)
        return started[-1]

    def taken_away(*_):
        job.checkpoint()
        assert started[-1].poll() is not None
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", slow)
    before = [(one, signal.getsignal(one)) for one in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)]
    signal.signal(signal.SIGUSR2, taken_away)
    try:
        with pytest.raises(KeyboardInterrupt):
            job()
    finally:
        for one, handler in before:
            signal.signal(one, handler)
    assert is_free(tmp_path / "a" / "lock")
    assert starts(tmp_path / "a") == len(started) == 1
    assert has_ended_early(tmp_path / "a")


def test_slurm_that_is_not_there_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="srun"):
        open_runner(AblationsConfig(folder=tmp_path, engine="slurm"))


SBATCH = """#!/bin/sh
cp "$1" "$FAKE_SLURM/script"
echo Submitted batch job 7
"""


def test_a_cell_is_submitted_to_slurm_and_stays_there(tmp_path, monkeypatch):
    """With a `sbatch` that only keeps the script: the job is pending until the sweep is asked to end."""
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()
    programs = {"sbatch": SBATCH, "srun": "#!/bin/sh\n", "sacct": "#!/bin/sh\necho 'JobID|State'; echo '7|PENDING'\n"}
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    slurm = SlurmConfig(minutes=30, setup=("source env",), options=("partition=big", "gpus-per-node=2"))
    with pytest.raises(ValueError, match="NAME=VALUE"):
        open_runner(AblationsConfig(folder=tmp_path / "s", engine="slurm", slurm=SlurmConfig(options=("big",))))
    runner = open_runner(AblationsConfig(folder=tmp_path / "s", engine="slurm", slurm=slurm))
    cell(tmp_path / "s" / "a", WORK.format(seconds=0))
    threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    (result,) = run_cells({"a": []}, runner)
    assert (result.state, result.text) == ("ended", "for this sweep; its job remains in the queue")
    assert runner.stopping.is_set()
    script = (tmp_path / "script").read_text().splitlines()
    expected = ["time=30", "partition=big", "gpus-per-node=2", "job-name=unimp-s", "signal=USR2@90"]
    assert {f"#SBATCH --{option}" for option in expected} | {"source env"} <= set(script)
    assert not (tmp_path / "s" / "a" / "marks").exists()
