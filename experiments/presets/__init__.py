"""Presets by name, one file each: from minutes on two cores to weeks on a pod."""

from experiments.config import ExperimentConfig
from experiments.presets import beauty, fashion, reviews, small, smol, tiny
from experiments.presets.interleaved import DESCRIPTIONS as INTERLEAVED
from experiments.presets.interleaved import interleaved
from experiments.presets.published import DESCRIPTIONS as PUBLISHED
from experiments.presets.published import as_published

MODULES = {"tiny": tiny, "small": small, "smol": smol, "reviews": reviews, "fashion": fashion, "beauty": beauty}
PRESETS: dict[str, ExperimentConfig] = {
    **{name: module.EXPERIMENT for name, module in MODULES.items()},
    **{name: as_published(name) for name in PUBLISHED},
    **{name: interleaved(name) for name in INTERLEAVED},
}
DESCRIPTIONS: dict[str, str] = {
    **{name: str(module.__doc__) for name, module in MODULES.items()},
    **PUBLISHED,
    **INTERLEAVED,
}
"""One line per preset for `unimp train --help`."""
