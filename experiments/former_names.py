"""What earlier versions saved otherwise in configurations, so that their runs are still read."""

from __future__ import annotations

from typing import Any

FORMER_NAMES = {
    "batch": "batch_size",
    "budget": "row_shape",
    "discriminator.width": "discriminator.channels",
    "loader.rows": "loader.batch_size",
    "model.gated.mlp_multiple": "model.gated.mlp_ratio",
    "model.resampler.mlp_multiple": "model.resampler.mlp_ratio",
    "queries.bare_images": "queries.unconditional_rate",
    "queries.mix.preference": "queries.mix.rating",
    "start": "init_from",
    "tasks.loss_weights.preference": "tasks.loss_weights.rating",
    "vqgan.widths": "vqgan.channels",
}
"""Dotted name of a field as it was -> as it is. Only the last part differs."""


FORMER_VALUES = {"loader": {"planner": 1}}
"""By section, what fields that are not saved stood for, where that is not their default now."""


def with_current_names(saved: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration as JSON with every field under its current name, in the same order."""
    current = {}
    for name, value in saved.items():
        name = FORMER_NAMES.get(prefix + name, prefix + name).removeprefix(prefix)
        current[name] = with_current_names(value, f"{prefix}{name}.") if isinstance(value, dict) else value
    return current


def with_former_values(saved: dict[str, Any]) -> dict[str, Any]:
    """A configuration as JSON with what it meant by the fields that it does not have."""
    return saved | {name: FORMER_VALUES[name] | saved[name] for name in FORMER_VALUES if name in saved}
