"""A soak test: a run that is killed again and again must end as one that never was.

    python -m tests.experiments.soak --folder runs/soak --kills 50 --seed 0

One run is left alone. Another, by the same command, is sent SIGKILL, SIGTERM or both at random moments, and is started
again each time. In the end the latest and the best checkpoint, the log but for timings and all other files must be the
same, bit for bit. The exit status is 1 where something differs, or where a process ends otherwise than by the signal.
With `--store s3://BUCKET/FOLDER` both runs lie in an object store.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tyro

from data_pipelines import object_store
from data_pipelines.object_store import is_remote, make_path
from experiments.config import load_config
from unimp_jax.training.checkpoint import Checkpoints
from unimp_jax.training.log import read_log
from unimp_jax.training.object_store import is_saved

CORES = len(os.sched_getaffinity(0))
SIGNALS = [SIGTERM], [SIGKILL], [SIGTERM, SIGKILL]
TRAIN = (
    "train tiny --loop.log-every 3 --loop.save-every 6 --loop.validate-every 30 --training.validation-users 32 "
    "--training.trains resampler gated embeddings"
)
Process = subprocess.Popen[bytes]
TIMINGS = re.compile(r"\w+_per_second|\w+_seconds|waiting_share|mfu|goodput")


def train(run: Path, data: str, steps: int, printed: Path) -> Process:
    """Starts a process that trains in `run`; `printed` gets what is printed, and its folder what is compiled."""
    own = f" --folder {run} --data.folder {data} --loop.steps {steps} --loader.batch-size {CORES}"
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}  # each core is a device
    environment["JAX_COMPILATION_CACHE_DIR"] = str(printed.with_name("compiled").absolute())
    command = [sys.executable, "-u", "-m", "experiments.cli", *(TRAIN + own).split()]
    with printed.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)


def wait(process: Process, condition: Callable[[], object] = lambda: False, seconds: float = 1800.0) -> None:
    """Returns when the process is over, when the condition holds, or after so many seconds."""
    until = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until and not condition():
        time.sleep(0.002)


def end(process: Process, printed: Path, allowed: Collection[int] = (0,)) -> None:
    """Waits for the end of the process; another status than the allowed ones ends the soak."""
    wait(process)
    if process.poll() not in allowed:  # None if it goes on after half an hour
        process.kill()
        text = printed.read_text(encoding="utf-8", errors="replace")
        sys.exit(f"FAILED: exit status {process.wait()}, which is not of {allowed}:\n{text}")


def disturb(process: Process, run: Path, printed: Path, goal: int, start: float, signals: list[Signals]) -> None:
    """Sends signals while the process starts, which takes `start` seconds, or, from step `goal` on, trains or saves."""
    when = random.choice(["starting", "training", "training", "saving"])
    wait(process, lambda: logged(run) >= goal, random.uniform(0.0, start) if when == "starting" else 1800.0)
    if when == "saving":
        wait(process, lambda: is_saving(run / "checkpoints"))
    time.sleep({"starting": 0.0, "training": 0.5, "saving": 0.08}[when] * random.random())
    allowed = allowed_statuses(signals, begun=b"loss=" in printed.read_bytes())
    for one in signals:
        process.send_signal(one)
        time.sleep(random.uniform(0.0, 0.4))
    end(process, printed, allowed)
    names = " + ".join(one.name for one in signals)
    print(f"{names:<17} {when:<8} step {logged(run):>4}, status {process.returncode}", flush=True)


def is_saving(checkpoints: Path) -> bool:
    if is_remote(checkpoints):
        return not all(is_saved(step) for step in checkpoints.glob("*"))
    return any(checkpoints.glob("*.orbax-checkpoint-tmp"))


def allowed_statuses(signals: list[Signals], begun: bool) -> set[int]:
    """Once a run has begun, SIGTERM makes it save and end with 0; before that SIGTERM ends it as any program."""
    asked = {0} if begun else {0, -SIGTERM}
    return (asked if SIGTERM in signals else set()) | ({-SIGKILL} if SIGKILL in signals else set())


def logged(run: Path) -> int:
    """The last step in the log."""
    return max((line["step"] for line in read_log(run / "metrics.jsonl")), default=0)


def differences(right: Path, run: Path) -> list[str]:
    """What is not the same at the end of two runs, or is there in one of them only."""
    one, other = dict(contents(right)), dict(contents(run))
    return [f"{name} differs" for name in one | other if one.get(name) != other.get(name)]


def contents(run: Path) -> Iterator[tuple[str, Any]]:
    """All that must be the same at the end, by name; paths without what differs from run to run, the numbers of steps,
    names of chunks, times and machines."""
    varies = re.compile(r"(?<=^checkpoints/)\d+|(?<=/d/)[0-9a-f]+$|(?<=^tensorboard/events).*")
    for path in run.rglob("*"):
        yield varies.sub("*", path.relative_to(run).as_posix()), "is there"
    for path in (run / "config.json", *(run / "vocabulary").iterdir()):
        if path.name != object_store.MARK:  # which says who wrote it
            yield f"the content of {path.name}", path.read_bytes()
    for number, line in enumerate(read_log(run / "metrics.jsonl"), start=1):
        yield f"metrics.jsonl, line {number}", {key: x for key, x in line.items() if not TIMINGS.fullmatch(key)}
    with Checkpoints(run / "checkpoints", load_config(run / "config.json").checkpoint, reads_only=True) as checkpoints:
        steps = {"the latest step": checkpoints.latest(), "the best step": checkpoints.best()}
    yield from steps.items()
    folders = {name: run / "checkpoints" / str(step) for name, step in steps.items()}
    yield from ((f"{name}: notes", (folder / "notes" / "metadata").read_bytes()) for name, folder in folders.items())
    for name, folder in {"frozen": run / "frozen", **{name: at / "state" for name, at in folders.items()}}.items():
        with ocp.StandardCheckpointer() as checkpointer:
            for path, x in jax.tree.leaves_with_path(checkpointer.restore(folder.absolute())):
                yield f"{name}: {jax.tree_util.keystr(path)}", (x.dtype, x.shape, np.asarray(x).tobytes())


def copied(run: Path, folder: Path) -> Path:
    object_store.store(run).get(str(run), str(folder), recursive=True)
    return folder


def main(
    folder: Path = Path("runs/soak"),
    data: str = "data",
    kills: int = 50,
    steps: int = 300,
    seed: int = 0,
    store: str | None = None,
) -> None:
    """Trains `steps` steps of MovieLens small, prepared in `data`, in two runs in `folder`, and compares them.

    Args:
      store: a URL; the runs are there, and are copied into `folder` in the end.
    """
    jax.config.update("jax_platforms", "cpu")  # it only compares; an accelerator is for those that train
    jax.config.update("jax_num_cpu_devices", CORES)
    folder.mkdir(parents=True)
    place, printed = folder if store is None else make_path(store), folder / "printed.txt"
    right, run = place / "undisturbed", place / "disturbed"
    for _ in range(2):  # the second time it only starts, and is over
        begin = time.monotonic()
        end(train(right, data, steps, printed), printed)
    start = time.monotonic() - begin
    random.seed(seed)
    for kill, signals in enumerate(random.choices(SIGNALS, [9, 9, 2], k=kills), start=1):
        at = logged(run)
        goal = random.randint(at + 1, max(at + 1, int(0.9 * steps * kill / kills)))  # the last signal finds it running
        disturb(train(run, data, steps, printed), run, printed, goal, start, signals)
    end(train(run, data, steps, printed), printed)
    if store is not None:
        right, run = (copied(one, folder / one.name) for one in (right, run))
    if wrong := differences(right, run):
        sys.exit("FAILED: " + "\n".join(wrong))
    print(f"{kills} kills: the same bit for bit, and nothing is left behind")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
