"""`unimp vqgan evaluate`: compares held-out images with their decoded codes, beside the mean image and JPEG."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from data_pipelines.atomic import atomic_file, write_json
from experiments.parameters import Checkpoint
from experiments.vqgan.config import WhichImages
from experiments.vqgan.images import open_images
from experiments.vqgan.measure import compress, likeness
from experiments.vqgan.run import decoder_of, encoder_of, open_vqgan, trained_on
from unimp_jax.evaluation.bootstrap import Interval, interval
from unimp_jax.image_tokens.quantiser import perplexity

SHOWN = 16
"""Number of images on the sheet, the first held-out ones."""
ENLARGED = 2


@dataclasses.dataclass(frozen=True)
class CodecRow:
    """One way of encoding images.

    Attributes:
      bits: average number of bits per image.
    """

    name: str
    bits: float
    metrics: dict[str, Interval]


@dataclasses.dataclass(frozen=True)
class Reconstructions:
    """How similar decoded images are to the held-out images.

    Attributes:
      images: number of held-out images.
      used: number of codes that occur in any of them.
      perplexity: the number of codes that, used equally often, would have the same entropy.
      jpeg_bits: average number of bits of a whole JPEG file of the last row.
    """

    source: str
    images: int
    codes: int
    used: int
    perplexity: float
    jpeg_bits: float
    rows: tuple[CodecRow, ...]

    def __str__(self) -> str:
        names = list(self.rows[0].metrics)
        lines = [
            f"{self.source}: {self.images} held-out images; {self.used} of {self.codes} codes used, perplexity "
            f"{self.perplexity:.0f}. The bits of JPEG count the coefficients only; a complete file has "
            f"{self.jpeg_bits:,.0f}.",
            "",
            f"| | bits per image | {' | '.join(names)} |",
            f"|---|---{'|---' * len(names)}|",
        ]
        for row in self.rows:
            cells = [f"{f.mean:.3f} [{f.bounds(', ')}]" for f in row.metrics.values()]
            lines.append(f"| {row.name} | {row.bits:.0f} | {' | '.join(cells)} |")
        return "\n".join(lines)


def evaluate_vqgan(
    folder: Path,
    which: WhichImages = WhichImages(),
    checkpoint: Checkpoint = "best",
    out: Path | None = None,
) -> str:
    """Writes `evaluation.json` and `reconstructions.png` into `out` (None: the VQGAN's folder, or that of its file),
    and returns the table as Markdown. Of the images, those are used that the training holds out."""
    trained = trained_on(folder)
    data, out = which.beside(trained), out or (folder if folder.is_dir() else folder.parent)
    out.mkdir(parents=True, exist_ok=True)  # reports an unusable folder before anything is computed
    model = open_vqgan(folder, checkpoint)
    store = open_images(data, model.config.image_size)
    if trained and data.source == trained.source:  # otherwise images held out here may have been trained on
        store.check_same(folder)
    learnt, held_out = store.parts(data)
    images, bits = store.take(held_out), model.config.bits_per_image
    codes = encoder_of(model)(images)
    made, (jpeg, scan_bits, whole_bits) = decoder_of(model)(codes), compress(images, bits)
    mean = np.round(store.take(learnt).mean(axis=0)).astype(np.uint8)
    counts_K = np.bincount(codes.reshape(-1), minlength=model.config.codes)
    found = Reconstructions(
        source=data.source,
        images=len(images),
        codes=model.config.codes,
        used=int((counts_K > 0).sum()),
        perplexity=float(perplexity(counts_K.astype(np.float32))),
        jpeg_bits=float(whole_bits.mean()),
        rows=(
            row("VQGAN", bits, images, made),
            row("the mean image", 0, images, np.broadcast_to(mean, images.shape)),
            row("JPEG, tables not counted", float(scan_bits.mean()), images, jpeg),
        ),
    )
    if jax.process_index() == 0:
        write_json(out / "evaluation.json", dataclasses.asdict(found))
        write_sheet(out / "reconstructions.png", [images, made, jpeg])
    return f"{found}\n\ntop: images, middle: VQGAN, bottom: JPEG: {out / 'reconstructions.png'}"


def row(name: str, bits: float, images: np.ndarray, made: np.ndarray) -> CodecRow:
    return CodecRow(name, bits, {metric: interval(values) for metric, values in likeness(images, made).items()})


def write_sheet(path: Path, rows: list[np.ndarray]) -> None:
    """Writes the first images of each of uint8 [N, H, W, 3], one row below the other, as a PNG."""
    sheet = np.concatenate([np.concatenate([*images[:SHOWN]], axis=1) for images in rows])
    large = Image.fromarray(sheet).resize(
        (ENLARGED * sheet.shape[1], ENLARGED * sheet.shape[0]), Image.Resampling.NEAREST
    )
    with atomic_file(path) as partial:
        large.save(partial, "PNG")
