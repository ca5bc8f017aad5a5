"""What the folder of a sweep says of its cells, and what reading it needs."""

from pathlib import Path

import pytest

from experiments.evals.config import EvaluationConfig
from experiments.presets import PRESETS
from experiments.sweep.cells import SweepCell, write_cells
from experiments.sweep.changes import changed
from experiments.sweep.job import is_done, read_json


def made(seed: int = 0, **changes) -> SweepCell:
    config = changed(PRESETS["tiny"], {"seed": seed, **changes})
    evaluation = EvaluationConfig(rivals=())
    return SweepCell(f"base-seed{seed}", "tiny", "base", seed, "the base", config, evaluation=evaluation)


def test_a_sweep_says_what_its_cells_are(tmp_path):
    write_cells(tmp_path / "s", [made(1), made(0)])
    write_cells(tmp_path / "s", [made(2), made(1)])
    told = read_json(tmp_path / "s" / "sweep.json")
    assert (told["sweep"], [one["folder"] for one in told["cells"]]) == (
        "s",
        ["base-seed0", "base-seed2", "base-seed1"],
    )
    described = {"sweep": "s", "base": "tiny", "ablation": "base", "seed": 1, "description": "the base"}
    assert told["cells"][-1] == {"folder": "base-seed1", **described}
    assert described.items() <= read_json(tmp_path / "s" / "base-seed1" / "cell.json").items()


def test_a_folder_with_other_cells_is_refused(tmp_path):
    write_cells(tmp_path, [made()])
    write_cells(tmp_path, [made(**{"mesh.data": 2, "data.folder": Path("elsewhere")})])  # of no consequence
    with pytest.raises(ValueError, match="another configuration"):
        write_cells(tmp_path, [made(**{"loop.steps": 7})])


def test_a_damaged_file_is_reported(tmp_path):
    (tmp_path / "done.json").write_text("{")
    with pytest.raises(ValueError, match=r"done\.json is damaged"):
        is_done(tmp_path)
