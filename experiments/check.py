"""`unimp check`: checks whether a training command could run on a given number of devices, before it is queued.

It calls the functions that training itself calls, so a command is refused with the same error message. It uses no
device and writes only the token cache of the source, which training then reuses.
"""

import dataclasses
import errno
import importlib.util
import math
import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from jax.sharding import Mesh

from data_pipelines.object_store import is_remote
from data_pipelines.records import read_items, read_users
from experiments.config import ExperimentConfig, refuse_changes
from experiments.elastic import Machine, described, fitted
from experiments.parameters import abstract_parameters
from experiments.plan.command import GIB, mesh_words
from experiments.plan.plan import DoesNotFit, make_plan
from experiments.presets import read_training
from experiments.step import abstract_state, make_mesh_of
from experiments.train import configure, read_run
from unimp_jax.planning.chips import Slices, devices
from unimp_jax.planning.estimate import bytes_a_device
from unimp_jax.sharding import mesh_sizes, row_shards
from unimp_jax.training.checkpoint import Checkpoints


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """What the training is to run on, and what of it is checked."""

    devices: int | None = None
    """Total number of GPUs or TPU chips."""
    hosts: int | None = None
    """Number of processes, usually one per host. None: --processes.count of the training command, or one."""
    tpu: str | None = None
    """A TPU slice by its cloud name, instead of --devices: v5e-16, v6e-256 (chips), v5p-64 (cores, two per chip)."""
    num_slices: int = 1
    """Number of TPU slices."""
    files: bool = True
    """Check the data, the run folder and `init_from`. Set it to False if only the hosts can access them."""
    read_records: int = 100_000
    """Data with at most this many users and items in total is read and checked as at the start of training."""


def check_command(
    command: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="-- train PRESET ...")],
    config: Annotated[CheckConfig, tyro.conf.arg(name="")],
) -> None:
    """Check a training command for a number of devices before it is queued.

    Args:
      command: everything after `--`, the command to check: -- train tiny --folder runs/tiny

    Raises:
      ValueError: training would be refused on these devices, or does not fit into their memory.
      DataError, OSError: the data or the run folder is unusable.
    """
    if tuple(command[:1]) != ("train",):
        raise ValueError("check: give the training command last, after --, such as: -- train tiny --folder runs/tiny")
    training = read_training(command[1:])
    experiment = training.experiment
    slices = None if config.tpu is None else Slices(config.tpu, config.num_slices)
    machine_devices = devices_there(config, slices, config.hosts or training.processes.count or 1)
    machine = Machine(len(machine_devices), config.num_slices)
    experiment = fitted(experiment, training.folder if config.files else None, machine)
    mesh_sizes(experiment.mesh, machine.devices, machine.slices)  # the slices of stand-ins are unknown to the mesh
    mesh = make_mesh_of(experiment, machine_devices)
    print(f"mesh: {mesh_words(dict(mesh.shape))}, which makes {mesh.size} devices")
    if experiment.training.elastic:
        print(f"elastic: {described(experiment)}")
    print(rows_of_processes(experiment, mesh))
    if config.files:
        experiment = check_files(experiment, training.folder, config.read_records)
    else:
        print("data, folder: not checked (--files False)")
        if experiment.init_from is not None:
            print("memory: not computed, because the geometry of init_from is not read with --files False")
            return
    check_memory(experiment, training.folder if config.files else None, mesh, slices)


@dataclasses.dataclass(frozen=True)
class StandIn:
    """A placeholder for a device that is not available, with the attributes that a mesh reads."""

    id: int
    process_index: int
    platform: str = "gpu"
    device_kind: str = "stand-in"


def devices_there(config: CheckConfig, slices: Slices | None, hosts: int) -> list[Any]:
    """Returns the devices that training would have: with libtpu, TPUs in their topology, else placeholders in their
    order. Raises ValueError if the options do not describe a possible set of devices."""
    if (config.devices is None) == (slices is None):
        raise ValueError("check: give either --devices N or a slice of TPUs, such as --tpu v5e-16")
    if slices is not None and importlib.util.find_spec("libtpu") is not None:
        return list(devices(slices))
    count = (config.devices or 0) if slices is None else slices.chips
    if min(count, hosts, config.num_slices) < 1 or count % hosts:
        raise ValueError(f"check: {count} devices cannot be divided equally among {hosts} hosts")
    return [StandIn(number, number * hosts // count) for number in range(count)]


def rows_of_processes(experiment: ExperimentConfig, mesh: Mesh) -> str:
    """Describes the rows of a batch: their shape, and how many each process loads and each device computes."""
    rows, row_shape = experiment.loader.batch_size, experiment.row_shape
    processes = {device.process_index for device in mesh.devices.flat}
    loaded = [len(shards) * rows // count for shards, count in (row_shards(mesh, process) for process in processes)]
    of_each = f"{max(loaded)} of them loaded by each of {len(loaded)} processes, " if len(loaded) > 1 else ""
    at_a_time = rows // row_shards(mesh, 0)[1] // experiment.training.accumulate
    return (
        f"rows: {rows} per batch, {of_each}{at_a_time} at a time on a device; {row_shape.tokens:,} tokens, "
        f"{row_shape.images} images and {row_shape.answers} answer tokens per row"
    )


def check_files(experiment: ExperimentConfig, folder: Path, read_records: int) -> ExperimentConfig:
    """Checks the data and the run folder, prints what it finds, and returns the configuration that training would use:
    with the geometry of `init_from` and, if the data was read, the size of its vocabulary."""
    configured, before = configure(experiment, folder)
    data = experiment.data
    users, items = len(read_users(data.source, data.folder)), len(read_items(data.source, data.folder))
    print(f"data: {data.source} in {data.folder}, {users:,} users and {items:,} items")
    if users + items <= read_records:
        opened, configured = read_run(experiment, folder)
        for note in opened.check_training():
            print(f"data: {note}")
    else:
        print("data: not read (--read-records); training checks that every question fits into a row")
        if before is not None:
            sizes = {name: getattr(before.model.decoder, name) for name in ("vocab_size", "new_tokens", "content")}
            decoder = dataclasses.replace(configured.model.decoder, **sizes)
            configured = dataclasses.replace(configured, model=dataclasses.replace(configured.model, decoder=decoder))
            refuse_changes(before, configured, folder)
    check_folder(folder, configured)
    return configured


def check_folder(folder: Path, experiment: ExperimentConfig) -> None:
    """Checks that the run folder can be written, and prints the step at which training would start."""
    if not is_remote(folder):
        nearest = existing(folder)
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "", str(nearest))
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "", str(nearest))
    latest = None
    if (folder / "checkpoints").is_dir():
        with Checkpoints(folder / "checkpoints", experiment.checkpoint, reads_only=True) as checkpoints:
            latest = checkpoints.latest()
    whose = "" if folder.is_absolute() else " (relative to the working directory of each host)"
    steps = f"{experiment.loop.steps:,}"
    start = f"a run of {steps} steps starts" if latest is None else f"the run continues from step {latest:,} of {steps}"
    print(f"folder: {folder}{whose}, where {start}")


def existing(folder: Path) -> Path:
    """Returns the folder, or its nearest ancestor that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def check_memory(experiment: ExperimentConfig, folder: Path | None, mesh: Mesh, slices: Slices | None) -> None:
    """Prints the parameter counts, the size of the checkpoints (with a folder) and, for TPUs, the memory of a step."""
    decoder, tensor = experiment.model.decoder, mesh.shape["tensor"]
    decoder = dataclasses.replace(decoder, vocab_size=-(-decoder.vocab_size // tensor) * tensor)
    experiment = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, decoder=decoder))
    parameters = abstract_parameters(experiment, mesh)
    state = abstract_state(experiment, parameters.trainable, mesh)
    counts = [math.fsum(x.size for x in jax.tree.leaves(tree)) for tree in (parameters.trainable, parameters.frozen)]
    kept = (bytes_a_device(state) + bytes_a_device(parameters.frozen)) / GIB
    print(f"parameters: {counts[0]:,.0f} train, {counts[1]:,.0f} are frozen; {kept:.3f} GiB per device with moments")
    if folder is not None:
        of_leaves = ([x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)] for tree in (state, parameters.frozen))
        each, frozen = (math.fsum(sizes) / GIB for sizes in of_leaves)
        most = each * (experiment.checkpoint.keep_latest + 2) + frozen  # plus the best one and one being written
        free = "" if is_remote(folder) else f"; {shutil.disk_usage(existing(folder)).free / GIB:.1f} GiB are free"
        print(f"disk: {each:.3f} GiB per checkpoint, up to {most:.3f} GiB in all{free}")
    if slices is None:
        print("memory: the memory of a step is only known for TPUs (--tpu) and needs libtpu")
    elif importlib.util.find_spec("libtpu") is None:
        print("memory: to compute the memory of a step, install libtpu: pip install 'unimp_jax[tpu]'")
    else:
        estimate = make_plan(experiment, slices).estimate
        needed, available = estimate.memory.total / GIB, estimate.available / GIB
        if not estimate.fits:
            raise DoesNotFit(f"it does not fit {slices}: a device would need {needed:.2f} of {available:.0f} GiB")
        print(f"memory: {needed:.2f} of {available:.0f} GiB per device, as compiled for {slices}")
