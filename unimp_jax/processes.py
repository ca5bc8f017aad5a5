"""Runs with several processes: joins JAX's distributed runtime, configured by flags or detected from the cluster."""

import ctypes
import dataclasses
import itertools
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils


@dataclasses.dataclass(frozen=True)
class ProcessesConfig:
    """How the processes of a run find one another.

    JAX detects this on TPU VMs, under SLURM's srun, Open MPI and GKE, and in indexed Kubernetes jobs.
    """

    coordinator: str | None = None
    """Address of process 0, `host:port`; with `count` and `index`, if nothing is detected."""
    count: int | None = None
    """Number of processes."""
    index: int | None = None
    """Number of this process, from 0."""
    together: bool | None = None
    """Whether this process is one of several. None: as the flags above or JAX's detection say."""
    wait_seconds: int = 300
    """Seconds that processes wait for one another at the start."""

    def __post_init__(self) -> None:
        settings = [self.coordinator, self.count, self.index]
        if any(x is not None for x in settings) and None in settings:
            raise ValueError(
                "processes: give coordinator, count and index together, or none of them to use what JAX detects"
            )
        if self.coordinator is not None and not self.coordinator.rpartition(":")[2].isdigit():
            raise ValueError(f"processes: coordinator {self.coordinator!r} must be HOST:PORT, such as node0:1234")
        if self.count is not None and self.index is not None and not 0 <= self.index < self.count:
            raise ValueError(f"processes: index {self.index} must be at least 0 and below count {self.count}")
        if self.wait_seconds < 1:
            raise ValueError(f"processes: wait-seconds {self.wait_seconds} must be at least 1")


def join(config: ProcessesConfig) -> None:
    """Joins the processes of a run; must be called before anything is computed. A single process stays single.

    Until `end_together` is called, SIGTERM still ends a process at once, which JAX's preemption service would prevent.

    Raises:
      ValueError: The others are not found, or are visible without having been joined.
    """
    launched = started(os.environ)
    must = config.coordinator is not None or bool(config.together) or (config.together is None and (launched or 0) > 1)
    if must or (config.together is None and launched is None):
        _initialize(config, must)
    check_joined()


def started(environment: Mapping[str, str]) -> int | None:
    """Returns how many processes a launcher has started together; None if unknown, so that JAX must detect it. JAX's
    detection mistakes some single processes for one of several, which would then wait for others that never come: the
    shell of a SLURM job, a notebook on Kubernetes, a TPU host that is to use its CPUs."""

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
    """Joins the processes; if nothing is detected and joining is not required (`must`), the process stays single."""
    options: dict[str, Any] = {}
    if config.coordinator is not None:
        options = dict(coordinator_address=config.coordinator, num_processes=config.count, process_id=config.index)
    elif _needs_mpi4py(os.environ):
        options = dict(cluster_detection_method="mpi4py")
    place = config.coordinator or "the coordinator that JAX detected"
    # Otherwise JAX would abort the process with a C++ stack trace.
    watch = threading.Timer(config.wait_seconds, _give_up, [config.wait_seconds, place])
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(**options, initialization_timeout=config.wait_seconds + 60)
        _preemption_handlers.append(_handle_sigterm(None))
    except Exception as error:  # depends on the cluster: its metadata, packages and network
        nothing = isinstance(error, OSError | ImportError) or any(words in str(error) for words in NOTHING)
        if must or not nothing:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise ValueError(
                f"processes: they could not be joined at {place} ({reason}); check that the address is of process "
                "0 and its port is free, and that srun, Open MPI (with mpi4py, from Open MPI 5 on), GKE or a TPU "
                "VM started them; or give --processes.coordinator HOST:PORT --processes.count N "
                "--processes.index I, or --processes.together False to run a single process"
            ) from error
    finally:
        watch.cancel()


NOTHING = ("coordinator_address should be defined", "must be called before any JAX calls")
"""JAX's errors if it detects no cluster, or was used before by a single process."""


def _needs_mpi4py(environment: Mapping[str, str]) -> bool:
    """Returns whether MPI started this process in a way that JAX detects only through mpi4py."""
    if "OMPI_COMM_WORLD_SIZE" in environment:
        return "OMPI_MCA_orte_hnp_uri" not in environment
    return "PMI_SIZE" in environment and "SLURM_STEP_NODELIST" not in environment


def _give_up(seconds: int, place: str) -> None:
    print(
        f"unimp: processes: after {seconds} s not all of them are connected to {place}; check that all were "
        "started, with the same address and count, that the address is of process 0, and that no firewall blocks "
        "its port",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def check_joined() -> None:
    """Raises ValueError if devices of other processes are visible, but the mechanism by which all save and end together
    is not set up."""
    processes = jax.process_count()
    if processes > 1 and not (jax.distributed.is_initialized() and jax.config.jax_enable_preemption_service):
        raise ValueError(
            f"processes: devices of {processes} processes are visible, but jax.distributed with its preemption "
            "service is not set up, so a preempted run would not save a checkpoint; leave out "
            "--processes.together False and JAX_ENABLE_PREEMPTION_SERVICE=0, or give --processes.coordinator, "
            "--processes.count and --processes.index"
        )


_preemption_handlers: list[int | None] = []
"""The address of the SIGTERM handler that JAX's preemption service installed, once `join` has replaced it."""


def end_together() -> None:
    """From now on SIGTERM asks all processes to end at one step, given by
    `multihost_utils.reached_preemption_sync_point`."""
    if _preemption_handlers:
        _handle_sigterm(_preemption_handlers[-1])


def _handle_sigterm(handler: int | None) -> int | None:
    """Installs a handler by address, which Python cannot, and returns the previous one. None: the system's default."""
    install = ctypes.CDLL(None).signal
    install.argtypes, install.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    return install(signal.SIGTERM, handler)


def leave_others(status: int, why: str) -> None:
    """Prints the reason and ends this process if it is one of several; does nothing in a single process.

    If the others fail as well, all leave JAX's distributed runtime together. Otherwise they wait for this process in a
    collective, and it would wait for them until the runtime's timeout, for minutes. Once it is gone, the runtime ends
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
"""Seconds that a failed process waits for other failing processes."""


def of_first(number: int) -> int:
    """Returns the first process's number on every process; all processes must call this together.

    Used for views of a file system, which may show some processes fewer or other files than the first one.
    """
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


LAGS = (0.0, 1.0, 5.0, 25.0)
"""Seconds before each look for a file that another host has written to a network file system."""


def check_shared(folder: Path) -> None:
    """Creates the folder, and checks that all processes see the same one; all processes must call this together.

    Otherwise each would write its part of a checkpoint to its own disk, which ends without an error.

    Raises:
      ValueError: A process does not see what the first one writes there.
    """
    if jax.process_count() == 1:
        return
    sign = folder / f".shared.{of_first(secrets.randbelow(2**31))}"
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        sign.touch()
    wait_for_all("the first process has written to the folder")
    for lag in LAGS:
        time.sleep(lag)
        if sees := sign.exists():
            break
    wait_for_all("all have looked for it")  # the exchange between devices that follows has a short timeout
    blind = np.flatnonzero(~np.asarray(multihost_utils.process_allgather(np.bool_(sees)))).tolist()
    if jax.process_index() == 0:
        sign.unlink(missing_ok=True)
    if blind:
        raise ValueError(
            f"{folder.absolute()} of the first process is not visible to process {', '.join(map(str, blind))}; name a "
            "folder on a disk that all hosts share, or in an object store"
        )


def arrays_of_first(arrays: Any) -> Any:
    """Returns the first process's arrays, in any structure, on every process; all processes must call this together."""
    wait_for_all("the first process sends its arrays")
    return jax.tree.map(jnp.asarray, multihost_utils.broadcast_one_to_all(arrays))


_barriers = itertools.count()
DAY = 24 * 3600
"""Seconds that processes wait for the slowest one: the first process may tokenise a catalogue meanwhile."""


def wait_for_all(reason: str) -> None:
    """Waits until every process has reached this point.

    Processes meet at the coordination service: a collective of devices, if it is the first one, ends with an error when
    a process is half a minute late.
    """
    client = distributed.global_state.client
    if client is not None and jax.process_count() > 1:
        client.wait_at_barrier(f"unimp_jax {next(_barriers)}: {reason}", timeout_in_ms=DAY * 1000)


def print_once(text: str) -> None:
    """Prints on the first of several processes only."""
    if jax.process_index() == 0:
        print(text)
