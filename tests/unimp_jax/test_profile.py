"""Profiles on demand."""

import os
import signal

import jax.numpy as jnp

from unimp_jax.training.profile import ON_DEMAND, Profile


def test_a_signal_asks_for_a_profile_of_the_next_steps(tmp_path):
    handler = signal.getsignal(signal.SIGUSR1)
    profile, written = Profile(None, tmp_path), []
    for step in range(1, 20):
        if step == 4:
            os.kill(os.getpid(), signal.SIGUSR1)
        profile.before(step, jnp.zeros(1))
        profile.after(step, jnp.ones(1) + step)
        if list(tmp_path.rglob("*.xplane.pb")):
            written.append(step)
    profile.close()
    assert written[0] == 4 + ON_DEMAND - 1
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1
    assert signal.getsignal(signal.SIGUSR1) == handler
