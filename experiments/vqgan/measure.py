"""Metrics of the similarity of images and their reconstructions: PSNR and SSIM."""

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity


def likeness(images: np.ndarray, made: np.ndarray) -> dict[str, np.ndarray]:
    """Returns metrics per image, float64 [N] each: PSNR in dB, and SSIM over windows of 7 x 7, the mean of three
    colours.

    Args:
      images, made: uint8 [N, H, W, 3].
    """
    pairs = list(zip(images, made, strict=True))
    return {
        "PSNR": np.array([psnr(image, other) for image, other in pairs]),
        "SSIM": np.array([structural_similarity(image, other, channel_axis=2) for image, other in pairs]),
    }


def psnr(image: np.ndarray, other: np.ndarray) -> float:
    """Returns the PSNR in dB; for equal images, that of images that differ by one step in one value."""
    if np.array_equal(image, other):
        return float(10 * np.log10(255**2 * image.size))
    return float(peak_signal_noise_ratio(image, other))
