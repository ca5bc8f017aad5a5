"""Every test sees eight host devices, as a pod slice would show them; what was compiled once is not compiled again.

Tests that take more than a few seconds of processor time are marked slow, by `pytest.mark.slow` or, where only some of
a function's cases are, by their names in `slow.txt`. `pytest --costs FILE` writes what each test took.
"""

import gc
import os
import resource
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of what tests do, and level 0 takes two thirds of the time. What a program computes is the same.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 "
    + os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "unimp_jax_tests_compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

SLOW = Path(__file__).with_name("slow.txt")
DATA_PIPELINES = Path(__file__).with_name("data_pipelines")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--costs", type=Path, help="append a line to this file for each test: processor seconds, name")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Returns one worker more than there are cores, because many tests wait for processes that they start."""
    return (os.cpu_count() or 1) + 1


def pytest_configure(config: pytest.Config) -> None:
    """Fast tests compile without XLA's emitters by MLIR, which take 16 of the 25 s of a training step.

    They compile a program as one LLVM module, too: to compile its parts at once takes a sixth more processor time.

    All tests together compile as users do. XLA reads its flags when a test first asks for devices, which is later.
    """
    has_others = version("jaxlib").startswith("0.10.")  # a later jaxlib does not know the first flag
    if has_others and config.getoption("markexpr") == "not slow":
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks slow tests, and leaves those of data_pipelines, of which no file takes long, for the end of the run."""
    slow = set(SLOW.read_text(encoding="utf-8").splitlines())
    for item in items:
        if item.nodeid in slow:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path.is_relative_to(DATA_PIPELINES))


def pytest_collection_finish() -> None:
    """Looks for garbage seldom, and not among what was imported: in a process with JAX each time takes a second."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    before = processor_seconds()
    result = yield
    if file := item.config.getoption("--costs"):
        with file.open("a", encoding="utf-8") as costs:
            costs.write(f"{processor_seconds() - before:.1f}\t{item.nodeid}\n")
    return result


def processor_seconds() -> float:
    """What this process and those that it has waited for have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


@pytest.fixture(scope="module")
def server():
    """An S3 server with a bucket; skips where its packages are not installed."""
    from tests.object_store import running

    with running() as one:
        yield one
