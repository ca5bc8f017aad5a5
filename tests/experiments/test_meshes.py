"""Every row of a batch is loaded by the processes whose devices work on it, and by no other, on every mesh."""

import dataclasses
import importlib.util
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from data_pipelines.loader import ProcessShard
from unimp_jax.planning.chips import Slices, devices
from unimp_jax.sharding import MeshConfig, batch_sharding, local_rows, make_mesh, put_rows, row_shards

PLANS = Path(__file__).resolve().parents[2] / "experiments" / "PLANS.md"
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


def planned() -> list[tuple[str, int, str]]:
    """(slice, how many, mesh) of each row of PLANS.md."""
    rows = re.findall(r"^\| (?:(\d+) x )?(v\w+-\d+)[^|]*\| \d+ \| ([^|]+) \|", PLANS.read_text(), re.MULTILINE)
    return list(dict.fromkeys((name, int(count or 1), mesh) for count, name, mesh in rows))


OTHERS = [
    ("v5e-1", 1, "data=1"),
    ("v5e-8", 1, "fsdp=8"),
    ("v5e-16", 1, "data=16"),
    ("v5e-16", 1, "fsdp=4 context=4"),
    ("v5e-16", 1, "tensor=16"),
    ("v5e-64", 2, "slice=4 fsdp=16 tensor=2"),
    ("v5e-256", 1, "fsdp=32 context=8"),
    ("v5p-64", 1, "data=2 context=4 tensor=4"),
    ("v5p-256", 1, "fsdp=128"),
    ("v5p-256", 1, "fsdp=32 tensor=4"),
    ("v5p-256", 2, "slice=2 fsdp=16 context=2 tensor=4"),
    ("v6e-256", 1, "fsdp=64 tensor=4"),
    ("v6e-256", 1, "context=256"),
]


def sizes_of(mesh: str) -> MeshConfig:
    return MeshConfig(**{name: int(size) for name, size in (part.split("=") for part in mesh.split())})


def assert_rows_are_where_they_are_needed(mesh: Mesh, rows: int) -> None:
    """What JAX's sharding gives each device is what its process has loaded, and nobody loads what nobody needs."""
    needed = batch_sharding(mesh).devices_indices_map((rows,))
    workers: dict[int, set[int]] = {row: set() for row in range(rows)}
    readers: dict[int, set[int]] = {row: set() for row in range(rows)}
    for process in {device.process_index for device in needed}:
        shards, count = row_shards(mesh, process)
        loaded = ProcessShard(shards, count).of(rows)
        assert (np.diff(loaded) > 0).all()
        for row in loaded.tolist():
            readers[row].add(process)
        for device, (index,) in needed.items():
            if device.process_index == process:
                works_on = np.arange(rows)[index]
                np.testing.assert_array_equal(loaded[local_rows(index, rows, shards, count)], works_on)
                for row in works_on.tolist():
                    workers[row].add(process)
    assert readers == workers
    assert all(readers.values())


@needs_libtpu
@pytest.mark.parametrize(("name", "count", "mesh"), list(dict.fromkeys([*planned(), *OTHERS])))
def test_on_the_tpus_of_the_plans_every_row_is_loaded_where_it_is_needed(name, count, mesh):
    made = make_mesh(sizes_of(mesh), devices(Slices(name, count)))
    shards = math.prod(made.shape[axis] for axis in ("slice", "data", "fsdp"))
    assert len(made.devices.flat) == Slices(name, count).chips
    assert_rows_are_where_they_are_needed(made, 3 * shards)


def test_the_plans_are_walked():
    assert ("v5e-16", 1, "fsdp=16") in planned()
    assert ("v5e-256", 2, "slice=2 data=16 fsdp=16") in planned()
    assert len(planned()) >= 7


@needs_libtpu
def test_a_host_of_tpus_has_rows_that_are_no_neighbours():
    """The torus is walked in a ring, and a host is a block of it."""
    mesh = make_mesh(MeshConfig(fsdp=16), devices(Slices("v5e-16")))
    assert [row_shards(mesh, process)[0] for process in range(4)] == [
        (0, 1, 6, 15), (2, 3, 4, 5), (7, 12, 13, 14), (8, 9, 10, 11),
    ]  # fmt: skip


@needs_libtpu
@pytest.mark.parametrize(
    ("mesh", "count", "says"),
    [
        (
            "fsdp=64",
            2,
            "slice=1 is not a multiple of the 2 slices, between.*set mesh.slice 2.* 32 devices of a slice",
        ),
        ("fsdp=16", 1, "fsdp=16 does not make 32 devices"),
    ],
)
def test_tpus_that_a_mesh_does_not_fit_are_reported(mesh, count, says):
    with pytest.raises(ValueError, match=says):
        make_mesh(sizes_of(mesh), devices(Slices("v5p-64", count)))


@needs_libtpu
def test_what_jax_cannot_lay_out_ends_in_one_line():
    with pytest.raises(ValueError, match=r"JAX cannot arrange 12 TPUs as 1 x 1 x 12 x 1 x 1 \(.*\); choose") as told:
        make_mesh(MeshConfig(fsdp=12), devices(Slices("v5p-64"))[:12])
    assert "\n" not in str(told.value)


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh looks at of a device."""

    id: int
    process_index: int
    slice_index: int = 0
    platform: str = "gpu"


@st.composite
def meshes(draw: st.DrawFn) -> Mesh:
    """Any sizes, any processes, any order."""
    sizes = draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=5, max_size=5))
    number = math.prod(sizes)
    processes = draw(st.lists(st.integers(0, min(number, 6) - 1), min_size=number, max_size=number))
    order = draw(st.permutations(range(number)))
    them = np.array([Device(n, processes[n]) for n in order], object).reshape(sizes)
    return Mesh(them, ("slice", "data", "fsdp", "context", "tensor"))


@settings(max_examples=60, deadline=None)
@given(meshes(), st.integers(1, 3))
def test_on_any_mesh_every_row_is_loaded_where_it_is_needed(mesh, rows_a_shard):
    assert_rows_are_where_they_are_needed(mesh, rows_a_shard * math.prod(mesh.devices.shape[:3]))


@pytest.mark.parametrize(
    "mesh",
    ["fsdp=16", "data=16", "tensor=16", "context=16", "slice=2 fsdp=8", "data=2 fsdp=2 tensor=4", "slice=4 fsdp=4"],
)
def test_every_axis_may_go_across_nodes_of_gpus(mesh):
    """JAX numbers nodes as slices; SLURM may deal its processes out to them in turn."""
    there = [Device(n, n // 2, slice_index=n // 2 % 2) for n in range(16)]
    made = make_mesh(sizes_of(mesh), there)
    assert [device.slice_index for device in made.devices.flat] == [0] * 8 + [1] * 8  # what sends most is neighbours
    assert_rows_are_where_they_are_needed(made, 32)


def test_numbers_that_are_no_powers_of_two_make_a_mesh():
    made = make_mesh(MeshConfig(data=-1, tensor=3), [Device(n, n // 4) for n in range(12)])
    assert made.devices.shape == (1, 4, 1, 1, 3)
    assert [row_shards(made, process) for process in range(3)] == [((0, 1), 4), ((1, 2), 4), ((2, 3), 4)]
    assert_rows_are_where_they_are_needed(made, 8)


def test_rows_are_put_where_the_mesh_has_them():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    put = put_rows(mesh, {"rows": np.arange(8), "deep": np.arange(16).reshape(8, 2)})
    for shard in put["rows"].addressable_shards:
        np.testing.assert_array_equal(shard.data, np.arange(8)[shard.index])
    np.testing.assert_array_equal(put["deep"], np.arange(16).reshape(8, 2))
