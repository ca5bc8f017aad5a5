"""Launch files say what was meant, and the engines' own parsers take them; what could not run is refused before."""

import shlex
import signal
import subprocess
import sys
import time

import pytest
import yaml

from experiments import cli
from experiments.launch import gather_training, hand_over, plan
from experiments.launch.ending import ASKED, until_whole
from experiments.launch.job import Job, Plan
from experiments.launch.skypilot import SkyPilotConfig
from experiments.launch.slurm import SlurmConfig, seconds_of
from experiments.launch.xpk import XpkConfig
from experiments.preset_run import read_training

WORDS = ("openflamingo-3b", "--folder", "/shared/my runs/it's 3b", "--mesh.slice", "2", "--loop.steps", "30")
LAST = "/shared/my runs/it's 3b/checkpoints/30"
CONFIGS = {
    "slurm": SlurmConfig(train="", nodes=2, gpus_per_node=8, setup=("source .venv/bin/activate",)),
    "xpk": XpkConfig(train="", cluster="c", tpu_type="v5p-16", num_slices=2, docker_image="i", setup=("cd /app",)),
    "skypilot": SkyPilotConfig(train="", accelerators="H100:8", num_nodes=2, storage="gs://b", setup=("ls", "pwd")),
}


def job(*words: str) -> Job:
    return Job(words or WORDS, read_training(words or WORDS))


def script(engine: str) -> str:
    """What a shell runs on hosts."""
    planned = plan(CONFIGS[engine], job())
    if engine == "xpk":
        return next(word for word in planned.command if word.startswith("--command=")).removeprefix("--command=")
    return yaml.safe_load(planned.text)["run"] if engine == "skypilot" else planned.text


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


SLURM = ("launch", "slurm", "--nodes", "2", "--gpus-per-node", "4")


@pytest.mark.parametrize("engine", CONFIGS)
def test_the_training_in_the_file_is_the_one_that_was_typed(engine):
    """Odd paths and all; what is behind `unimp train` there, `unimp train` reads."""
    text = script(engine).replace("& training=$!", "\n")
    line = next(line for line in text.splitlines() if "unimp train" in line).removesuffix("|| status=$?")
    words = shlex.split(line[line.index("unimp train") :].rstrip(" ;"))[2:]
    environment = {
        '$(echo "$SKYPILOT_NODE_IPS" | head -n 1):8476': "host:1",
        "$(echo $SKYPILOT_NODE_IPS | head -n 1):8476": "host:1",
        "$SKYPILOT_NUM_NODES": "2",
        "$SKYPILOT_NODE_RANK": "1",
    }
    read = read_training([environment.get(word, word) for word in words])
    assert (read.folder, read.experiment) == (job().training.folder, job().training.experiment)
    assert read.processes.count == (2 if engine == "skypilot" else None)


@pytest.mark.parametrize("engine", CONFIGS)
def test_shells_take_the_scripts(engine):
    checked = subprocess.run(["bash", "-n"], input=script(engine), capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_written_xpk_command_is_the_one_that_runs():
    planned = plan(CONFIGS["xpk"], job())
    shown = subprocess.run(
        ["bash", "-c", f'xpk() {{ printf "%s\\0" "$@"; }}\n{planned.text}'], capture_output=True, text=True, check=True
    )
    assert ("xpk", *shown.stdout.split("\0")[:-1]) == planned.command


@pytest.mark.parametrize(
    ("program", "whole", "status"),
    [("true", True, 0), ("true", False, ASKED), ("exit 3", False, 3), ("exit 3", True, 3)],
)
@pytest.mark.parametrize("joint", ["\n", "; "])
def test_a_training_is_done_when_its_last_step_is_saved(tmp_path, program, whole, status, joint):
    last = tmp_path / "a run" / "30"
    if whole:
        last.mkdir(parents=True)
    lines = joint.join(["set -e", *until_whole(f"bash -c {shlex.quote(program)}", shlex.quote(str(last)))])
    assert subprocess.run(["bash", "-c", lines]).returncode == status


@pytest.mark.parametrize("joint", ["\n", "; "])
def test_sigterm_reaches_training_and_is_waited_for(tmp_path, joint):
    saves = f"trap 'sleep 0.3; touch {tmp_path}/saved; exit 0' TERM; touch {tmp_path}/begun; "
    saves += "while true; do sleep 0.05; done"
    lines = joint.join(["set -e", *until_whole(f"bash -c {shlex.quote(saves)}", str(tmp_path / "30"))])
    running = subprocess.Popen(["bash", "-c", lines])
    wait_for(tmp_path / "begun")
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=120) == ASKED
    assert (tmp_path / "saved").exists()


def wait_for(path, seconds=120.0):
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path} does not come"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("status", "whole", "restarts", "requeued", "ends"),
    [
        (0, True, 0, False, 0),
        (0, False, 0, True, 0),
        (143, False, 3, True, 143),
        (1, False, 0, False, 1),
        (0, False, 100, False, 1),
    ],
)
def test_a_slurm_job_goes_back_into_the_queue_until_it_is_done(tmp_path, status, whole, restarts, requeued, ends):
    """`srun` and `scontrol` are stood in for; a failure is left a failure."""
    if whole:
        (tmp_path / "checkpoints" / "30").mkdir(parents=True)
    words = ("tiny", "--folder", str(tmp_path), "--loop.steps", "30")
    text = plan(SlurmConfig(train="", nodes=2, gpus_per_node=2), job(*words)).text
    stand_ins = f'srun() {{ return {status}; }}; scontrol() {{ echo "scontrol $*"; }}; SLURM_JOB_ID=7\n'
    ended = subprocess.run(
        ["bash", "-c", stand_ins + text],
        env={"PATH": "/usr/bin:/bin", "SLURM_RESTART_COUNT": str(restarts)},
        capture_output=True,
        text=True,
    )
    assert ("scontrol requeue 7" in ended.stdout, ended.returncode) == (requeued, ends)


def test_each_process_has_the_gpus_it_should():
    """Under SLURM, JAX gives a process the GPU of its number on the node, and no other, unless told."""
    whole = plan(SlurmConfig(train="", nodes=2, gpus_per_node=4), job("tiny", "--mesh.slice", "2")).text
    assert "export JAX_LOCAL_DEVICE_IDS=0,1,2,3\n" in whole
    assert "#SBATCH --ntasks-per-node=1\n" in whole
    single = plan(SlurmConfig(train="", nodes=2, gpus_per_node=4, processes="gpu"), job("tiny")).text
    assert "JAX_LOCAL_DEVICE_IDS" not in single
    assert "#SBATCH --ntasks-per-node=4\n" in single
    for text in (whole, single):
        assert "--gpu-bind=none" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*SLURM, "--train", "tiny", "--mesh.fsdp", "3", "--mesh.data", "1"], "fsdp=3 does not make 8 devices"),
        ([*SLURM, "--train", "tiny", "--loader.rows", "9"], "9 rows a batch are not a multiple of 8"),
        (
            [*SLURM[:3], "3", *SLURM[4:], "--train", "tiny", "--mesh.tensor", "3"],
            "cannot be split over tensor=3; choose a tensor that divides",
        ),
        ([*SLURM, "--train", "tiny", "--mesh.context", "8", "--budget.tokens", "500"], "not a multiple of context=8"),
        ([*SLURM, "--train", "tiny", "--processes.together", "True"], "leave it out"),
        ([*SLURM, "--logs", 'a "b"', "--train", "tiny"], "a quote, a backslash or a line break"),
        (
            shlex.split("launch xpk --cluster c --tpu-type v5p-16 --num-slices 2 --docker-image i --train tiny"),
            "slice=1 is not a multiple of the 2 slices there are",
        ),
        (
            shlex.split("launch xpk --cluster c --tpu-type v5p-16 --docker-image i --train tiny --folder runs/a"),
            "--folder runs/a is lost with the host",
        ),
        (
            shlex.split(
                "launch xpk --name A_b --cluster c --tpu-type v5p-16 --docker-image i --train tiny --folder /a"
            ),
            "the name 'A_b' must be",
        ),
        (
            shlex.split("launch skypilot --accelerators A100:2 --storage gs://b --train tiny --folder /elsewhere/a"),
            "name one in /shared, where gs://b is",
        ),
    ],
)
def test_what_could_not_run_is_refused_in_one_line(monkeypatch, capsys, arguments, message):
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("unimp: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*SLURM, "--processes", "gpu", "--cpus-per-node", "6", "--train", "tiny"], "6 is not a multiple of 4"),
        ([*SLURM, "--time", "6:00", "--train", "tiny"], "nothing is left to train in"),
        ([*SLURM, "--time", "a day", "--train", "tiny"], "is not as SLURM writes it"),
        (
            shlex.split("launch skypilot --accelerators tpu-v5p-16 --num-nodes 2 --storage gs://b --train tiny"),
            "use `unimp launch xpk`",
        ),
        (shlex.split("launch xpk --cluster c --tpu-type v5p-8 --docker-image i"), "--train"),
        ([*SLURM, "--train"], "tiny"),
    ],
)
def test_a_wrong_option_of_an_engine_is_refused(monkeypatch, capsys, arguments, message):
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert message in " ".join(err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("time", "seconds"), [("90", 5400), ("2:30", 150), ("24:00:00", 86400), ("2-00", 172800), ("1-2:30", 95400)]
)
def test_times_are_read_as_slurm_reads_them(time, seconds):
    assert seconds_of(time) == seconds


def test_a_misspelt_option_of_training_is_refused_with_the_right_one(monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, *SLURM, "--train", "tiny", "--mesh.fsdpp", "2")
    assert code == 2
    assert "--mesh.fsdp" in err


def test_a_dry_run_prints_and_writes_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(monkeypatch, capsys, *SLURM, "--train", "tiny", "--folder", "a b")
    assert code == 0
    assert "unimp train tiny --folder 'a b' ||" in out
    assert not list(tmp_path.iterdir())


def test_without_the_engine_nothing_is_written_and_it_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = run(monkeypatch, capsys, *SLURM, "--dry-run", "False", "--train", "tiny")
    assert code == 2
    assert "sbatch is not on PATH (" in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_engine_is_given_the_file(tmp_path):
    file, seen = tmp_path / "new" / "a b.txt", tmp_path / "seen"
    hand_over(Plan(file, "text\n", ("cp", str(file), str(seen)), "", (tmp_path / "logs",)))
    assert seen.read_text() == "text\n"
    assert (tmp_path / "logs").is_dir()
    assert [path.name for path in file.parent.iterdir()] == ["a b.txt"]
    with pytest.raises(ValueError, match="false ended with status 1"):
        hand_over(Plan(file, "text\n", ("false",), ""))


def test_only_what_follows_train_of_launch_is_gathered():
    assert (
        gather_training(["launch", "slurm", "--train", "tiny", "--folder", "a b"])[-1] == "--train=tiny --folder 'a b'"
    )
    assert gather_training(["evaluate", "--train", "x"]) == ["evaluate", "--train", "x"]
