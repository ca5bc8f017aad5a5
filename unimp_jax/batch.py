"""The input of one step: rows of packed, interleaved examples, as arrays of fixed shape.

The last letters of a name are the dimensions of its array throughout this package:

  B rows of a batch        T tokens of a row           N images of a row          A answers, or prompts, of a row
  D decoder width          H query heads               K key/value heads          h width of a head
  V vocabulary             C vision width              P patch tokens of an image L latents of an image
  S keys of an attention   G groups of decoder layers  E layers of a group        k query heads that share a key head
  W beam of a prompt       n tokens of an answer       Q = A W                    I items of a catalogue

In evaluation: M questions or users; w bytes of a bitmap of the catalogue; S seeds; P users, S images for each of them
and R images of other items; F features. For image codes: K codes, Z channels of a codeword; H, W rows and columns of
pixels or features and C their channels; h, w rows and columns of codes.
"""

import flax.struct
import jax


@flax.struct.dataclass
class Batch:
    """Rows that contain one or more whole examples (segments) each.

    Segments are numbered 1, 2, … in their order in a row; 0 marks padding and empty slots. Images are in the order of
    their markers in the row. An answer is one predicted token: the hidden state at `answer_positions` predicts
    `answer_targets` (for next-token answers, the token that follows it).

    Attributes:
      tokens: int32 [B, T].
      segment_ids: int32 [B, T], 0 for padding.
      positions: int32 [B, T], counted from 0 in each segment.
      image_index: int32 [B, T], the row's image that most recently precedes the token in its segment (the tokens that
        represent or mark an image count as following it), -1 if there is none.
      images: uint8 [B, N, height, width, 3], or the outputs of a frozen tower, float [B, N, P, C]; zeros in empty
        slots.
      image_segment_ids: int32 [B, N], 0 for an empty slot.
      answer_positions: int32 [B, A], 0 in empty slots.
      answer_targets: int32 [B, A], 0 in empty slots.
      answer_weights: float32 [B, A], the weight of the task; 0 marks an empty slot.
      answer_tasks: int32 [B, A], the task of an answer, for metrics only.
    """

    tokens: jax.Array
    segment_ids: jax.Array
    positions: jax.Array
    image_index: jax.Array
    images: jax.Array
    image_segment_ids: jax.Array
    answer_positions: jax.Array
    answer_targets: jax.Array
    answer_weights: jax.Array
    answer_tasks: jax.Array
