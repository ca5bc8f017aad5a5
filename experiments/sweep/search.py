"""`unimp sweep search`: hyper-parameters by Optuna, whose trials are cells.

What is sought is the best value of the validation metric that also tells the best checkpoint; the test split is never
looked at. Trials are kept in `trials.jsonl` in the sweep's folder (Optuna's journal), so the same command goes on: a
trial that was interrupted goes on too, from its checkpoint.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.config import ExperimentConfig
from experiments.presets import PRESETS
from experiments.sweep.asked import AskedToEnd
from experiments.sweep.cells import Cell, write_cells
from experiments.sweep.changes import options, read_changes
from experiments.sweep.engines import Engine
from experiments.sweep.run import LOOK_EVERY, Result, Workers, result
from experiments.sweep.space import Choice, describe, distributions
from experiments.sweep.worker import BUSY
from unimp_jax.training.log import read_log


@dataclasses.dataclass(frozen=True)
class Searched:
    """
    Attributes:
      preset, config: the base.
      trials: in all.
      seed: of what is proposed.
      prunes: trials whose validations are below the median of earlier ones are ended early.
    """

    preset: str
    config: ExperimentConfig
    space: Sequence[Choice]
    trials: int
    seed: int = 0
    prunes: bool = True

    @property
    def metric(self) -> str:
        return self.config.checkpoint.best_metric

    def cell(self, number: int, chosen: dict[str, Any]) -> Cell:
        """Of one trial."""
        described = ", ".join(f"{name} {value}" for name, value in chosen.items())
        config = read_changes(self.config, chosen)
        return Cell(f"trial-{number:04}", self.preset, f"trial {number}", config.seed, described, config)


def search(
    folder: Path, what: Searched, engine: Engine, say: Callable[[str], None] = print
) -> tuple[Any, list[Result], bool]:
    """(Optuna's study, what became of the trials that were run, whether it was asked to end before).

    Raises:
      ValueError: Optuna is not installed, or the folder holds a search of something else.
    """
    study = open_study(folder, what)
    from optuna.trial import TrialState

    open_ones = {trial.number: trial.params for trial in study.get_trials(states=(TrialState.RUNNING,))}
    watched: dict[str, Watched] = {}
    results: list[Result] = []
    workers = Workers(folder, engine)
    with AskedToEnd(workers.end_or_leave) as end:
        while True:
            for name, status in workers.ended():
                one = watched.pop(name)
                if status == BUSY:  # another search is at it, and will tell
                    continue
                ended = result(folder / name, status)
                if one.pruned and ended.state == "failed":  # a job that was cancelled cannot say so
                    ended = Result(name, "ended")
                if ended.state == "ended" and not one.pruned:
                    continue
                told = one.tell(study, ended, what.metric)
                results.append(dataclasses.replace(ended, told=told))
                say(f"{name} {told}: {one.described}")
            if end.asked and (engine.outlives or not workers.names):
                break
            for name, one in watched.items():
                if what.prunes and not one.pruned and one.should_end(what.metric):
                    workers.end(name)
            while workers.room and not end.asked:
                following = propose(study, what, open_ones)
                if following is None:
                    break
                number, chosen, trial = following
                if set(chosen) != {choice.name for choice in what.space}:  # killed while it was proposed
                    study.tell(number, state=TrialState.FAIL)
                    continue
                try:
                    cell = what.cell(number, chosen)
                except ValueError as error:  # choices that are right one by one, and not together
                    study.tell(number, state=TrialState.FAIL)
                    results.append(Result(f"trial-{number:04}", "failed", str(error)))
                    say(f"trial-{number:04} failed: {error}")
                    continue
                write_cells(folder, [cell])
                watched[cell.name] = Watched(folder / cell.name, number, cell.description, trial)
                workers.start(cell.name)
                say(f"{cell.name} begins: {cell.description}")
            if not workers.names:
                break
            time.sleep(LOOK_EVERY)
    return study, results, end.asked


def open_study(folder: Path, what: Searched) -> Any:
    """
    Raises:
      ValueError: as `search`.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise ValueError("a search needs Optuna: pip install 'unimp_jax[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(folder / "trials.jsonl")))
    study = optuna.create_study(storage=storage, study_name="sweep", direction="maximize", load_if_exists=True)
    told = {
        "space": describe(what.space),
        "base": shlex.join([what.preset, *options(PRESETS[what.preset], what.config)]),
        "metric": what.metric,
    }
    for name, text in told.items():
        before = study.user_attrs.get(name)
        if before is None:
            study.set_user_attr(name, text)
        elif before != text:
            raise ValueError(f"{folder} holds a search with {name} {before}, not {text}; name another --folder")
    # Not the same proposals again where a search goes on.
    study.sampler = optuna.samplers.TPESampler(seed=what.seed + len(study.trials), constant_liar=True)
    study.pruner = optuna.pruners.MedianPruner()
    return study


def propose(study: Any, what: Searched, open_ones: dict[int, dict[str, Any]]) -> tuple[int, dict[str, Any], Any] | None:
    """(number, what is chosen, Optuna's trial where it is new) of a trial that was interrupted, or a new one; None when
    there are enough."""
    if open_ones:
        number = min(open_ones)
        return number, open_ones.pop(number), None
    if len(study.trials) >= what.trials:
        return None
    trial = study.ask(distributions(what.space))
    return trial.number, trial.params, trial


@dataclasses.dataclass
class Watched:
    """A trial that runs. One that was interrupted before is not pruned: Optuna has no handle of it any more."""

    folder: Path
    number: int
    described: str
    trial: Any
    reported: int = 0
    pruned: bool = False

    def validations(self, metric: str) -> list[tuple[int, float]]:
        """(step, value)."""
        lines = [line for line in read_log(self.folder / "metrics.jsonl") if line["kind"] == "validation"]
        return [(line["step"], line[metric]) for line in lines if metric in line]

    def should_end(self, metric: str) -> bool:
        """Reports what is new to Optuna, and asks it."""
        if self.trial is None:
            return False
        for step, value in self.validations(metric):
            if step > self.reported:
                self.reported = step
                self.trial.report(value, step)
                self.pruned = self.trial.should_prune()
        return self.pruned

    def tell(self, study: Any, ended: Result, metric: str) -> str:
        """Tells Optuna how it ended, and returns that in words."""
        from optuna.trial import TrialState

        if ended.state == "ended":
            study.tell(self.number, state=TrialState.PRUNED)
            return f"ended early, at step {self.reported}"
        values = [value for _, value in self.validations(metric) if math.isfinite(value)]
        if ended.state != "done" or not values:
            study.tell(self.number, state=TrialState.FAIL)
            return f"failed {ended.told}" if ended.state != "done" else f"failed: it has no {metric}"
        study.tell(self.number, max(values))
        return f"{metric} {max(values):.4f}"


def ranking(study: Any, what: Searched) -> str:
    """The trials, best first, and how to train the best."""
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    best_first = sorted(complete, key=lambda trial: -trial.value)
    lines = [f"{len(study.trials)} trials, {len(complete)} of them to their end"]
    for trial in best_first:
        described = ", ".join(f"{name} {value}" for name, value in trial.params.items())
        lines.append(f"{what.metric} {trial.value:.4f}  trial-{trial.number:04}  {described}")
    if best_first:
        words = options(PRESETS[what.preset], what.cell(0, best_first[0].params).config)
        lines += ["", f"the best: {shlex.join(['unimp', 'train', what.preset, *words])}"]
    return "\n".join(lines)
