"""Translates configurations saved by earlier versions, so that their runs can still be read."""

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
"""Former dotted name of a field -> its current name. Only the last part differs."""


FORMER_VALUES = {"loader": {"planner": 1}}
"""By section: the values of fields that old configurations lack, where these are not today's defaults."""


def with_current_names(saved: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a configuration as JSON with every field under its current name, in the same order."""
    current = {}
    for name, value in saved.items():
        name = FORMER_NAMES.get(prefix + name, prefix + name).removeprefix(prefix)
        current[name] = with_current_names(value, f"{prefix}{name}.") if isinstance(value, dict) else value
    return current


def with_former_values(saved: dict[str, Any]) -> dict[str, Any]:
    """Returns a configuration as JSON, completed by the former values of the fields that it lacks."""
    return saved | {name: FORMER_VALUES[name] | saved[name] for name in FORMER_VALUES if name in saved}
