"""Towers that images are measured by: CLIP, images and words, and the Inception that the FID is made with."""

from unimp_jax.feature_extractors.clip import CLIP, CLIPConfig, TextConfig
from unimp_jax.feature_extractors.inception import Inception

__all__ = ["CLIP", "CLIPConfig", "Inception", "TextConfig"]
