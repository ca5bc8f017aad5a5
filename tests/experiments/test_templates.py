"""Templates for clusters: shells and YAML take them, the training in each is one that `unimp` takes, and a job is begun
again until its last step is saved."""

import ast
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from experiments import check
from experiments.check import CheckConfig
from experiments.presets import Training, read_training

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "experiments" / "launch"
TEMPLATES = ("slurm.sbatch", "xpk.sh", "skypilot.yaml")
AGAIN = 42
"""On this status XPK and SkyPilot start a job again."""
ENVIRONMENT = {"SLURM_JOB_ID": "7", "SKYPILOT_NODE_IPS": "host1\nhost2", "SKYPILOT_NUM_NODES": "2"}
ENVIRONMENT |= {"SKYPILOT_NODE_RANK": "1", "PYTHONPATH": str(ROOT)}
STAND_INS = {
    "srun": 'while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"',
    "scontrol": 'echo "scontrol $*"',
    "xpk": 'for word; do printf "%s\\0" "$word"; done',
    "python": f'exec {sys.executable} "$@"',
}


def write_programs(folder: Path, **programs: str) -> Path:
    """A folder for PATH with shell scripts by these names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{lines}\n")
        (folder / name).chmod(0o755)
    return folder


def run(script: str, folder: Path, unimp: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script where `unimp` is this, and what engines have is stood in for."""
    programs = write_programs(folder / "programs", unimp=unimp, **STAND_INS)
    path = {"PATH": f"{programs}{os.pathsep}/usr/bin{os.pathsep}/bin"}
    return subprocess.run(
        ["bash", "-c", script], env=path | ENVIRONMENT | environment, capture_output=True, text=True, timeout=120
    )


def options_of_xpk(folder: Path, text: str) -> list[str]:
    """What the template gives to XPK."""
    return run(text, folder, "").stdout.split("\0")[:-1]


def on_disk(text: str) -> str:
    """A template for a shared disk, where its own is for a bucket, which is looked for where it is read."""
    return text.replace("gs://BUCKET/", "/shared/")


def script(name: str, folder: Path, run_folder: str = "/shared/3b", steps: int = 20000) -> str:
    """What runs on hosts, where the folder of the run and the number of steps are these."""
    text = on_disk((FOLDER / name).read_text())
    changed = text.replace("FOLDER=/shared/3b", f"FOLDER={shlex.quote(run_folder)}")
    changed = changed.replace("STEPS=20000", f"STEPS={steps}")
    assert changed.count(shlex.quote(run_folder)) >= 1
    if name == "xpk.sh":
        return options_of_xpk(folder, changed)[-1].removeprefix("--command=")
    return yaml.safe_load(changed)["run"] if name == "skypilot.yaml" else changed


def training_of(name: str, folder: Path, run_folder: str = "/shared/3b") -> Training:
    """What `unimp` is given by the template, read by the parser of `unimp train`."""
    keeps = f'printf "%s\\n" "$@" > {folder}/words; exit 3'
    assert run(script(name, folder, run_folder), folder, keeps).returncode == 3
    train, *words = (folder / "words").read_text().splitlines()
    assert train == "train"
    return read_training(words)


@pytest.mark.parametrize("name", TEMPLATES)
def test_shells_take_the_scripts(name, tmp_path):
    files = [script(name, tmp_path), *([] if name == "skypilot.yaml" else [(FOLDER / name).read_text()])]
    for text in files:
        checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("run_folder", ["/shared/3b", "/shared/my runs/a 3b"])
def test_the_training_is_one_that_unimp_takes(name, run_folder, tmp_path):
    read = training_of(name, tmp_path, run_folder)
    assert (read.folder, read.experiment.loop.steps) == (Path(run_folder), 20_000)
    told = (read.processes.coordinator, read.processes.count, read.processes.index)
    assert told == (("host1:8476", 2, 1) if name == "skypilot.yaml" else (None, None, None))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_check_at_its_head_is_of_its_training_and_passes(name, tmp_path, monkeypatch, capsys):
    """The devices are those that it asks the engine for."""
    (line,) = re.findall(r"^# +unimp (check .*)$", on_disk((FOLDER / name).read_text()), re.MULTILINE)
    words = shlex.split(line)
    options, command = words[1 : words.index("--")], words[words.index("--") + 1 :]
    checked, real = read_training(command[1:]), training_of(name, tmp_path)
    assert (checked.folder, checked.experiment) == (real.folder, real.experiment)
    told = dict(zip(options[::2], options[1::2], strict=True))
    text = (FOLDER / name).read_text()
    if name == "slurm.sbatch":
        nodes, gpus = (int(re.search(rf"#SBATCH --{option}=(\d+)", text)[1]) for option in ("nodes", "gpus-per-node"))
        assert (told["--devices"], told["--hosts"]) == (str(nodes * gpus), str(nodes))
    elif name == "xpk.sh":
        assert f"--tpu-type={told['--tpu']}" in text
        assert f"--num-slices={told['--num-slices']}" in text
    else:
        task = yaml.safe_load(text)
        gpus = int(task["resources"]["accelerators"].partition(":")[2])
        assert (told["--devices"], told["--hosts"]) == (str(task["num_nodes"] * gpus), str(task["num_nodes"]))
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda _: None)  # nothing is compiled
    given = {name.removeprefix("--").replace("-", "_"): value for name, value in told.items() if name != "--files"}
    given = {name: value if name == "tpu" else int(value) for name, value in given.items()}
    check.check_command(command, CheckConfig(files=False, **given))
    assert "mesh: slice=" in capsys.readouterr().out


def test_slurm_is_reported_to_signal_ahead_and_to_requeue():
    lines = re.findall(r"^#SBATCH (.*)$", (FOLDER / "slurm.sbatch").read_text(), re.MULTILINE)
    assert all(re.fullmatch(r"--[a-z-]+(=\S+)?", line) for line in lines)
    assert {"--signal=TERM@300", "--requeue", "--open-mode=append", "--exclusive"} <= set(lines)


def test_each_process_has_the_gpus_it_should():
    """Under SLURM, JAX gives a process the GPU of its number on the node, and no other, unless told."""
    text = (FOLDER / "slurm.sbatch").read_text()
    gpus = int(re.search(r"#SBATCH --gpus-per-node=(\d+)", text)[1])
    assert f"export JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(gpus)))}\n" in text
    assert "#SBATCH --ntasks-per-node=1\n" in text
    assert "--gpu-bind=none" in text


def test_xpk_is_given_one_line_and_its_options(tmp_path):
    words = options_of_xpk(tmp_path, (FOLDER / "xpk.sh").read_text())
    assert words[:2] == ["workload", "create"]
    assert all(re.fullmatch(r"--[a-z-]+=\S+", word) for word in words[2:-1])
    assert {"--max-restarts=50", "--termination-grace-period-seconds=300"} <= set(words)
    assert re.fullmatch(r"--workload=[a-z]([-a-z0-9]{0,38}[a-z0-9])?", words[2])
    assert "\n" not in words[-1]


def test_skypilot_recovers_what_is_not_whole():
    task = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [AGAIN, 143]
    assert re.search(r"^FOLDER=gs://", task["run"], re.MULTILINE)  # else it would be lost with its host
    assert set(task) == {"name", "num_nodes", "resources", "workdir", "setup", "run"}


@pytest.mark.parametrize("name", ["xpk.sh", "skypilot.yaml"])
@pytest.mark.parametrize(
    ("status", "whole", "ends"), [(0, True, 0), (0, False, AGAIN), (3, False, 3), (3, True, 3), (143, False, 143)]
)
def test_a_training_is_done_when_its_last_step_is_saved(name, tmp_path, status, whole, ends):
    if whole:
        (tmp_path / "a run" / "checkpoints" / "30").mkdir(parents=True)
    text = script(name, tmp_path, str(tmp_path / "a run"), steps=30)
    assert run(text, tmp_path, f"exit {status}").returncode == ends


@pytest.mark.parametrize("name", ["xpk.sh", "skypilot.yaml"])
def test_sigterm_reaches_training_and_is_waited_for(name, tmp_path):
    saves = f"trap 'sleep 0.3; touch {tmp_path}/saved; exit 0' TERM; touch {tmp_path}/begun; "
    saves += "while true; do sleep 0.05; done"
    text = script(name, tmp_path, str(tmp_path / "run"), steps=30)
    programs = write_programs(tmp_path / "programs", unimp=saves, python=STAND_INS["python"])
    environment = ENVIRONMENT | {"PATH": f"{programs}{os.pathsep}/usr/bin{os.pathsep}/bin"}
    running = subprocess.Popen(["bash", "-c", text], env=environment)
    wait_for(tmp_path / "begun")
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=120) == AGAIN
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
    """A failure is left a failure."""
    if whole:
        (tmp_path / "checkpoints" / "30").mkdir(parents=True)
    text = script("slurm.sbatch", tmp_path, str(tmp_path), steps=30)
    ended = run(text, tmp_path, f"exit {status}", SLURM_RESTART_COUNT=str(restarts))
    assert ("scontrol requeue 7" in ended.stdout, ended.returncode) == (requeued, ends)


def test_templates_travel_in_the_package():
    setup = next(node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if isinstance(node, ast.Call)
                 and getattr(node.func, "id", "") == "setup")  # fmt: skip
    patterns = next(ast.literal_eval(word.value) for word in setup.keywords if word.arg == "package_data")
    found = {path for pattern in patterns["experiments"] for path in (ROOT / "experiments").glob(pattern)}
    assert {FOLDER / name for name in TEMPLATES} <= found
    assert {path.name for path in FOLDER.iterdir() if path.is_file()} == set(TEMPLATES)
