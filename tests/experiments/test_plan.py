"""Plans: the program that training compiles, and what is said of it."""

import dataclasses
import importlib.util
import json

import jax
import numpy as np
import pytest

from experiments.parameters import abstract_parameters, init_parameters
from experiments.plan.command import PlanConfig, Planned, plan_command
from experiments.plan.plan import DoesNotFit, make_plan
from experiments.plan.search import candidates, guessed_bytes, meshes, parameter_counts, search
from experiments.presets import INTERLEAVED, PRESETS
from experiments.step import abstract_state, init_state
from tests.experiments.tiny_run import MODEL
from unimp_jax.model.flops import recomputed_flops, training_step_flops
from unimp_jax.planning.chips import Slices
from unimp_jax.planning.estimate import bytes_a_device
from unimp_jax.sharding import MeshConfig, make_mesh
from unimp_jax.training.checkpoint import abstract

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
TINY = dataclasses.replace(
    PRESETS["tiny"],
    model=dataclasses.replace(MODEL, compute_dtype="bfloat16"),
    mesh=MeshConfig(fsdp=4),
    training=dataclasses.replace(PRESETS["tiny"].training, trains=("resampler", "gated", "embeddings")),
)


def test_a_plan_is_of_the_arrays_that_training_makes():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    real, planned = init_parameters(TINY, mesh), abstract_parameters(TINY, mesh)
    with jax.set_mesh(mesh):
        state = init_state(TINY, real.trainable, mesh)
    of_plan = (abstract_state(TINY, planned.trainable, mesh), planned.frozen)
    there, thought = (jax.tree.leaves(tree) for tree in ((abstract(state), abstract(real.frozen)), of_plan))
    for one, other in zip(there, thought, strict=True):
        assert (one.shape, one.dtype, one.sharding) == (other.shape, other.dtype, other.sharding)
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
    assert any("fsdp" in str(moment.sharding.spec) for moment in moments)


def test_counted_parameters_are_those_there_are():
    for name in ("openflamingo-3b", "openflamingo-4b", "openflamingo-9b", "idefics-9b", *INTERLEAVED):
        preset = dataclasses.replace(PRESETS[name], mesh=MeshConfig())
        parameters = abstract_parameters(preset, make_mesh(MeshConfig(), jax.devices()[:1]))
        sizes = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (parameters.trainable, parameters.frozen))
        assert parameter_counts(preset) == tuple(sizes)


def test_what_is_computed_again_follows_the_policy():
    shape, trains = (2, 128, 4, 32), frozenset({"resampler", "gated", "embeddings"})

    def again(remat):
        return recomputed_flops(dataclasses.replace(MODEL, remat=remat), shape, trains)

    assert again("none") == again("dots_with_batch") == 0
    assert 0 < again("dots") < again("full") < training_step_flops(MODEL, shape, trains) / 2


@pytest.mark.parametrize("name", ["openflamingo-9b", "qwen3-8b"])
@pytest.mark.parametrize("slices", [Slices("v5e-16"), Slices("v5p-64", 2), Slices("v6e-256")])
def test_candidates_fit_their_slices(name, slices):
    preset = PRESETS[name]
    found = list(candidates(preset, slices))
    assert found
    for candidate in found:
        mesh = dataclasses.asdict(candidate.mesh)
        assert np.prod(list(mesh.values())) == slices.chips
        assert candidate.loader.batch_size % (mesh["slice"] * mesh["data"] * mesh["fsdp"]) == 0
        assert guessed_bytes(candidate) < slices.chip.memory
    assert len(set(meshes(preset, slices))) == len(list(meshes(preset, slices)))


@needs_libtpu
def test_a_plan_for_one_slice(tmp_path, capsys):
    file = tmp_path / "plan.json"
    plan_command(Planned("tiny", TINY, PlanConfig(tpu="v5e-4", json=file)))
    told = capsys.readouterr().out
    assert "tiny on v5e-4: mesh fsdp=4" in told
    assert "fits: " in told
    (kept,) = json.loads(file.read_text())
    one = kept["estimate"]
    parameters = abstract_parameters(TINY, make_mesh(MeshConfig(fsdp=4), jax.devices()[:4]))
    assert one["memory"]["trainable"] == bytes_a_device(parameters.trainable)
    assert one["memory"]["frozen"] == bytes_a_device(parameters.frozen)
    assert one["memory"]["optimizer"] == pytest.approx(2 * one["memory"]["trainable"], abs=100)  # and some counters
    gathered = [sent for sent in one["sent"] if sent["kind"] == "all-gather" and sent["axes"] == ["fsdp"]]
    assert gathered[0]["bytes"] > 0
    assert 0 < one["mfu"] < 1
    assert kept["tokens_per_second"] == pytest.approx(8 * 512 / kept["step_seconds"])


@needs_libtpu
def test_gradients_cross_slices():
    planned = make_plan(dataclasses.replace(TINY, mesh=MeshConfig(slice=2, fsdp=4)), Slices("v5p-8", 2))
    assert planned.mesh["slice"] == 2
    across = sum(sent.bytes for sent in planned.estimate.sent if "slice" in sent.axes)
    # Parts of what trains, in the 2 bytes of the arithmetic or more; each device sums those that it keeps.
    assert across >= planned.estimate.memory.trainable / 2 / 2
    assert planned.estimate.seconds.network > 0


@pytest.mark.slow
@needs_libtpu
def test_what_does_not_fit_is_said_in_words():
    wide = dataclasses.replace(TINY.model.decoder, width=8192, mlp_width=65536, heads=64, layers=8)
    model = dataclasses.replace(TINY.model, decoder=wide)
    large = dataclasses.replace(TINY, model=model, training=dataclasses.replace(TINY.training, trains=("decoder",)))
    with pytest.raises(DoesNotFit, match="it does not fit v5e-4"):
        make_plan(large, Slices("v5e-4"))


@needs_libtpu
def test_meshes_that_no_slice_has_are_refused():
    with pytest.raises(ValueError, match="does not make 4 devices"):
        make_plan(dataclasses.replace(TINY, mesh=MeshConfig(fsdp=8)), Slices("v5e-4"))
    with pytest.raises(ValueError, match="slice=1 is not a multiple of the 2 slices, between"):  # as a start says
        make_plan(dataclasses.replace(TINY, mesh=MeshConfig(fsdp=8)), Slices("v5p-8", 2))


@pytest.mark.slow
@needs_libtpu
def test_a_search_ranks_what_fits():
    plans = search(TINY, Slices("v5e-4"), 2)
    assert len(plans) == 2
    assert plans[0].tokens_per_second >= plans[1].tokens_per_second


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"pip install 'unimp_jax\[tpu\]'"):
        make_plan(TINY, Slices("v5e-4"))


def test_what_a_plan_cannot_do_is_said_before_anything_is_compiled(tmp_path):
    with pytest.raises(ValueError, match="candidates 0 must be 1 or more"):
        PlanConfig(candidates=0)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        plan_command(Planned("tiny", TINY, PlanConfig(tpu="v5e-4", json=tmp_path / "file" / "plan.json")))
