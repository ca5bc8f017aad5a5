"""The similarity of images and their reconstructions, PSNR and SSIM, and JPEG at as few bits as the codes take."""

import bisect
import io

import numpy as np
from PIL import Image
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


START_OF_SCAN = 0xDA
QUALITIES = range(1, 96)


def compress(images: np.ndarray, bits: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compresses each image of uint8 [N, H, W, 3] to the JPEG with the highest PSNR whose coefficients take at most
    `bits` bits: at its own size, or reduced to a half, a quarter, … and enlarged again, which is far better at few
    bits.

    Tables and headers, hundreds of bytes that could be agreed upon in advance, are not counted: no JPEG with them is as
    small. Huffman tables are the standard's, colours have half the resolution, blocks are of 8 x 8.

    Returns:
      (uint8 [N, H, W, 3], decoded; int64 [N], bits of the coefficients alone; int64 [N], bits of the whole files).

    Raises:
      ValueError: not even 8 x 8 pixels fit.
    """
    decoded, files = zip(*(best_jpeg(image, bits) for image in images), strict=True)
    sizes = [(8 * scan_bytes(file), 8 * len(file)) for file in files]
    return np.stack(decoded), *np.array(sizes).T


def best_jpeg(image: np.ndarray, bits: float) -> tuple[np.ndarray, bytes]:
    """Returns (the decoded image, the file) of one image."""
    found, size = list[tuple[np.ndarray, bytes]](), len(image)
    while size >= 8:
        file = finest_jpeg(np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS)), bits)
        if file is not None:
            small = Image.open(io.BytesIO(file)).convert("RGB")
            found.append((np.asarray(small.resize(image.shape[1::-1], Image.Resampling.BICUBIC)), file))
        size //= 2
    if not found:
        raise ValueError(f"no JPEG of the image has at most {bits:.0f} bits of coefficients")
    return max(found, key=lambda one: psnr(image, one[0]))


def finest_jpeg(image: np.ndarray, bits: float) -> bytes | None:
    """Returns the file with the highest quality that fits, by bisection; None if none fits."""
    quality = bisect.bisect_right(QUALITIES, bits, key=lambda quality: 8 * scan_bytes(encode(image, quality)))
    return encode(image, quality) if quality else None


def encode(image: np.ndarray, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0", optimize=False)
    return file.getvalue()


def scan_bytes(file: bytes) -> int:
    """Returns the bytes of the entropy-coded coefficients, between the scan header and the end of the file."""
    place = 2
    while file[place + 1] != START_OF_SCAN:
        place += 2 + int.from_bytes(file[place + 2 : place + 4], "big")
    header = 2 + int.from_bytes(file[place + 2 : place + 4], "big")
    return len(file) - place - header - 2  # the end-of-file marker has two bytes
