"""A search finds what is best, goes on where it was killed, and proposes nothing twice for that."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_pipelines.atomic import write_json
from experiments.lock import locked
from experiments.presets import PRESETS
from experiments.sweep.command import SearchConfig
from experiments.sweep.devices import DeviceShare
from experiments.sweep.job import CellJob, read_json
from experiments.sweep.run import Runner
from experiments.sweep.search import HyperparameterSearch, read_space

TINY = PRESETS["tiny"]
SPACE = ("optimizer.learning-rate=log:1e-4,1e-1", "tasks.full_items=int:1,5", "objective.gamma=of:0,2")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("experiments.sweep.run.POLL_SECONDS", 0.001)


class KilledError(BaseException):
    """Stands for the end of the process."""


@dataclasses.dataclass
class AtOnce:
    """An executor whose jobs leave validations of a known function of what was chosen, and take no time."""

    outcome: Callable[[str], str] = lambda name: "done"
    steps: tuple[int, ...] = (100, 200)
    started: list[str] = dataclasses.field(default_factory=list)
    cancelled: list[str] = dataclasses.field(default_factory=list)
    held: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)

    def submit(self, job: CellJob):
        self.started.append(job.folder.name)
        cell = read_json(job.folder / "cell.json")
        best = quality(dict(part.rsplit(" ", 1) for part in cell["description"].split(", ")))
        lines = [{"step": step, "kind": "validation", "NDCG@10": best * step / self.steps[-1]} for step in self.steps]
        (job.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return AtWork(self, job.folder)


@dataclasses.dataclass
class AtWork:
    executor: AtOnce
    folder: Path
    looks: int = 0

    @property
    def paths(self):
        return SimpleNamespace(folder=self.folder)

    def done(self) -> bool:
        self.looks += 1
        if self.looks < 3 or self.folder.name in self.executor.cancelled:
            return self.folder.name in self.executor.cancelled
        outcome = self.executor.outcome(self.folder.name)
        if outcome == "done":
            cell = read_json(self.folder / "cell.json")
            write_json(self.folder / "done.json", {"hash": cell["hash"], "seconds": 0.0})
        if outcome == "busy":
            self.executor.held.enter_context(locked(self.folder / "lock"))
        return True

    def cancel(self, check: bool) -> None:
        self.executor.cancelled.append(self.folder.name)


def quality(chosen: dict[str, str]) -> float:
    """Best at a rate of 0.01."""
    return 1 / (1 + abs(math.log10(float(chosen["optimizer.learning_rate"])) + 2))


def search(folder: Path, executor: AtOnce, trials: int = 6, base=TINY, space=SPACE, **options) -> HyperparameterSearch:
    """One that was run, by cancellable jobs."""
    runner = Runner(folder, executor, [DeviceShare((), {})], local=False, say=lambda line: None)
    found = HyperparameterSearch(SearchConfig(base="tiny", space=space, trials=trials, **options), base, runner)
    found.results = found.run()
    return found


def states(found: HyperparameterSearch) -> list[str]:
    return [trial.state.name for trial in found.study.trials]


def test_a_search_tells_trials_apart_and_ranks_them(tmp_path):
    found = search(tmp_path, AtOnce(), prune=False)
    assert states(found) == ["COMPLETE"] * 6
    assert [one.name for one in found.results] == [f"trial-{number:04}" for number in range(6)]
    assert not found.runner.stopping.is_set()
    for trial in found.study.trials:
        assert trial.value == pytest.approx(quality(trial.params))
        assert 1e-4 <= trial.params["optimizer.learning_rate"] <= 1e-1
        assert trial.params["tasks.full_items"] in range(1, 6)
        words = read_json(tmp_path / f"trial-{trial.number:04}" / "cell.json")["commands"][0]["words"]
        assert float(words[words.index("--optimizer.learning-rate") + 1]) == trial.params["optimizer.learning_rate"]
        assert "evaluate" not in words
    lines = found.ranking().splitlines()
    best = max(found.study.trials, key=lambda trial: trial.value)
    assert lines[1].startswith(f"NDCG@10 {best.value:.4f}  trial-{best.number:04}")
    assert f"--optimizer.learning-rate {best.params['optimizer.learning_rate']}" in lines[-1]


def test_a_search_goes_on_with_the_trial_that_was_killed(tmp_path):
    def killed(name: str) -> str:
        if name == "trial-0002":
            raise KilledError
        return "done"

    with pytest.raises(KilledError):
        search(tmp_path, AtOnce(killed), prune=False)
    again = AtOnce()
    found = search(tmp_path, again, prune=False)
    assert again.started == ["trial-0002", "trial-0003", "trial-0004", "trial-0005"]
    assert states(found) == ["COMPLETE"] * 6
    assert len({trial.params["optimizer.learning_rate"] for trial in found.study.trials}) == 6
    more = AtOnce()
    search(tmp_path, more, 8, prune=False)
    assert more.started == ["trial-0006", "trial-0007"]
    assert not any(path.suffix in (".pkl", ".pickle") for path in tmp_path.rglob("*"))


def test_a_trial_that_was_killed_while_it_was_proposed_fails(tmp_path):
    search(tmp_path, AtOnce(), 1)
    search(tmp_path, AtOnce(), 1).study.ask()
    found = search(tmp_path, AtOnce(), 3)
    assert states(found) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert "killed while it proposed this trial" in found.results[0].text


def test_trials_that_fail_are_reported_and_others_go_on(tmp_path):
    found = search(tmp_path, AtOnce(lambda name: "failed" if name == "trial-0001" else "done"), 3)
    assert states(found) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert [one.state for one in found.results] == ["done", "failed", "done"]


def test_a_trial_that_another_search_is_at_is_left_to_it(tmp_path):
    executor = AtOnce(lambda name: "busy" if name == "trial-0001" else "done")
    with executor.held:
        found = search(tmp_path, executor, 3)
    assert states(found) == ["COMPLETE", "RUNNING", "COMPLETE"]


@pytest.mark.parametrize("prune", [True, False])
def test_trials_below_the_median_end_early(tmp_path, prune):
    """The first five are never ended; of those after, with this seed, some are worse than the median at step 100."""
    executor = AtOnce()
    found = search(tmp_path, executor, 12, prune=prune, seed=1)
    pruned = [trial.number for trial in found.study.trials if trial.state.name == "PRUNED"]
    assert pruned == [int(name.removeprefix("trial-")) for name in executor.cancelled]
    assert bool(pruned) == prune
    assert all(number >= 5 for number in pruned)


def test_choices_that_do_not_go_together_fail_alone(tmp_path):
    """The number of heads must divide the width, which the base has as 64."""
    with pytest.raises(ValueError, match="heads 3 must divide width 64"):
        read_space(["model.decoder.heads=of:2,3"], TINY)
    space = ("model.decoder.width=of:64,80", "model.decoder.heads=of:4,32", "optimizer.learning_rate=log:1e-4,1e-1")
    found = search(tmp_path, AtOnce(), 12, space=space, prune=False)
    assert set(states(found)) == {"COMPLETE", "FAIL"}
    for trial in found.study.trials:
        apart = (trial.params["model.decoder.width"], trial.params["model.decoder.heads"]) == ("80", "32")
        assert apart == (trial.state.name == "FAIL")
    assert len(found.results) == 12


def test_another_search_in_the_folder_is_refused(tmp_path):
    search(tmp_path, AtOnce(), 1)
    with pytest.raises(ValueError, match="contains a search with base tiny, not tiny --seed 1"):
        search(tmp_path, AtOnce(), base=dataclasses.replace(TINY, seed=1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer.learning_rate=log:1e-3,inf", "must be finite"),
        ("optimizer.learning_rate=float:nan,1", "must be finite"),
        ("optimizer.learning_rate", "must have the form"),
        ("optimizer.learning_rate=log:0,1", "`low > 0`"),
        ("optimizer.learning_rate=float:2,1", "the lower one first"),
        ("tasks.full_items=int:1,2,3", "two numbers"),
        ("tasks.full_items=int:1.5,2", "two numbers"),
        ("tasks.fulitems=int:1,2", "did you mean 'tasks.full_items'"),
        ("tasks.history_targets=of:none,nothing", "history_targets nothing"),
        ("tasks.full_items=float:1.5,2.5", "full_items"),
    ],
)
def test_spaces_are_checked_before_anything_runs(text, message):
    with pytest.raises(ValueError, match=message):
        read_space([text], TINY)


def test_a_space_has_something_in_it_and_nothing_twice():
    with pytest.raises(ValueError, match="empty"):
        read_space([], TINY)
    with pytest.raises(ValueError, match="twice"):
        read_space(["seed=int:1,2", "seed=int:1,3"], TINY)
