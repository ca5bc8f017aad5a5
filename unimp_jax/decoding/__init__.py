"""Answers: greedy, sampled, by beam search, as items of a catalogue, or as codes of images."""

from unimp_jax.decoding.beam import BeamConfig, beam_search
from unimp_jax.decoding.cache import Prompts, nothing_said, read, say
from unimp_jax.decoding.catalogue import Found, find_items, path_scores, search_items
from unimp_jax.decoding.codes import CodeSamplingConfig, SampledCodes, sample_image_codes
from unimp_jax.decoding.sampling import Answers, SamplingConfig, generate
from unimp_jax.decoding.trie import PAST, Trie, build_trie, close, close_all

__all__ = [
    "PAST",
    "Answers",
    "BeamConfig",
    "CodeSamplingConfig",
    "Found",
    "Prompts",
    "SampledCodes",
    "SamplingConfig",
    "Trie",
    "beam_search",
    "build_trie",
    "close",
    "close_all",
    "find_items",
    "generate",
    "nothing_said",
    "path_scores",
    "read",
    "sample_image_codes",
    "say",
    "search_items",
]
