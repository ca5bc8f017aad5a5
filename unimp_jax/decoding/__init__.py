"""Decoding with a KV cache: beam search over the vocabulary or a catalogue's trie, and sampling of image codes."""

from unimp_jax.decoding.beam import Answers, BeamConfig, beam_search
from unimp_jax.decoding.cache import AnswerCache, PromptCache, decode_step, empty_cache, prefill
from unimp_jax.decoding.catalogue import Found, path_scores, search_items
from unimp_jax.decoding.sampling import CodeSamplingConfig, SampledCodes, SamplingConfig, sample_codes
from unimp_jax.decoding.trie import PAST, Trie, build_trie
