"""The console script starts itself once more, with large pages, and passes on arguments, input and exit status."""

import os
import subprocess
import sys

import pytest

SCRIPT = "from experiments import cli; from experiments.entry_point import main; cli.main = {}; main()"
SHOW = "lambda own_process: print(__import__('os').environ['GLIBC_TUNABLES'], *__import__('sys').argv[1:], input())"


def start(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | variables
    command = [sys.executable, "-c", script, "train", "two words"]
    return subprocess.run(command, env=environment, input="typed\n", capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_the_command_runs_with_large_pages() -> None:
    assert start(SCRIPT.format(SHOW)).stdout == "glibc.malloc.hugetlb=1 train two words typed\n"


def test_what_the_user_has_set_is_kept() -> None:
    shown = start(SCRIPT.format(SHOW), GLIBC_TUNABLES="glibc.malloc.arena_max=2").stdout
    assert shown == "glibc.malloc.arena_max=2 train two words typed\n"


def test_the_exit_status_is_that_of_the_command() -> None:
    assert start(SCRIPT.format("lambda own_process: __import__('sys').exit(3)")).returncode == 3
