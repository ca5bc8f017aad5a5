"""Feature extractors for image metrics: CLIP for images and texts, and the Inception network of the FID."""

from unimp_jax.feature_extractors.clip import CLIP, CLIPConfig, TextConfig
from unimp_jax.feature_extractors.inception import Inception
