"""A search finds what is best, goes on where it was killed, and proposes nothing twice for that."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.presets import PRESETS
from experiments.sweep.files import read_json, write_json
from experiments.sweep.search import Searched, ranking, search
from experiments.sweep.space import Choice, read_space
from experiments.sweep.worker import BUSY, DONE, ENDED, FAILED

optuna = pytest.importorskip("optuna")
TINY = PRESETS["tiny"]
SPACE = ["optimizer.learning-rate=log:1e-4,1e-1", "tasks.full_items=int:1,5", "objective.gamma=of:0,2"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("experiments.sweep.search.LOOK_EVERY", 0.001)


class KilledError(BaseException):
    """Stands for the end of the process."""


@dataclasses.dataclass
class AtOnce:
    """An engine whose workers leave validations of a known function of what was chosen, and take no time."""

    outcome: Callable[[str], int] = lambda name: DONE
    steps: tuple[int, ...] = (100, 200)
    room: int = 1
    outlives: bool = False
    started: list[str] = dataclasses.field(default_factory=list)
    ended: list[str] = dataclasses.field(default_factory=list)

    def start(self, folder: Path):
        self.started.append(folder.name)
        told = read_json(folder / "cell.json")
        chosen = dict(part.rsplit(" ", 1) for part in told["description"].split(", "))
        best = quality(chosen)
        lines = [{"step": step, "kind": "validation", "NDCG@10": best * step / self.steps[-1]} for step in self.steps]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        write_json(folder / "done.json", {"hash": told["hash"], "seconds": 0.0})
        return AtWork(self, folder.name)


@dataclasses.dataclass
class AtWork:
    engine: AtOnce
    name: str
    looks: int = 0

    def status(self) -> int | None:
        self.looks += 1
        if self.name in self.engine.ended:
            return ENDED
        return None if self.looks < 3 else self.engine.outcome(self.name)

    def end(self) -> None:
        self.engine.ended.append(self.name)


def quality(chosen: dict[str, str]) -> float:
    """Best at a rate of 0.01."""
    return 1 / (1 + abs(math.log10(float(chosen["optimizer.learning_rate"])) + 2))


def searched(trials: int = 6, **changes) -> Searched:
    return Searched("tiny", TINY, read_space(SPACE, TINY), trials, **changes)


def states(study) -> list[str]:
    return [trial.state.name for trial in study.trials]


def test_a_search_tells_trials_apart_and_ranks_them(tmp_path):
    study, results, asked = search(tmp_path, searched(prunes=False), AtOnce(), lambda line: None)
    assert states(study) == ["COMPLETE"] * 6
    assert [one.name for one in results] == [f"trial-{number:04}" for number in range(6)]
    assert not asked
    for trial in study.trials:
        assert trial.value == pytest.approx(quality(trial.params))
        assert 1e-4 <= trial.params["optimizer.learning_rate"] <= 1e-1
        assert trial.params["tasks.full_items"] in range(1, 6)
        words = read_json(tmp_path / f"trial-{trial.number:04}" / "cell.json")["commands"][0]["words"]
        assert float(words[words.index("--optimizer.learning-rate") + 1]) == trial.params["optimizer.learning_rate"]
        assert "evaluate" not in words
    told = ranking(study, searched())
    best = max(study.trials, key=lambda trial: trial.value)
    assert told.splitlines()[1].startswith(f"NDCG@10 {best.value:.4f}  trial-{best.number:04}")
    assert f"--optimizer.learning-rate {best.params['optimizer.learning_rate']}" in told.splitlines()[-1]


def test_a_search_goes_on_with_the_trial_that_was_killed(tmp_path):
    def killed(name: str) -> int:
        if name == "trial-0002":
            raise KilledError
        return DONE

    with pytest.raises(KilledError):
        search(tmp_path, searched(prunes=False), AtOnce(killed), lambda line: None)
    again = AtOnce()
    study, _, _ = search(tmp_path, searched(prunes=False), again, lambda line: None)
    assert again.started == ["trial-0002", "trial-0003", "trial-0004", "trial-0005"]
    assert states(study) == ["COMPLETE"] * 6
    assert len({trial.params["optimizer.learning_rate"] for trial in study.trials}) == 6
    more = AtOnce()
    study, _, _ = search(tmp_path, searched(8, prunes=False), more, lambda line: None)
    assert more.started == ["trial-0006", "trial-0007"]
    assert not any(path.suffix in (".pkl", ".pickle") for path in tmp_path.rglob("*"))


def test_trials_that_fail_are_told_and_others_go_on(tmp_path):
    engine = AtOnce(lambda name: FAILED if name == "trial-0001" else DONE)
    study, results, _ = search(tmp_path, searched(3), engine, lambda line: None)
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert [one.state for one in results] == ["done", "failed", "done"]


def test_a_trial_that_another_search_is_at_is_left_to_it(tmp_path):
    engine = AtOnce(lambda name: BUSY if name == "trial-0001" else DONE)
    study, _, _ = search(tmp_path, searched(3), engine, lambda line: None)
    assert states(study) == ["COMPLETE", "RUNNING", "COMPLETE"]


@pytest.mark.parametrize("prunes", [True, False])
def test_trials_below_the_median_end_early(tmp_path, prunes):
    """The first five are never ended; of those after, with this seed, some are worse than the median at step 100."""
    engine = AtOnce()
    study, _, _ = search(tmp_path, searched(12, prunes=prunes, seed=1), engine, lambda line: None)
    pruned = [trial.number for trial in study.trials if trial.state.name == "PRUNED"]
    assert pruned == [int(name.removeprefix("trial-")) for name in engine.ended]
    assert bool(pruned) == prunes
    assert all(number >= 5 for number in pruned)


def test_choices_that_do_not_go_together_fail_alone(tmp_path):
    space = ["model.decoder.heads=of:2,3", "optimizer.learning_rate=log:1e-4,1e-1"]
    with pytest.raises(ValueError, match="heads 3 must divide width 64"):
        read_space(space, TINY)
    together = [Choice("model.decoder.heads", "of", ("2", "3")), Choice("optimizer.learning_rate", "log", (1e-4, 1e-1))]
    study, results, _ = search(tmp_path, Searched("tiny", TINY, together, 8), AtOnce(), lambda line: None)
    assert set(states(study)) == {"COMPLETE", "FAIL"}
    assert all(("3" in trial.params["model.decoder.heads"]) == (trial.state.name == "FAIL") for trial in study.trials)
    assert len(results) == 8


def test_another_search_in_the_folder_is_refused(tmp_path):
    search(tmp_path, searched(1), AtOnce(), lambda line: None)
    other = dataclasses.replace(searched(), config=dataclasses.replace(TINY, seed=1))
    with pytest.raises(ValueError, match="holds a search with base tiny, not tiny --seed 1"):
        search(tmp_path, other, AtOnce(), lambda line: None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer.learning_rate", "is not of the form"),
        ("optimizer.learning_rate=log:0,1", "above 0"),
        ("optimizer.learning_rate=float:2,1", "lower number comes first"),
        ("tasks.full_items=int:1,2,3", "two numbers"),
        ("tasks.full_items=int:1.5,2", "two numbers"),
        ("tasks.fulitems=int:1,2", "did you mean tasks.full_items"),
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
