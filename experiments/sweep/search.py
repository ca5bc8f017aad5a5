"""`unimp sweep search`: a hyper-parameter search with Optuna, whose trials are cells.

The objective is the best value of the validation metric that also chooses the best checkpoint; the test split is never
read. Optuna's journal is `trials.jsonl` in the sweep's folder, so that the same command continues a search, and an
interrupted trial continues from its checkpoint.
"""

from __future__ import annotations

import functools
import json
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from experiments.config import ExperimentConfig
from experiments.presets import PRESETS
from experiments.sweep.cells import SweepCell, write_cells
from experiments.sweep.changes import changed, options
from experiments.sweep.run import Result, Runner
from unimp_jax.training.log import read_log

if TYPE_CHECKING:
    from experiments.sweep.command import SearchConfig

FORM = re.compile(r"(?P<name>[\w.-]+)=(?P<kind>float|log|int|of):(?P<values>.+)")


def read_space(texts: Sequence[str], base: ExperimentConfig) -> list[tuple[str, str, tuple[Any, ...]]]:
    """Parses each `NAME=KIND:VALUE,VALUE` into (field, kind, values); ValueError if it is invalid for the base."""
    space = []
    for text in texts:
        match = FORM.fullmatch(text)
        if not match:
            raise ValueError(
                f"--space {text!r} must have the form NAME=log:LOW,HIGH (or float:, int:) or NAME=of:VALUE,VALUE,…"
            )
        name, kind, values = match["name"].replace("-", "_"), match["kind"], tuple(match["values"].split(","))
        try:
            if kind != "of":
                values = tuple(int(value) if kind == "int" else float(value) for value in values)
            distribution(kind, values)
        except ValueError as error:
            raise ValueError(f"--space {text!r}: give two numbers, the lower one first ({error})") from error
        for value in values:
            changed(base, {name: value})
        space.append((name, kind, values))
    if len({name for name, _, _ in space}) < max(1, len(space)):
        raise ValueError(f"--space is empty or names a field twice: {' '.join(texts)}")
    return space


def distribution(kind: str, values: tuple[Any, ...]) -> BaseDistribution:
    """Returns the Optuna distribution of a kind; raises ValueError if Optuna does."""
    if kind == "of":
        return CategoricalDistribution(values)
    low, high = values
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{low} and {high} must be finite")
    return IntDistribution(low, high) if kind == "int" else FloatDistribution(low, high, log=kind == "log")


class HyperparameterSearch:
    """A search in the folder of the runner, new or continued."""

    def __init__(self, config: SearchConfig, base: ExperimentConfig, runner: Runner):
        """Opens the search; ValueError if the space is invalid, or the folder holds another search."""
        self.config, self.base, self.runner, self.metric = config, base, runner, base.checkpoint.best_metric
        space = read_space(config.space, base)
        self.distributions = {name: distribution(kind, values) for name, kind, values in space}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        runner.folder.mkdir(parents=True, exist_ok=True)
        self.study = optuna.create_study(
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(runner.folder / "trials.jsonl"))),
            study_name="sweep",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner() if config.prune else optuna.pruners.NopPruner(),
        )
        # The seed depends on the number of trials, so that a continued search does not repeat its proposals.
        self.study.sampler = optuna.samplers.TPESampler(seed=config.seed + len(self.study.trials), constant_liar=True)
        command = shlex.join([config.base, *options(PRESETS[config.base], base)])
        for name, text in {"space": json.dumps(space), "base": command, "metric": self.metric}.items():
            before = self.study.user_attrs.get(name)
            if before is None:
                self.study.set_user_attr(name, text)
            elif before != text:
                raise ValueError(
                    f"{runner.folder} contains a search with {name} {before}, not {text}; name another --folder"
                )

    def run(self) -> list[Result]:
        """Runs trials until there are enough, or the search is asked to end; returns their results."""
        results: list[Result] = []
        interrupted: list[optuna.Trial | FrozenTrial] = [*self.study.get_trials(states=(TrialState.RUNNING,))]

        def following(new: list[Result]) -> list[Callable[[], Result]]:
            for result in new:
                if result.state != "busy":  # otherwise another search runs it, and records its value
                    results.append(result)
                    self.runner.say(" ".join(result))
            trials: list[optuna.Trial | FrozenTrial] = []
            for _ in [] if self.runner.stopping.is_set() else new or range(self.runner.jobs):
                if interrupted:
                    trials.append(interrupted.pop(0))
                elif len(self.study.trials) < self.config.trials:
                    trials.append(self.study.ask(self.distributions))
            return [functools.partial(self.run_trial, trial) for trial in trials]

        self.runner.walk(following)
        return results

    def run_trial(self, trial: optuna.Trial | FrozenTrial) -> Result:
        """Runs the cell of a trial, and records its value.

        A FrozenTrial was interrupted. It is not pruned, because Optuna accepts no more reports about it.
        """
        try:
            cell = self.cell(trial.number, trial.params)
        except ValueError as error:  # values that are valid individually may not fit together
            self.study.tell(trial.number, state=TrialState.FAIL)
            return Result(f"trial-{trial.number:04}", "failed", str(error))
        reported, pruned = 0, False

        def prune() -> bool:
            nonlocal reported, pruned
            for step, value in self.validations(cell):
                if isinstance(trial, optuna.Trial) and step > reported:
                    trial.report(value, step)
                    reported, pruned = step, trial.should_prune()
            return pruned

        write_cells(self.runner.folder, [cell])
        result = self.runner.run(cell.name, prune)
        values = [value for _, value in self.validations(cell) if math.isfinite(value)]
        if result.state == "done" and not values:
            result = Result(cell.name, "failed", f"it has no {self.metric}")
        if result.state == "done":
            self.study.tell(trial.number, max(values))
            return Result(cell.name, "done", f"{self.metric} {max(values):.4f}: {cell.description}")
        if result.state == "failed":
            self.study.tell(trial.number, state=TrialState.FAIL)
        elif result.state == "ended" and pruned:
            self.study.tell(trial.number, state=TrialState.PRUNED)
            return Result(cell.name, "ended", f"pruned at step {reported}: {cell.description}")
        return result

    def cell(self, number: int, chosen: Mapping[str, Any]) -> SweepCell:
        """Returns the cell of a trial; raises ValueError if the chosen values make no valid configuration."""
        if chosen.keys() != self.distributions.keys():
            raise ValueError("the search was killed while it proposed this trial")
        described = ", ".join(f"{name} {value}" for name, value in chosen.items())
        config = changed(self.base, chosen)
        return SweepCell(f"trial-{number:04}", self.config.base, f"trial {number}", config.seed, described, config)

    def validations(self, cell: SweepCell) -> list[tuple[int, float]]:
        """Returns (step, value) of each validation of a trial."""
        lines = [line for line in read_log(self.runner.folder / cell.name / "metrics.jsonl") if self.metric in line]
        return [(line["step"], line[self.metric]) for line in lines if line["kind"] == "validation"]

    def ranking(self) -> str:
        """Returns the trials, best first, and the command that trains the best."""
        complete = sorted(self.study.get_trials(states=(TrialState.COMPLETE,)), key=lambda trial: -trial.values[0])
        lines = [f"{len(self.study.trials)} trials, {len(complete)} of them complete"]
        cells = [self.cell(trial.number, trial.params) for trial in complete]
        for trial, cell in zip(complete, cells, strict=True):
            lines.append(f"{self.metric} {trial.values[0]:.4f}  {cell.name}  {cell.description}")
        for best in cells[:1]:
            words = options(PRESETS[best.preset], best.config)
            lines += ["", f"the best: {shlex.join(['unimp', 'train', best.preset, *words])}"]
        return "\n".join(lines)
