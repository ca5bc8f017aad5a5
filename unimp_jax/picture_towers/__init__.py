"""Towers that pictures are measured by: CLIP, pictures and words, and the Inception that the FID is made with."""

from unimp_jax.picture_towers.clip import CLIP, CLIPConfig, TextConfig
from unimp_jax.picture_towers.inception import Inception

__all__ = ["CLIP", "CLIPConfig", "Inception", "TextConfig"]
