"""Metrics of codebook usage and of collisions between items."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class CodebookMetrics:
    """Results of `describe`; tuples have a value for each learned level."""

    items: int
    used: tuple[float, ...]
    """Share of a level's codes that some item has."""
    perplexity: tuple[float, ...]
    """Exponential of the entropy of a level's codes over items: the equivalent number of equally used codes."""
    colliding: float
    """Share of items whose learned codes equal those of another item."""
    largest: int
    """Number of items in the largest group with equal learned codes."""
    moved: int
    """Number of items whose codes were changed to make all ids distinct."""
    errors: tuple[float, ...] | None
    """Fraction of the features' variance that the first 1, 2, … levels do not explain, before items are moved."""

    def __str__(self) -> str:
        """Returns a row for each level, and a line about collisions."""
        rows = ["level    used  perplexity" + ("   error" if self.errors else "")]
        for level, (used, perplexity) in enumerate(zip(self.used, self.perplexity, strict=True)):
            error = f"{self.errors[level]:8.4f}" if self.errors else ""
            rows.append(f"{level:5d}{used:8.1%}{perplexity:12.1f}{error}")
        rows.append(
            f"{self.items} items: {self.colliding:.2%} share their codes with others, at most {self.largest} "
            f"items have the same codes; {self.moved} were reassigned"
        )
        return "\n".join(rows)


def describe(
    codes: np.ndarray, final: np.ndarray, *, size: int = 512, errors: Sequence[float] | None = None
) -> CodebookMetrics:
    """Returns metrics of learned codes and of the ids that `resolve` derived from them.

    Args:
      codes: int [I, L], each below `size`.
      final: int [I, L + 1].
      errors: Errors after the first 1, 2, … levels, such as `Quantised.errors`.

    Raises:
      ValueError: There are no items, or the shapes do not match.
    """
    num_items, levels = codes.shape
    if not num_items or final.shape != (num_items, levels + 1) or (errors is not None and len(errors) != levels):
        raise ValueError(
            f"codes have shape {codes.shape}, ids {final.shape}, and there are "
            f"{'no' if errors is None else len(errors)} errors; expected [items, levels], [items, levels + 1] and "
            "one error per level, with at least one item"
        )
    counts_LK = np.stack([np.bincount(codes_I, minlength=size) for codes_I in codes.T])
    shares_LK = counts_LK / num_items
    entropy_L = -(shares_LK * np.log(np.where(shares_LK > 0, shares_LK, 1))).sum(axis=1)
    _, groups = np.unique(codes, axis=0, return_counts=True)
    return CodebookMetrics(
        items=num_items,
        used=tuple((counts_LK > 0).mean(axis=1).tolist()),
        perplexity=tuple(np.exp(entropy_L).tolist()),
        colliding=float(groups[groups > 1].sum() / num_items),
        largest=int(groups.max()),
        moved=int((codes != final[:, :-1]).any(axis=1).sum()),
        errors=None if errors is None else tuple(map(float, errors)),
    )


def unexplained(points_ID: np.ndarray, lost_I: np.ndarray) -> float:
    """Returns the sum of squared errors |point - approximation|^2 over sum |point - mean|^2; 0 if nothing varies."""
    variation = np.square(points_ID - points_ID.mean(axis=0, dtype=np.float64)).sum()
    return float(lost_I.sum(dtype=np.float64) / variation) if variation > 0 else 0.0
