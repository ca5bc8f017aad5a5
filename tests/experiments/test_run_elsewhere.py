"""A run is used on the machine that is here, whatever it was trained on, and holds its parameters once."""

import dataclasses
import gc
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.config import load_config
from experiments.elastic import Machine
from experiments.evals.config import EvaluationConfig
from experiments.evals.queries import evaluation_queries, evenly_spaced
from experiments.evals.ranking import rank_catalogue
from experiments.evaluate import evaluate_run
from experiments.export import ExportConfig, export_run
from experiments.item_ids import ItemIdsConfig, make_item_ids
from experiments.run import open_model, used_here
from tests.experiments.live_bytes import live_bytes
from tests.experiments.test_export import IDEFICS
from tests.experiments.tiny_run import MODEL, UNCUT, experiment, prepare_source
from tests.experiments.untrained_run import write_run
from unimp_jax.semantic_ids import SemanticIdConfig
from unimp_jax.sharding import MeshConfig

TRAINS = ("resampler", "gated", "embeddings")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_source(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """Of sixteen devices, with kernels that are not here."""
    config = experiment(data, model=IDEFICS, row_shape=UNCUT)
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, trains=TRAINS))
    folder = write_run(config, tmp_path_factory.mktemp("runs") / "run")
    described = json.loads((folder / "config.json").read_text())
    described["mesh"] |= {"data": 1, "fsdp": 16}
    described["loader"] |= {"rows": 32}
    described["model"] |= {"attention": "splash", "remat": "full", "unroll": 2}
    (folder / "config.json").write_text(json.dumps(described))
    return folder


def only(monkeypatch, devices: int) -> None:
    here = jax.devices()[:devices]
    monkeypatch.setattr(jax, "devices", lambda *_: here)


@pytest.mark.parametrize(
    ("trained", "rows", "accumulate", "mesh", "expected"),
    [
        (MeshConfig(fsdp=16), 32, 1, MeshConfig(data=-1), 16),  # two rows a device, as there
        (MeshConfig(fsdp=16), 32, 2, MeshConfig(data=-1), 8),
        (MeshConfig(data=2, fsdp=8, tensor=2), 16, 1, MeshConfig(data=2, tensor=4), 2),
        (MeshConfig(data=-1), 20, 1, MeshConfig(data=-1), 24),  # on how many devices is not known
        (MeshConfig(), 8, 1, MeshConfig(data=-1), 8),  # no more than together in training
        (MeshConfig(data=16), 16, 1, MeshConfig(context=8, data=1), 1),
    ],
)
def test_rows_are_what_the_devices_here_divide(trained, rows, accumulate, mesh, expected):
    config = experiment(Path(), mesh=trained)
    config = dataclasses.replace(
        config,
        loader=dataclasses.replace(config.loader, batch_size=rows),
        training=dataclasses.replace(config.training, accumulate=accumulate),
        model=dataclasses.replace(MODEL, attention="cudnn", remat="full"),
    )
    used = used_here(config, mesh)
    assert (used.mesh, used.loader.batch_size) == (mesh, expected)
    assert (used.model.attention, used.model.remat) == ("auto", "none")


def test_rows_of_a_device_are_known_from_the_machine_that_the_run_began_on():
    config = experiment(Path(), mesh=MeshConfig(data=-1, fsdp=16))
    config = dataclasses.replace(config, loader=dataclasses.replace(config.loader, batch_size=1024))
    assert used_here(config, MeshConfig(data=-1)).loader.batch_size == 1024
    assert used_here(config, MeshConfig(data=-1), Machine(256)).loader.batch_size == 8 * 4


def test_a_run_of_sixteen_devices_opens_on_eight(run, one_device, monkeypatch):
    _, alone, _ = open_model(run, "latest")
    monkeypatch.undo()
    data, model, facts = open_model(run, "latest")
    assert facts.step == 3
    assert dict(model.mesh.shape)["data"] == 8
    assert data.config.loader.batch_size == 16
    jax.tree.map(np.testing.assert_array_equal, model.parameters, alone.parameters)


def test_a_run_of_sixteen_devices_answers_alike_on_one_and_on_two(run, monkeypatch):
    found = {}
    for devices in (1, 2):
        only(monkeypatch, devices)
        data, model, _ = open_model(run, "latest")
        assert data.config.loader.batch_size == 2 * devices
        queries = evenly_spaced(evaluation_queries(data, "test", "recommendation").queries, 12)
        found[devices] = rank_catalogue(data, model, queries)
        monkeypatch.undo()
    assert len({*found[1].top[:, 0].tolist()}) > 2, "answers hang on the history"
    np.testing.assert_array_equal(found[1].filtered, found[2].filtered)
    np.testing.assert_array_equal(found[1].top, found[2].top)
    np.testing.assert_allclose(found[1].scores, found[2].scores, atol=1e-4, rtol=1e-4)
    assert load_config(run / "config.json").mesh.fsdp == 16, "the folder stays as it is"


def test_another_mesh_is_an_option(run):
    _, model, _ = open_model(run, "latest", MeshConfig(fsdp=4, tensor=2))
    assert dict(model.mesh.shape) == {"slice": 1, "data": 1, "fsdp": 4, "context": 1, "tensor": 2}
    with pytest.raises(ValueError, match="does not make 8 devices"):
        open_model(run, "latest", MeshConfig(fsdp=16))


class Peak:
    """The most bytes of live arrays, looked at wherever parameters are read, asked or written."""

    def __init__(self, monkeypatch, *places: tuple[object, str]):
        self.most = 0
        self.before = self.now()
        for owner, name in places:
            monkeypatch.setattr(owner, name, self.watching(getattr(owner, name)))

    @staticmethod
    def now() -> int:
        gc.collect()  # what nobody holds any more: tests look for garbage seldom
        return live_bytes()

    def watching(self, function):
        def watched(*arguments, **options):
            self.look()
            result = function(*arguments, **options)
            self.look()
            return result

        return watched

    def look(self) -> None:
        if live_bytes() - self.before > self.most:  # only then can it rise: to look for garbage takes a second
            self.most = max(self.most, self.now() - self.before)


@pytest.fixture
def one_device(monkeypatch):
    only(monkeypatch, 1)


def parameter_bytes(run: Path) -> int:
    _, model, _ = open_model(run, "latest")
    return sum(x.nbytes for x in jax.tree.leaves(model.parameters))


def test_parameters_are_held_once_while_a_run_is_evaluated_and_exported(run, one_device, monkeypatch, tmp_path):
    """Beside them there are a batch, what was made of it, and for evaluation the images' latents."""
    from experiments import export, parameters
    from experiments import run as opened
    from experiments.evals import ranking
    from unimp_jax.evaluation.predictor import Predictor

    size = parameter_bytes(run)
    assert size > 200_000
    peak = Peak(
        monkeypatch,
        (parameters, "load_frozen"),
        (opened, "to_be_asked"),
        (Predictor, "_program"),
        (ranking, "seen_items"),
    )
    evaluate_run(run, EvaluationConfig(checkpoint="latest", tasks=("recommendation",), rivals=(), users=10))
    assert size <= peak.most < 1.5 * size
    peak = Peak(monkeypatch, (parameters, "load_frozen"), (opened, "to_be_asked"), (export, "write_weights"))
    export_run(run, tmp_path / "exported", ExportConfig(checkpoint="latest"))
    assert size <= peak.most < 1.1 * size
    exported = load_config(tmp_path / "exported" / "unimp" / "config.json")
    assert (exported.mesh.fsdp, exported.model.attention) == (16, "splash"), "an export tells how it was trained"


def test_ids_are_made_of_a_run_of_sixteen_devices(run, one_device, tmp_path):
    few = SemanticIdConfig(levels=2, codes=8, last=8)
    told = make_item_ids(run, tmp_path / "ids.parquet", ItemIdsConfig(ids=few, checkpoint="latest"))
    assert "30 items: " in told
    assert (tmp_path / "ids.parquet").exists()
