"""What each subcommand of `unimp` does; its options are the parameters, typed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import jax
import tyro

from data_pipelines.prepare import prepare
from data_pipelines.sources import SOURCES
from data_pipelines.sources.checks import OnBad
from data_pipelines.sources.selection import Selection
from experiments.baselines.sasrec import SASRecConfig
from experiments.check import CheckConfig, check
from experiments.config import DataConfig
from experiments.evals.config import EvaluationConfig, GenerateConfig
from experiments.evaluate import evaluate_run, show
from experiments.export import ExportConfig, export_run
from experiments.generate import generate
from experiments.item_ids import ItemIdsConfig, make_item_ids
from experiments.plan.command import PresetPlan, plan
from experiments.preset_run import PresetRun
from experiments.report import write_report
from experiments.request import decoded
from experiments.rival import train_rival
from experiments.sweep.command import Sweep, sweep
from experiments.terminal import clean_lines
from experiments.train import train_run
from experiments.vqgan.command import VQGANCommand, run_vqgan
from experiments.vqgan.export import export_vqgan
from experiments.vqgan.run import is_vqgan_run
from unimp_jax.interop.importing import ImportConfig, import_weights
from unimp_jax.processes import ProcessesConfig, join

PROCESSES = ProcessesConfig()


def prepare_command(
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(help=f"One of {', '.join(SOURCES)}.")],
    folder: Path = Path("data"),
    source_dir: Path | None = None,
    name: str | None = None,
    on_bad: OnBad = "refuse",
    selection: Annotated[Selection, tyro.conf.arg(name="")] = Selection(),
    beam_options: str | None = None,
) -> None:
    """Turn a source's own files into records.

    Args:
      folder: where records go.
      source_dir: the source's own files; by default those that come with this project, or the publisher's.
      name: what the records are called (as data.source); by default as the source.
      on_bad: bad records are an error, or are left out and listed.
      beam_options: records are encoded in an Apache Beam pipeline with these options ("--runner=DirectRunner").
    """
    prepared = prepare(source, folder, source_dir, on_bad, selection, name, beam_options)
    print(clean_lines(str(prepared)))


def train_command(run: Annotated[PresetRun, tyro.conf.arg(name="")]) -> None:
    """Train a preset, every field of which is an option; or go on training it."""
    join(run.processes)
    train_run(run.experiment, run.folder)


def evaluate_command(
    folder: tyro.conf.Positional[Path],
    config: Annotated[EvaluationConfig, tyro.conf.arg(name="")],
    processes: ProcessesConfig = PROCESSES,
) -> None:
    """Measure a run on all tasks, beside baselines.

    Args:
      folder: the folder of the run.
      processes: how several find one another, where several compute.
    """
    join(processes)
    say_once(show(evaluate_run(folder, config)))


def report_command(
    folders: tyro.conf.Positional[tuple[Path, ...]], split: str = "test", out: Path | None = None
) -> None:
    """Write one page of a run that was evaluated; or of many, with what they differ in, and their tables as Markdown.

    Args:
      folders: the folder of the run, or those of several, of a sweep, or one that they all lie in.
      split: which evaluation.
      out: the folder for the page of many; by default the one that they all lie in.
    """
    print(write_report(folders, split, out))


def import_command(folder: tyro.conf.Positional[Path], config: Annotated[ImportConfig, tyro.conf.arg(name="")]) -> None:
    """Make published weights a start for `unimp train PRESET --start FOLDER`.

    Args:
      folder: is made, and holds the weights, their geometry and their tokenizer.
    """
    print(f"{clean_lines(import_weights(config, folder))}\ntrain from it: unimp train PRESET --start {folder}")


def export_command(
    run: tyro.conf.Positional[Path],
    folder: tyro.conf.Positional[Path],
    config: Annotated[ExportConfig, tyro.conf.arg(name="")],
) -> None:
    """Write a run as a folder that stock transformers, or open-flamingo, loads; a VQGAN's as one for diffusers.

    Args:
      run: the folder of the run.
      folder: is made.
    """
    vqgan = is_vqgan_run(run)
    print(export_vqgan(run, folder, config.checkpoint) if vqgan else export_run(run, folder, config))


def generate_command(
    folder: tyro.conf.Positional[Path], config: Annotated[GenerateConfig, tyro.conf.arg(name="")]
) -> None:
    """Answer for one user: what to recommend, what matches a search, how they would rate it, which of three.

    Args:
      folder: of a run, or made by `unimp export` for transformers.
    """
    print(generate(folder, config, read_input))


def read_input() -> str:
    """Standard input; nothing where that is a keyboard, for nobody types JSON, or closed."""
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    content = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read() if content is None else decoded(content.read())


def ids_command(
    run: tyro.conf.Positional[Path],
    file: tyro.conf.Positional[Path],
    config: Annotated[ItemIdsConfig, tyro.conf.arg(name="")],
    processes: ProcessesConfig = PROCESSES,
) -> None:
    """Name items by a few tokens that similar ones share, for runs with --vocabulary.item-codes FILE.

    Args:
      run: the folder of the run whose model looks at the items.
      file: is written; Parquet.
      processes: how several find one another, where several compute.
    """
    join(processes)
    say_once(make_item_ids(run, file, config))


def sasrec_command(
    folder: tyro.conf.Positional[Path],
    data: DataConfig = DataConfig("movielens_1m"),
    config: Annotated[SASRecConfig, tyro.conf.arg(name="")] = SASRecConfig(),
) -> None:
    """Train the strongest baseline alone, for a comparison at equal time.

    Args:
      folder: where its curve, parameters and test ranks go.
      data: what it is trained on.
    """
    train_rival(data, config, folder)


def plan_command(planned: Annotated[PresetPlan, tyro.conf.arg(name="")]) -> None:
    """Compile a preset's train step for TPUs that are not at hand: does it fit, and how fast might it be?"""
    plan(planned.name, planned.experiment, planned.on)


def check_command(
    command: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="-- train PRESET ...")],
    config: Annotated[CheckConfig, tyro.conf.arg(name="")],
) -> None:
    """Check a training command for so many devices, before it waits in a queue for them.

    Args:
      command: all that follows `--` is what would be run: -- train tiny --folder runs/tiny
    """
    check(config, command)


def sweep_command(config: Annotated[Sweep, tyro.conf.arg(name="")]) -> None:
    """Run many cells that differ in one thing: ablations of a preset, or trials of a search for hyper-parameters."""
    status = sweep(config)
    if status:
        sys.exit(status)


def vqgan_command(command: Annotated[VQGANCommand, tyro.conf.arg(name="")]) -> None:
    """Train and measure a VQGAN, or turn a catalogue's images into its codes."""
    say_once(run_vqgan(command))


def say_once(text: str) -> None:
    """Of several processes, the first says it."""
    if jax.process_index() == 0:
        print(text)


def demo_command(folder: Path = Path("runs/demo"), data: Path = Path("data")) -> None:
    """Prepare MovieLens, train `tiny`, evaluate it beside baselines, and write the page of it.

    Args:
      folder: the folder of the run.
      data: where records go.
    """
    from experiments.demo import demo

    demo(folder, data)


COMMANDS: dict[str, Callable[..., None]] = {
    "prepare": prepare_command,
    "train": train_command,
    "evaluate": evaluate_command,
    "report": report_command,
    "import": import_command,
    "export": export_command,
    "generate": generate_command,
    "ids": ids_command,
    "sasrec": sasrec_command,
    "plan": plan_command,
    "check": check_command,
    "sweep": sweep_command,
    "vqgan": vqgan_command,
    "demo": demo_command,
}
