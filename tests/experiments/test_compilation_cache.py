"""Commands load what earlier ones compiled, and none fails because of what is kept or cannot be kept."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.compilation_cache import DAYS, use_compilation_cache

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import resource, sys
from experiments import cli
def demo(largest: int = -1) -> None:
    import jax
    import jax.numpy as jnp
    if largest >= 0:  # writing fails in the middle of a file, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    hits = []
    jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("/cache_hits")))
    answer = jax.jit(lambda x: jnp.sort(jnp.sin(x) @ jnp.cos(x).T).sum())(jnp.ones((8, 8)))
    print(f"{float(answer)!r} {sum(hits)}")
cli.load = lambda _: demo
cli.main()
"""


def start(home: Path, *arguments: str) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_PERS", "JAX_COMP"))}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment | {"XDG_CACHE_HOME": str(home)}, **streams)


def finish(process: subprocess.Popen) -> tuple[str, int, str]:
    """(the answer, how many programs were loaded and not compiled, standard error)."""
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    answer, hits = out.split()
    return answer, int(hits), error


def entries(home: Path) -> list[Path]:
    return sorted((home / "unimp_jax" / "xla").glob("*-cache"))


def test_what_one_command_compiled_the_next_one_loads(tmp_path):
    together = [start(tmp_path, "demo") for _ in range(2)]
    (answer, _, _), (other, _, _) = map(finish, together)
    assert answer == other
    assert entries(tmp_path)
    again, hits, error = finish(start(tmp_path, "demo"))
    assert (again, error) == (answer, "")
    assert hits == len(entries(tmp_path))
    for entry in entries(tmp_path):
        entry.write_bytes(entry.read_bytes()[:100])
    again, hits, error = finish(start(tmp_path, "demo"))
    assert (again, hits) == (answer, 0)
    assert "Error reading persistent compilation cache entry" in error


@pytest.mark.slow
def test_a_full_disk_costs_no_more_than_the_entries(tmp_path):
    answer, _, _ = finish(start(tmp_path, "demo", "--largest", "64"))
    assert {entry.stat().st_size for entry in entries(tmp_path)} == {64}
    assert finish(start(tmp_path, "demo"))[:2] == (answer, 0)


def test_nothing_is_kept_where_that_is_not_wanted_or_not_possible(tmp_path):
    (tmp_path / "file").write_text("")
    answers = [
        finish(start(tmp_path, "--no-compilation-cache", "demo"))[:2],
        finish(start(tmp_path / "file", "demo"))[:2],
    ]
    assert answers[0] == answers[1]
    assert answers[0][1] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def environment(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith(("JAX_PERS", "JAX_COMP"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", {**os.environ, "XDG_CACHE_HOME": str(tmp_path)})
    return os.environ


def test_old_entries_are_removed(environment, tmp_path):
    folder = tmp_path / "unimp_jax" / "xla"
    folder.mkdir(parents=True)
    for name, days in (("old", DAYS + 1), ("new", DAYS - 1)):
        (folder / name).write_text("")
        os.utime(folder / name, times=(time.time(), time.time() - days * 24 * 60 * 60))
    use_compilation_cache(True)
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert environment["JAX_COMPILATION_CACHE_DIR"] == str(folder)


def test_the_folder_of_the_environment_comes_first(environment, tmp_path):
    environment["JAX_COMPILATION_CACHE_DIR"] = "elsewhere"
    use_compilation_cache(True)
    assert environment["JAX_COMPILATION_CACHE_DIR"] == "elsewhere"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cache_home", ["", "relative"])
def test_a_relative_cache_home_is_none(environment, tmp_path, cache_home):
    environment |= {"XDG_CACHE_HOME": cache_home, "HOME": str(tmp_path)}
    use_compilation_cache(True)
    assert environment["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / ".cache" / "unimp_jax" / "xla")
