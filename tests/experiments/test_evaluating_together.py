"""Several processes evaluate, and make ids and codes, as one does; the first of them writes."""

import dataclasses
import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.child import child_environment
from tests.experiments.tiny_run import MODEL, experiment, prepare_source
from tests.experiments.untrained_run import write_run
from tests.experiments.untrained_vqgan import write_vqgan_run

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, sys
from pathlib import Path
import jax
told = json.loads(sys.argv[1])
jax.config.update("jax_num_cpu_devices", told["devices"])
from experiments.evals.config import EvaluationConfig
from experiments.evaluate import evaluate_command
from experiments.item_ids import ItemIdsConfig, ids_command
from experiments.vqgan.command import CodesOfImages, vqgan_command
from unimp_jax.processes import ProcessesConfig
from unimp_jax.semantic_ids import SemanticIdConfig
joined = ProcessesConfig(**told["processes"])
run, out = Path(told["run"]), Path(told["out"])
tasks = ("recommendation",)
evaluate_command(run, EvaluationConfig(checkpoint="latest", tasks=tasks, rivals=(), users=20), joined)
few = SemanticIdConfig(levels=2, codes=8, last=8)
alone = ProcessesConfig(together=False)  # they have joined
ids_command(run, out / "ids.parquet", ItemIdsConfig(ids=few, checkpoint="latest"), alone)
vqgan_command(
    CodesOfImages(vqgan=Path(told["vqgan"]), file=out / "codes.parquet", checkpoint="latest", processes=alone)
)
"""


RIVALS = """
import json, sys, tempfile
from pathlib import Path
import numpy as np
from experiments.baselines.sasrec import SASRecConfig, SASRecModelConfig
from experiments.evals.config import EvaluationConfig
from experiments.evaluate import fit_rankers
from tests.data_pipelines.small import small_corpus
from unimp_jax.processes import ProcessesConfig, join
told = json.loads(sys.argv[1])
join(ProcessesConfig(**told))
model = SASRecModelConfig(max_length=8, width=16, layers=1)
clock = SASRecConfig(model, steps=2, batch_size=2, validations=1, seed=told["index"])  # as if one had more time
rankers, _ = fit_rankers(small_corpus(), EvaluationConfig(sasrec_config=clock), Path(tempfile.mkdtemp()))
print("scores", rankers[-1].scores(np.arange(3), np.array([1, 2, 3])).tolist(), flush=True)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(a run, a VQGAN's)"""
    folder = tmp_path_factory.mktemp("runs")
    data = prepare_source(folder)
    config = experiment(data)
    trains = ("resampler", "gated", "embeddings")
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, trains=trains), model=MODEL)
    return write_run(config, folder / "run"), write_vqgan_run(data, folder / "vqgan")


def joined(processes: int) -> list[dict[str, str | int]]:
    """For each process the fields of its `ProcessesConfig`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [{"coordinator": f"localhost:{port}", "count": processes, "index": index} for index in range(processes)]


def printed_by(program: str, told: list[dict]) -> list[str]:
    """What each process of a program prints, which is told its entry of `told`."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, json.dumps(one)], cwd=ROOT, env=child_environment(),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for one in told
    ]  # fmt: skip
    printed = [process.communicate(timeout=900)[0].decode() for process in running]
    assert [process.returncode for process in running] == [0] * len(told), "\n\n".join(printed)
    return printed


def together(runs: tuple[Path, Path], out: Path, processes: int, devices: int) -> list[str]:
    """What each process prints; what they write lies in `out`."""
    out.mkdir()
    same = {"devices": devices, "run": str(runs[0]), "vqgan": str(runs[1]), "out": str(out)}
    printed = printed_by(PROGRAM, [same | {"processes": one} for one in (joined(processes) if processes > 1 else [{}])])
    (runs[0] / "evaluation").rename(out / "evaluation")
    return printed


def tables(out: Path) -> dict[str, list]:
    evaluation = json.loads((out / "evaluation" / "test.json").read_text())
    return {table["task"]: table["rows"] for table in evaluation["tables"]}


@pytest.mark.slow
def test_two_processes_find_what_one_finds(runs, tmp_path):
    (alone,) = together(runs, tmp_path / "one", processes=1, devices=1)
    first, second = together(runs, tmp_path / "two", processes=2, devices=1)
    assert "recommendation (20 users)" in first
    assert "An evenly spaced sample of 20 of 40 users" in first
    assert "recommendation (20 users)" not in second, "the first process tells what was found"
    one, two = (tables(tmp_path / name) for name in ("one", "two"))
    assert list(one) == list(two) == ["recommendation"]
    for task in one:
        for row, other in zip(one[task], two[task], strict=True):
            assert row["model"] == other["model"]
            means = [[metric["mean"] for metric in found["metrics"].values()] for found in (row, other)]
            np.testing.assert_allclose(*means, atol=1e-5)
    scores = [
        pq.read_table(tmp_path / name / "evaluation" / "test-recommendation.parquet")["scores"].to_pylist()
        for name in ("one", "two")
    ]
    assert [len(row) for row in scores[0]] == [len(row) for row in scores[1]]
    np.testing.assert_allclose(*map(np.concatenate, scores), atol=1e-4, rtol=1e-4)
    for name in ("ids.parquet", "codes.parquet"):
        assert pq.read_table(tmp_path / "one" / name).equals(pq.read_table(tmp_path / "two" / name)), name
    assert "29 images of 30 items" in alone


@pytest.mark.slow
def test_rivals_that_one_process_trained_longer_are_those_of_the_first_in_all():
    """Afterwards processes encode the images of their first items together, which must be the same items."""
    first, second = (text[text.index("scores") :] for text in printed_by(RIVALS, joined(2)))
    assert first == second
