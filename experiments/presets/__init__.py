"""Presets by name: from minutes on two cores to weeks on a pod."""

from __future__ import annotations

from experiments.config import ExperimentConfig
from experiments.presets import own, published

PRESETS: dict[str, ExperimentConfig] = {name: getattr(own, name) for name in own.DESCRIPTIONS} | published.PRESETS
DESCRIPTIONS: dict[str, str] = own.DESCRIPTIONS | published.DESCRIPTIONS
"""One line per preset for `unimp train --help`."""
