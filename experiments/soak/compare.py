"""Whether two runs are the same run, and whether one has left anything behind."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.config import load_config
from unimp_jax.training.checkpoint import Checkpoints
from unimp_jax.training.log import read_log

TIMINGS = (
    "step_seconds",
    "waiting_share",
    "tokens_per_second",
    "examples_per_second",
    "images_per_second",
    "answers_per_second",
    "mfu",
)
"""What the log says of speed; all else depends on results alone."""


def compare(undisturbed: Path, disturbed: Path) -> Iterator[str]:
    """Each way in which the end of one run differs from that of the other."""
    for name in ("config.json", *_below(undisturbed, "vocabulary")):
        ours = disturbed / name
        if not ours.is_file() or ours.read_bytes() != (undisturbed / name).read_bytes():
            yield f"{name} differs, or is missing"
    yield from compare_logs(read_results(undisturbed), read_results(disturbed))
    steps = {
        "latest": (steps_of(undisturbed)[-1], steps_of(disturbed)[-1]),
        "best": (best(undisturbed), best(disturbed)),
    }
    for name, (step, other) in steps.items():
        if step != other:
            yield f"the {name} checkpoint is of step {other}; {step} is right"
            continue
        place = Path("checkpoints") / str(step)
        yield from compare_trees(undisturbed, disturbed, place / "state")
        if (undisturbed / place / "notes" / "metadata").read_bytes() != (
            disturbed / place / "notes" / "metadata"
        ).read_bytes():
            yield f"{place}/notes differ"
    yield from compare_trees(undisturbed, disturbed, Path("frozen"))


def read_results(run: Path) -> list[dict[str, Any]]:
    """The lines of the log, without timings."""
    return [
        {name: value for name, value in line.items() if name not in TIMINGS} for line in read_log(run / "metrics.jsonl")
    ]


def compare_logs(right: list[dict[str, Any]], ours: list[dict[str, Any]]) -> Iterator[str]:
    """The first line that differs."""
    for number, (one, other) in enumerate(itertools.zip_longest(right, ours), start=1):
        if one != other:
            yield f"metrics.jsonl, line {number}: {other}; {one} is right"
            return


def compare_trees(undisturbed: Path, disturbed: Path, place: Path) -> Iterator[str]:
    """Each array that is not the same, bit for bit."""
    right, ours = read_arrays(undisturbed / place), read_arrays(disturbed / place)
    for name in dict.fromkeys([*right, *ours]):
        if name not in ours or name not in right:
            yield f"{place}: only one run has {name}"
        elif (right[name].dtype, right[name].shape, right[name].tobytes()) != (
            ours[name].dtype,
            ours[name].shape,
            ours[name].tobytes(),
        ):
            yield f"{place}: {name} differs"


def leftovers(undisturbed: Path, disturbed: Path) -> Iterator[str]:
    """What a run that is over should not have: files that the other has none like, checkpoints that cannot be read."""
    kinds = {kind(path) for path in _below(undisturbed)}
    for path in _below(disturbed, folders=True):
        if kind(path) not in kinds and not any(known.startswith(f"{kind(path)}/") for known in kinds):
            yield f"{path} is left behind"
    for step in steps_of(disturbed):
        try:
            read_arrays(disturbed / "checkpoints" / str(step) / "state")
        except Exception as error:  # Orbax raises errors of many classes
            yield f"checkpoint {step} cannot be read: {str(error).splitlines()[0]}"
    config = load_config(disturbed / "config.json").checkpoint
    most = config.keep_latest + 1
    if len(steps_of(disturbed)) > most:
        yield f"{len(steps_of(disturbed))} checkpoints are kept: {most}, the best one among them, is right"


def kind(path: str) -> str:
    """A path without what differs from run to run: steps, names of chunks, times and machines."""
    path = re.sub(r"^checkpoints/\d+(?=/|$)", "checkpoints/STEP", path)
    path = re.sub(r"(^|/)d/[0-9a-f]+$", r"\1d/CHUNK", path)
    return re.sub(r"^tensorboard/events\.out\.tfevents\..+$", "tensorboard/EVENTS", path)


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a saved tree by name, wherever they lay."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        described = checkpointer.metadata(folder.absolute()).item_metadata.tree
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), described)
        tree = checkpointer.restore(folder.absolute(), shapes)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def steps_of(run: Path) -> list[int]:
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())


def best(run: Path) -> int | None:
    """As evaluation would have it."""
    with Checkpoints(run / "checkpoints", load_config(run / "config.json").checkpoint, reads_only=True) as checkpoints:
        return checkpoints.best()


def _below(run: Path, inside: str = "", folders: bool = False) -> list[str]:
    found = sorted((run / inside).rglob("*"))
    return [path.relative_to(run).as_posix() for path in found if folders or path.is_file()]
