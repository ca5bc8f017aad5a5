"""The `unimp` command: every field of every configuration is an option, and a mistake is answered in one line."""

from __future__ import annotations

import io
import os
import shlex
import sys
import traceback
from collections.abc import Sequence

import tyro

from experiments.mistakes import explained, nobody_reads

BROKEN_PIPE = 128 + 13
"""The status of a command whose reader has gone, as shells count it."""


def main() -> None:
    """Runs one subcommand; what the user or the machine is at fault for ends in one line on standard error and status
    2, what the program is at fault for in a traceback."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it is here for its tokenizers, and needs no torch
    use_all_cores()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer is not lost because a terminal lacks a letter
    try:
        from experiments.commands import COMMANDS

        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="unimp",
            description="UniMP in JAX.",
            args=gather_training(sys.argv[1:]),
            config=(tyro.conf.FlagConversionOff,),
        )
        print(end="", flush=True)  # which does nothing where standard output is closed
    except Exception as error:
        if isinstance(error, BrokenPipeError) and nobody_reads():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tells of it at its end
            sys.exit(BROKEN_PIPE)
        from unimp_jax.processes import leave_others

        line = explained(error)
        if line is None or os.environ.get("UNIMP_TRACEBACK"):
            leave_others(1, traceback.format_exc())
            raise
        leave_others(2, f"unimp: {line}\n")
        print(f"unimp: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("unimp: interrupted; the same command goes on from the last checkpoint")


def gather_training(arguments: Sequence[str]) -> list[str]:
    """The command line with all that follows `--train` of `unimp sweep` as its one value."""
    if arguments[:1] != ["sweep"] or "--train" not in arguments:
        return list(arguments)
    at = list(arguments).index("--train")
    return [*arguments[:at], f"--train={shlex.join(arguments[at + 1 :])}"]


def use_all_cores() -> None:
    """On a machine without accelerators, one device a core: the mesh then uses them all, as it would use chips."""
    import jax

    if os.environ.get("JAX_PLATFORMS", "cpu").startswith("cpu") and "host_platform_device_count" not in os.environ.get(
        "XLA_FLAGS", ""
    ):
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


if __name__ == "__main__":
    main()
