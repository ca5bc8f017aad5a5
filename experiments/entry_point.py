"""The `unimp` console script: `experiments.cli.main` in a process whose large arrays lie on large pages.

XLA allocates the arrays of a step on CPUs anew each time, and with pages of 4 KiB the kernel spends a fifth of the time
on mapping them. glibc (2.35 or newer) asks for pages of 2 MiB if an environment variable says so when a process starts,
so that the process starts itself once more. Steps of `tiny` on one core then take 0.7 s instead of 0.9 s.
"""

import os
import sys

VARIABLE, LARGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"


def main() -> None:
    """Runs the command line. A value of the variable that the user has set is kept, and nothing is started again."""
    if sys.platform == "linux" and VARIABLE not in os.environ:
        os.environ[VARIABLE] = LARGE_PAGES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    from experiments.cli import main

    main(own_process=True)
