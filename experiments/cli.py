"""The `unimp` command: every field of every configuration is an option, and a mistake is answered in one line."""

from __future__ import annotations

import os
import sys

import tyro

from data_pipelines.errors import DataError


def main() -> None:
    """Runs one subcommand; user's mistakes end in one line on standard error and status 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it is here for its tokenizers, and needs no torch
    use_all_cores()
    from experiments.commands import COMMANDS
    from experiments.launch import gather_training
    from unimp_jax.training.checkpoint import CheckpointError
    from unimp_jax.training.loop import TrainingError

    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="unimp",
            description="UniMP in JAX.",
            args=gather_training(sys.argv[1:]),
            config=(tyro.conf.FlagConversionOff,),
        )
    except (DataError, CheckpointError, TrainingError, ValueError) as error:
        if os.environ.get("UNIMP_TRACEBACK"):
            raise
        print(f"unimp: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("unimp: interrupted; the same command goes on from the last checkpoint")


def use_all_cores() -> None:
    """On a machine without accelerators, one device a core: the mesh then uses them all, as it would use chips."""
    import jax

    if os.environ.get("JAX_PLATFORMS", "cpu").startswith("cpu") and "host_platform_device_count" not in os.environ.get(
        "XLA_FLAGS", ""
    ):
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


if __name__ == "__main__":
    main()
