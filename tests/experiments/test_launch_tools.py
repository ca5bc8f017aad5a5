"""The engines' own programs read what `unimp launch` writes, and refuse it where one thing in it is wrong.

XPK and SkyPilot are looked for in virtual environments of their own (`.ci/run` makes them: what they require and what
this project requires need not fit), then on PATH.
"""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from experiments.launch import plan
from experiments.launch.skypilot import SkyPilotConfig
from experiments.launch.slurm import SlurmConfig
from experiments.launch.tpus import tpu_devices
from experiments.launch.xpk import XpkConfig
from tests.experiments.test_launch import CONFIGS, job

ROOT = Path(__file__).resolve().parents[2]
SLURM_CONF = "ClusterName=none\nSlurmctldHost=localhost\nSlurmctldPort=1\nGresTypes=gpu\nMessageTimeout=2\n"
SLURM_CONF += "NodeName=none\nPartitionName=none Nodes=none\n"


def tool(name: str, environment: str, install: str) -> str:
    """Its path; without it the test is skipped."""
    found = shutil.which(name, path=f"{ROOT / environment / 'bin'}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed ({install})")
    return found


def sbatch(text: str, folder: Path) -> str:
    """What sbatch understands, or says is wrong, before it looks for a cluster; here there is none."""
    program = tool("sbatch", ".", "apt-get install slurm-client")
    (folder / "slurm.conf").write_text(SLURM_CONF)
    (folder / "job.sbatch").write_text(text)
    asked = subprocess.run(
        ["timeout", "3", program, "-vv", "job.sbatch"],
        cwd=folder,
        env={**os.environ, "SLURM_CONF": str(folder / "slurm.conf")},
        capture_output=True,
        text=True,
    )
    return asked.stderr


FULL = SlurmConfig(
    train="",
    nodes=4,
    gpus_per_node=8,
    gpu_type="h100",
    partition="gpu",
    account="me",
    constraint="a|b",
    time="1-00",
    logs=Path("my logs"),
    options=("--qos=long",),
)


def test_sbatch_understands_each_line(tmp_path):
    told = sbatch(plan(FULL, job("tiny", "--mesh.data", "4", "--mesh.context", "8")).text, tmp_path)
    understood = dict(line.removeprefix("sbatch: ").split(":", 1) for line in told.splitlines() if " : " in line)
    understood = {name.strip(): value.strip() for name, value in understood.items()}
    assert understood["output"] == f"{tmp_path}/my logs/%x-%j.log"
    assert understood["gpus-per-node"] == "h100:8"
    assert understood["signal"] == "TERM@300"
    assert understood["time"] == "1-00:00:00"
    for name in ("account", "constraint", "exclusive", "nodes", "ntasks-per-node", "open-mode", "qos", "requeue"):
        assert name in understood
    assert "invalid" not in told.lower()


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("--requeue", "--requeu-e", "unrecognized option"),
        ("--signal=TERM@300", "--signal=TERN@300", "--signal"),
        ("--time=1-00", "--time=a-day", "--time"),
    ],
)
def test_sbatch_refuses_a_wrong_line(tmp_path, right, wrong, message):
    text = plan(FULL, job("tiny", "--mesh.data", "4", "--mesh.context", "8")).text
    assert right in text
    told = sbatch(text.replace(right, wrong), tmp_path)
    assert message in told
    assert "requeue             : requeue" not in told


def xpk(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """XPK's own dry run, which writes what it would give to Kubernetes into `folder`."""
    program = tool("xpk", ".venv-xpk", "pip install xpk")
    dry = ["--project=p", "--zone=us-east5-a", "--dry-run", "--skip-validation", f"--output-manifest-file={folder}/m"]
    return subprocess.run(
        [program, *command[1:], *dry],
        cwd=folder,
        env={**os.environ, "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_xpk_makes_a_jobset_of_the_command(tmp_path):
    planned = plan(CONFIGS["xpk"], job())
    made = xpk(list(planned.command), tmp_path)
    assert made.returncode == 0, made.stdout + made.stderr
    spec = yaml.safe_load((tmp_path / "m").read_text())["spec"]
    (slices,) = spec["replicatedJobs"]
    pods = slices["template"]["spec"]
    (container,) = pods["template"]["spec"]["containers"]
    assert (spec["failurePolicy"]["maxRestarts"], slices["replicas"]) == (50, 2)
    assert pods["template"]["spec"]["terminationGracePeriodSeconds"] == 300
    assert 42 in pods["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]  # of these it restarts
    script = container["command"][-1]
    assert planned.command[-1].removeprefix("--command=") in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


@pytest.mark.parametrize("kind", ["v4-64", "v5p-64", "v5litepod-16", "v6e-256"])
def test_slices_have_as_many_chips_as_xpk_says(tmp_path, kind):
    config = XpkConfig(train="", cluster="c", tpu_type=kind, docker_image="i")
    planned = plan(config, job("tiny", "--folder", "/a", "--loader.rows", "256"))
    assert xpk(list(planned.command), tmp_path).returncode == 0
    (slices,) = yaml.safe_load((tmp_path / "m").read_text())["spec"]["replicatedJobs"]
    pods = slices["template"]["spec"]
    (container,) = pods["template"]["spec"]["containers"]
    assert pods["parallelism"] * int(container["resources"]["limits"]["google.com/tpu"]) == tpu_devices(kind)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("--tpu-type=v5p-16", "--tpu-type=v5p-15"), ("--max-restarts", "--max-restart-s"), ("=medium", "=middling")],
)
def test_xpk_refuses_a_wrong_word(tmp_path, right, wrong):
    command = list(plan(CONFIGS["xpk"], job()).command)
    changed = [word.replace(right, wrong) for word in command]
    assert changed != command
    assert xpk(changed, tmp_path).returncode != 0


def sky(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What SkyPilot makes of a task, by its schema and its own classes."""
    python = Path(tool("sky", ".venv-skypilot", "pip install skypilot")).with_name("python")
    (folder / "task.yaml").write_text(text)
    program = 'import sky; t = sky.Task.from_yaml("task.yaml"); print(t.num_nodes, list(t.resources)[0]); print(t.run)'
    environment = {**os.environ, "HOME": str(folder)}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(
        [python, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CONFIGS["skypilot"], "2 <Cloud>([Spot], {'H100': 8})"),
        (SkyPilotConfig(train="", accelerators="tpu-v5p-16", storage="gs://b", infra="gcp"), "'tpu-v5p-16': 1"),
    ],
)
def test_skypilot_reads_the_task(tmp_path, config, expected):
    planned = plan(config, job("tiny", "--folder", "/shared/my run", "--loader.rows", "16"))
    read = sky(planned.text, tmp_path)
    assert read.returncode == 0, read.stderr
    assert expected in read.stdout
    assert shlex.quote("/shared/my run") in read.stdout


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("num_nodes:", "num_node:", "did you mean 'num_nodes'"),
        ("- 143", "- 1430", "1430 is greater than the maximum"),
        ("mode: MOUNT", "mode: MOUNTED", "MOUNTED"),
    ],
)
def test_skypilot_refuses_a_wrong_task(tmp_path, right, wrong, message):
    text = plan(CONFIGS["skypilot"], job()).text
    assert right in text
    refused = sky(text.replace(right, wrong), tmp_path)
    assert refused.returncode != 0
    assert message in refused.stderr
