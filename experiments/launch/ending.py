"""How a launched training ends: with 0 only when its last step is saved.

Asked to end (SIGTERM), a training saves and exits with 0, which engines take for done. So what is run instead looks for
the last checkpoint, and ends with a status of its own where that is missing.
"""

from __future__ import annotations

ASKED = 42
"""XPK restarts on this one of itself, and on 127 to 255."""
ENDED_BY_SIGTERM = 128 + 15
"""Of a process that SIGTERM ends, before training listens to it."""


def until_whole(command: str, last_checkpoint: str) -> list[str]:
    """Lines of a shell that run `command`, pass SIGTERM on to it, and end with `ASKED` where it ended early, but well.

    They can also be joined by `; `.
    """
    return [
        """trap 'kill -TERM "$training"' TERM""",
        f"{command} & training=$!",
        'status=0; wait "$training" || status=$?',
        # A trapped signal ends `wait`, and not what it waits for.
        'while kill -0 "$training" 2>/dev/null; do status=0; wait "$training" || status=$?; done',
        f'if [ "$status" -eq 0 ] && [ ! -d {last_checkpoint} ]; then status={ASKED}; fi',
        'exit "$status"',
    ]
