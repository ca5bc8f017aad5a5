"""Answers token by token."""

from unimp_jax.decoding.greedy import greedy

__all__ = ["greedy"]
