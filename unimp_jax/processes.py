"""Several processes as one: JAX's distributed runtime, joined by flags or by what JAX detects of a cluster."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


@dataclasses.dataclass(frozen=True)
class ProcessesConfig:
    """How the processes of a run find one another. On TPU VMs, under SLURM's srun, Open MPI, GKE and in indexed jobs of
    Kubernetes, JAX detects it and nothing need be said."""

    coordinator: str | None = None
    """Address of process 0, `host:port`; with `count` and `index`, where nothing is detected."""
    count: int | None = None
    """So many processes."""
    index: int | None = None
    """Which one this is, from 0."""
    together: bool | None = None
    """Whether this process is one of several. None: where the flags above, or what JAX detects, say so."""
    wait_seconds: int = 300
    """So long processes wait for one another at the start."""

    def __post_init__(self) -> None:
        told = [self.coordinator, self.count, self.index]
        if any(x is not None for x in told) and None in told:
            raise ValueError("processes: coordinator, count and index go together; or none, for what JAX detects")
        if self.coordinator is not None and not self.coordinator.rpartition(":")[2].isdigit():
            raise ValueError(f"processes: coordinator {self.coordinator!r} is not HOST:PORT, as node0:1234")
        if self.count is not None and self.index is not None and not 0 <= self.index < self.count:
            raise ValueError(f"processes: index {self.index} is not below count {self.count}, from 0 on")
        if self.wait_seconds < 1:
            raise ValueError(f"processes: wait-seconds {self.wait_seconds} must be at least 1")


def join(config: ProcessesConfig) -> None:
    """Makes the processes of a run one; to be called before anything is computed. A process of its own stays so.

    SIGTERM goes on to end a process at once, as JAX's preemption service would not let it, until `end_together`.

    Raises:
      ValueError: the others are not found, or are visible without having been joined.
    """
    told = started(os.environ)
    must = config.coordinator is not None or bool(config.together) or (config.together is None and (told or 0) > 1)
    if must or (config.together is None and told is None):
        _initialize(config, must)
    check_joined()


def started(environment: Mapping[str, str]) -> int | None:
    """How many processes a launcher says it has started together; None where none says, and JAX is to look.

    JAX's detection takes some single processes for one of several, which would wait for others that never come: the
    shell of a SLURM job, a notebook on Kubernetes, a host of TPUs that is to use its CPUs.
    """

    def number(name: str) -> int | None:
        return int(environment[name]) if environment.get(name, "").isdigit() else None

    for name in ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "PMI_SIZE"):
        if (size := number(name)) is not None:
            return size
    platforms = environment.get("JAX_PLATFORMS", "tpu")
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if hosts and "tpu" in platforms:
        return len(hosts.split(",")) * (number("MEGASCALE_NUM_SLICES") or 1)
    if environment.keys() & {"SLURM_STEP_NODELIST", "JOB_COMPLETION_INDEX", "JAX_COORDINATOR_ADDRESS"}:
        return None
    return 1 if "tpu" not in platforms or "KUBERNETES_SERVICE_HOST" in environment else None


def _initialize(config: ProcessesConfig, must: bool) -> None:
    """Joins; where nothing is detected and nothing `must`, it leaves the process on its own."""
    options: dict[str, Any] = {}
    if config.coordinator is not None:
        options = dict(coordinator_address=config.coordinator, num_processes=config.count, process_id=config.index)
    elif _needs_mpi4py(os.environ):
        options = dict(cluster_detection_method="mpi4py")
    place = config.coordinator or "the coordinator that JAX detected"
    # JAX itself would abort the process then, with a stack of C++.
    watch = threading.Timer(config.wait_seconds, _give_up, [config.wait_seconds, place])
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(**options, initialization_timeout=config.wait_seconds + 60)
        _preemption_handlers.append(_handle_sigterm(None))
    except Exception as error:  # by the kind of cluster: of its metadata, its packages, its network
        nothing = isinstance(error, OSError | ImportError) or any(words in str(error) for words in NOTHING)
        if must or not nothing:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise ValueError(
                f"processes: they could not be joined at {place} ({reason}); check that the address is of process 0 "
                "and its port free, and that srun, Open MPI (with mpi4py, from Open MPI 5 on), GKE or a TPU VM started "
                "them; or give --processes.coordinator HOST:PORT --processes.count N --processes.index I, or "
                "--processes.together False for a process of its own"
            ) from error
    finally:
        watch.cancel()


NOTHING = ("coordinator_address should be defined", "must be called before any JAX calls")
"""What JAX says where it detects no cluster, or was used before as by a process of its own."""


def _needs_mpi4py(environment: Mapping[str, str]) -> bool:
    """Whether MPI has started this process in a way that JAX detects only when told to ask mpi4py."""
    if "OMPI_COMM_WORLD_SIZE" in environment:
        return "OMPI_MCA_orte_hnp_uri" not in environment
    return "PMI_SIZE" in environment and "SLURM_STEP_NODELIST" not in environment


def _give_up(seconds: int, place: str) -> None:
    print(
        f"unimp: processes: after {seconds} s not all of them have met at {place}; check that all were started, with "
        "the same address and count, that the address is of process 0, and that no firewall closes its port",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def check_joined() -> None:
    """
    Raises:
      ValueError: devices of other processes are visible, and what makes all of them save and end together is not set
        up.
    """
    processes = jax.process_count()
    if processes > 1 and not (jax.distributed.is_initialized() and jax.config.jax_enable_preemption_service):
        raise ValueError(
            f"processes: devices of {processes} processes are visible, but jax.distributed with its preemption service "
            "is not set up, so a run that is asked to end would save nothing; leave out --processes.together False and "
            "JAX_ENABLE_PREEMPTION_SERVICE=0, or give --processes.coordinator, --processes.count and --processes.index"
        )


_preemption_handlers: list[int | None] = []
"""The address of the handler of SIGTERM that JAX's preemption service installed, once `join` has replaced it."""


def end_together() -> None:
    """From now on SIGTERM asks all to end at one step, which `multihost_utils.reached_preemption_sync_point` tells."""
    if _preemption_handlers:
        _handle_sigterm(_preemption_handlers[-1])


def _handle_sigterm(handler: int | None) -> int | None:
    """Installs a handler by its address, which Python cannot; returns the one before. None: the system's own."""
    install = ctypes.CDLL(None).signal
    install.argtypes, install.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    return install(signal.SIGTERM, handler)


def leave_others(status: int, why: str) -> None:
    """Prints why and ends this process, where it is one of several; does nothing where it is on its own.

    Where the others fail as well, all leave JAX's distributed runtime together. Else they wait for this process in a
    collective, and it would wait for them as long as the runtime does, for minutes. Once it is gone, the runtime ends
    them.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        print(why, end="", file=sys.stderr, flush=True)
        together = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        together.start()
        together.join(PATIENCE)
        os._exit(status)


PATIENCE = 10.0
"""Seconds that a process which failed waits for others that fail, too."""


def of_first(number: int) -> int:
    """The number that the first process has, on every process; all must call this together.

    For what is seen of a file system, which may show some processes less, or other things, than the first one.
    """
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def wait_for_all(reason: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(reason)


def print_once(text: str) -> None:
    """Prints on the first of several processes."""
    if jax.process_index() == 0:
        print(text)
