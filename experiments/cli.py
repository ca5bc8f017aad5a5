"""The `unimp` command: every configuration field is an option, and user errors are reported in one line.

Only the requested command is imported, and nothing heavy before it: `unimp --help` is printed from the table below.
"""

import argparse
import gc
import importlib
import io
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence

from data_pipelines.errors import DataError
from data_pipelines.nearest import did_you_mean
from experiments.compilation_cache import use_compilation_cache
from experiments.error_messages import error_message, stdout_is_closed

BROKEN_PIPE = 128 + 13
"""Exit status after the reader of standard output has closed its end, following the shell convention."""
COMMANDS = {
    "prepare": ("prepare", "Turn a source's own files into records."),
    "train": ("train", "Train a preset, or continue a run; every field of the preset is an option."),
    "evaluate": ("evaluate", "Evaluate a run on all tasks, with baselines."),
    "report": ("report.page", "Write one page about an evaluated run, or about several."),
    "import": ("import_weights", "Convert published weights into a folder for `unimp train PRESET --init-from`."),
    "export": ("export", "Write a run as a folder that other programs can load."),
    "generate": ("generate", "Answer one user's question with a trained model."),
    "features": ("item_features", "Write vectors of items from an encoder, for runs with content."),
    "ids": ("item_ids", "Assign semantic ids: similar items share tokens."),
    "leaderboard": (
        "leaderboard.command",
        "Train one model per data set, compare it with every rival, and write a leaderboard.",
    ),
    "sasrec": (
        "baselines.sasrec_training",
        "Train a sequential baseline alone, for a comparison with equal training time.",
    ),
    "plan": ("plan.command", "Compile a preset's train step for TPUs, without needing TPUs."),
    "check": ("check", "Check a training command for a number of devices before it is queued."),
    "sweep": ("sweep.command", "Train and evaluate many runs: ablations, or a hyperparameter search."),
    "vqgan": ("vqgan.command", "Train and evaluate a VQGAN, or encode a catalogue's images as its codes."),
    "demo": ("demo", "Prepare MovieLens, train `tiny`, evaluate it with baselines, and write a report."),
}
"""Command -> (module of `experiments`, one-line help). The module's function is named `COMMAND_command`."""


def main(*, own_process: bool = False) -> None:
    """Runs one subcommand. Errors caused by the user or the machine end in one line on standard error and exit status
    2; errors of the program end in a traceback.

    Args:
      own_process: the process ends with the command, so garbage need not be looked for among what is alive.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it is used for its tokenizers only, which need no torch
    os.environ.setdefault("TYPEGUARD_DISABLE_PLUGIN_AUTOLOAD", "1")  # tyro's; it reads all packages' metadata for them
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer survives a terminal that cannot encode a character
    try:
        run_command(sys.argv[1:], own_process)
        print(end="", flush=True)  # does nothing if standard output is closed
    except Exception as error:
        if isinstance(error, BrokenPipeError) and stdout_is_closed():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise Python reports it again at exit
            sys.exit(BROKEN_PIPE)
        from unimp_jax.processes import leave_others

        line = error_message(error)
        if line is None or os.environ.get("UNIMP_TRACEBACK"):
            leave_others(1, traceback.format_exc())
            raise
        leave_others(2, f"unimp: {line}\n")
        print(f"unimp: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("unimp: interrupted; the same command continues from the last checkpoint")


def run_command(arguments: Sequence[str], own_process: bool) -> None:
    """Parses the global options, then runs the command with the arguments that follow it; DataError if it is
    unknown."""
    first = next((at for at, word in enumerate(arguments) if not word.startswith("-")), len(arguments))
    commands = "\n".join(f"  {name:10}{about}" for name, (_, about) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="unimp",
        description="UniMP in JAX.",
        epilog=f"commands:\n{commands}\n\n`unimp COMMAND --help` lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--no-compilation-cache",
        action="store_true",
        help="neither save compiled programs in the user's cache folder nor load them from there",
    )
    parser.add_argument("command", metavar="COMMAND")
    options = parser.parse_args(arguments[: first + 1])
    name = options.command
    if name not in COMMANDS:
        raise DataError(f"there is no command {name!r}; {did_you_mean(name, COMMANDS)}There are {', '.join(COMMANDS)}")
    gc.disable()  # imported modules stay alive; collecting garbage among them repeatedly takes a second
    try:
        use_compilation_cache(not options.no_compilation_cache)
        use_all_cores()
        import tyro

        from experiments.path_options import LOCAL

        command = load(name)
    finally:
        gc.enable()
        if own_process:
            gc.freeze()
    tyro.cli(
        command,
        prog=f"unimp {name}",
        args=gather_training(name, arguments[first + 1 :]),
        config=(tyro.conf.FlagConversionOff,),
        registry=LOCAL,
    )


def load(name: str) -> Callable[..., None]:
    """Returns the function of a command; its parameters are the command's options."""
    return getattr(importlib.import_module(f"experiments.{COMMANDS[name][0]}"), f"{name}_command")


def gather_training(name: str, arguments: Sequence[str]) -> list[str]:
    """Returns the arguments of a command; those after `--train` of `unimp sweep` are joined into its single value."""
    if name != "sweep" or "--train" not in arguments:
        return list(arguments)
    at = list(arguments).index("--train")
    return [*arguments[:at], f"--train={shlex.join(arguments[at + 1 :])}"]


def use_all_cores() -> None:
    """Creates one CPU device per core on machines without accelerators, so that the mesh uses all cores."""
    import jax

    cpu, flags = os.environ.get("JAX_PLATFORMS", "cpu").startswith("cpu"), os.environ.get("XLA_FLAGS", "")
    if cpu and "host_platform_device_count" not in flags:
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


if __name__ == "__main__":
    main(own_process=True)
