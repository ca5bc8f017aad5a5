"""Items that are searched for, against the whole catalogue scored: the same ranks, items and probabilities."""

import copy
import dataclasses
import functools
import gc
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from data_pipelines.loader import QuestionBatch, question_batches
from data_pipelines.tasks import Query
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import RowShape
from data_pipelines.tasks.queries import held_out_queries
from data_pipelines.vocabulary import Vocabulary
from experiments.config import TrainingConfig
from experiments.data import ExperimentData, PreparedSource, sized_model
from experiments.evals.base import next_token, prompt_batches
from experiments.evals.config import GenerateConfig
from experiments.evals.ranking import best_items, rank_catalogue, seen_items
from experiments.evals.rating import write_reviews
from experiments.evals.recommender import NextItem
from experiments.step import to_device
from tests.data_pipelines.small import image, semantic_vocabulary, small_corpus, small_vocabulary
from tests.experiments.tiny_run import MODEL, experiment
from tests.unimp_jax.interop.support import randomised
from tests.unimp_jax.models import drawn
from unimp_jax.decoding import BeamConfig, build_trie
from unimp_jax.evaluation.metrics import ranking_metrics
from unimp_jax.evaluation.predictor import Predictor
from unimp_jax.evaluation.ranking import Ranked
from unimp_jax.model import UniMP
from unimp_jax.sharding import MeshConfig, make_mesh

CORPUS = small_corpus()
ITEMS = CORPUS.num_items
K, NARROW = 20, 4
# No multiple of four tokens: CPUs compute attention to these in one piece, which makes programs smaller.
ALONE = RowShape(tokens=254, images=8, answers=1)
TOGETHER = dataclasses.replace(ALONE, answers=4)
VOCABULARIES = {1: small_vocabulary, 3: semantic_vocabulary}


@functools.cache
def vocabulary(depth: int) -> Vocabulary:
    return VOCABULARIES[depth](CORPUS)


@functools.cache
def asked(
    depth: int, devices: int = 1, images: bool = True, fusion: str = "cross_attention"
) -> tuple[ExperimentData, Predictor]:
    """A model of random weights, so large that answers hang on the history, and what it is asked with."""
    tasks = TaskConfig(full_items=2, id_items=8, history_targets="next_item", images=images)
    model = dataclasses.replace(MODEL, fusion=fusion)
    config = experiment(
        Path(), tasks=tasks, row_shape=dataclasses.replace(ALONE, answers=64), model=model,
        training=TrainingConfig(trains=model.parts),
    )  # fmt: skip
    config = dataclasses.replace(config, loader=dataclasses.replace(config.loader, batch_size=2 * devices))
    config = sized_model(config, vocabulary(depth))
    records = PreparedSource(CORPUS, np.arange(ITEMS) % 3 != 0, image)
    mesh = make_mesh(MeshConfig(data=-1), jax.devices()[:devices])
    graph, state = nnx.split(randomised(drawn(config.model), deviation=0.5))
    # placed as tests place other parameters, so that these share the compiled programs
    state = jax.device_put(jax.tree.map(lambda x: 3 * np.asarray(x), state), NamedSharding(mesh, PartitionSpec()))
    model = Predictor(graph, mesh, to_device(mesh), (state, nnx.State({})))
    return ExperimentData(config, records, vocabulary(depth)), model


@functools.cache
def questions(task: str = "recommendation") -> tuple[Query, ...]:
    return tuple(held_out_queries(CORPUS, "test", task)[:12])


def right_items(queries: tuple[Query, ...]) -> np.ndarray:
    return np.array([query.right[0] for query in queries], np.int32)


def met(queries: tuple[Query, ...]) -> list[np.ndarray]:
    """What each had met; every third had met the right item as well."""
    seen, right = seen_items(CORPUS, queries), right_items(queries)
    return [np.append(seen(row), right[row : row + 1] if row % 3 == 0 else []).astype(int) for row in range(len(right))]


def batches_of(data: ExperimentData, task: str, row_shape: RowShape = TOGETHER) -> Iterator[QuestionBatch]:
    prompts = [data.writer.write(query, ask=True) for query in questions(task)]
    return question_batches(prompts, row_shape, data.images, data.config.loader)


def search(
    depth: int, task: str = "recommendation", row_shape: RowShape = TOGETHER, *, k: int = K, beams: int = ITEMS,
    targets: np.ndarray | None = None, seen: Sequence[np.ndarray] | None = None, model: Predictor | None = None,
) -> Ranked:  # fmt: skip
    data, model = asked(depth)[0], model or asked(depth)[1]
    targets = right_items(questions(task)) if targets is None else targets
    seen = met(questions(task)) if seen is None else seen
    return model.search(
        batches_of(data, task, row_shape),
        trie=data.trie,
        item_tokens=data.vocabulary.items,
        targets=targets.astype(np.int32),
        seen=seen.__getitem__,
        k=k,
        beams=beams,
    )


def within(ranks: np.ndarray) -> np.ndarray:
    return np.where(ranks <= K, ranks, np.inf)


def assert_close(one: Ranked, other: Ranked, tolerance: float = 1e-4) -> None:
    np.testing.assert_array_equal(one.unfiltered, other.unfiltered)
    np.testing.assert_array_equal(one.filtered, other.filtered)
    np.testing.assert_array_equal(one.top, other.top)
    np.testing.assert_allclose(one.scores, other.scores, atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(one.cross_entropy, other.cross_entropy, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("task", ["recommendation", "search"])
def test_ids_of_one_token_are_found_as_they_are_ranked(task):
    data, model = asked(1)
    queries = questions(task)
    ranked = model.rank(
        batches_of(data, task),
        item_tokens=data.vocabulary.items[:, 0],
        targets=right_items(queries),
        seen=met(queries).__getitem__,
        k=K,
    )
    assert np.isfinite(ranked.unfiltered).all()
    found = search(1, task)
    assert len(set(found.top[:, 0].tolist())) > 2  # answers hang on the prompt
    assert_close(
        found, dataclasses.replace(ranked, unfiltered=within(ranked.unfiltered), filtered=within(ranked.filtered))
    )


def test_among_few_tokens_the_logits_of_all_others_are_not_computed(monkeypatch):
    data, model = asked(1, images=False)
    queries, tokens = questions()[:3], data.vocabulary.items[:5, 0]
    with monkeypatch.context() as patched:
        patched.setattr(UniMP, "logits", lambda *_: pytest.fail("all tokens get a logit"))
        found = next_token(data, model, queries, tokens)
    whole = np.exp(model.next_token(prompt_batches(data, model, queries), tokens, len(queries)).astype(np.float64))
    assert np.ptp(found, axis=1).min() > 0.01, "the tolerance is far below what there is to see"
    np.testing.assert_allclose(found, whole / whole.sum(axis=1, keepdims=True), rtol=1e-4)


@pytest.mark.parametrize("depth", [1, 3])
def test_scores_that_are_nan_are_no_recommendation(monkeypatch, depth):
    data, model = asked(depth)
    nothing = np.full((1, K), -1, np.int32), np.full((1, K), np.nan, np.float32)
    monkeypatch.setattr(Predictor, "best_items", lambda *_, **options: nothing)
    monkeypatch.setattr(Predictor, "next_token", lambda *_: np.full((1, ITEMS), np.nan, np.float32))
    (query, *_) = questions()
    with pytest.raises(ValueError, match="scores are NaN for 1 of 1 prompts"):
        best_items(data, model, query, GenerateConfig(k=K))
    if depth == 1:
        with pytest.raises(ValueError, match="scores are NaN for 1 of 1 prompts"):
            NextItem(data, model).scores(np.array([query.user]), np.array([query.position]))


@functools.cache
def brute_force(task: str = "recommendation") -> np.ndarray:
    """log p of every item's name behind every prompt, float64 [P, I]: each beginning of a name written out behind the
    prompt, and the next token read from a pass over the whole."""
    data, model = asked(3)
    queries, names = questions(task), data.vocabulary.items
    tokens = np.unique(names)
    scores = np.zeros((len(queries), ITEMS))
    for step in range(names.shape[1]):
        begun = sorted({tuple(name[:step]) for name in names.tolist()})
        prompts = [data.writer.write(query, ask=True, begun=start) for query in queries for start in begun]
        logs = model.next_token(data.questions(prompts), tokens, len(prompts))
        logs = logs.reshape(len(queries), len(begun), len(tokens))
        for item, name in enumerate(names.tolist()):
            scores[:, item] += logs[:, begun.index(tuple(name[:step])), tokens.tolist().index(name[step])]
    return scores


def ranked_plainly(scores: np.ndarray, targets: np.ndarray, seen: Sequence[np.ndarray]) -> Ranked:
    """By sorting, one prompt after the other."""
    kept, filtered, tops, values = [], [], [], []
    for row, target in enumerate(targets.tolist()):
        order = np.argsort(-scores[row]).tolist()
        hidden = set(seen[row].tolist())
        kept.append(order.index(target) + 1)
        filtered.append([item for item in order if item == target or item not in hidden].index(target) + 1)
        top = [item for item in order if item not in hidden][:K]
        tops.append(top + [-1] * (K - len(top)))
        values.append([scores[row, item] for item in top] + [-np.inf] * (K - len(top)))
    entropy = -scores[np.arange(len(targets)), targets]
    return Ranked(*(np.array(part) for part in (kept, filtered, tops, values, entropy)))


@pytest.mark.parametrize("task", ["recommendation", "search"])
def test_beams_as_wide_as_the_catalogue_find_what_scoring_every_item_ranks(task):
    queries = questions(task)
    plain = ranked_plainly(brute_force(task), right_items(queries), met(queries))
    assert min(plain.unfiltered) <= K < max(plain.unfiltered)
    found = search(3, task)
    assert_close(
        found, dataclasses.replace(plain, unfiltered=within(plain.unfiltered), filtered=within(plain.filtered))
    )


def test_narrow_beams_find_items_that_are_new_to_the_user_at_their_true_probabilities():
    queries = questions()
    found, scores = search(3, k=NARROW, beams=NARROW), brute_force()
    for row, hidden in enumerate(met(queries)):
        top = found.top[row].tolist()
        assert len(set(top)) >= NARROW - 1  # none twice; one may have been the right item, where that was met before
        assert not set(top) - {-1} & set(hidden.tolist())
        for item, score in zip(top, found.scores[row].tolist(), strict=True):
            assert score == pytest.approx(scores[row, item] if item >= 0 else -np.inf, abs=1e-4, rel=1e-4)
    np.testing.assert_allclose(
        found.cross_entropy, -scores[np.arange(len(queries)), right_items(queries)], atol=1e-4, rtol=1e-4
    )


def test_prompts_that_share_a_row_are_answered_as_they_are_alone():
    data, _ = asked(3)
    assert max((batch.prompts >= 0).sum(axis=1).max() for batch in batches_of(data, "recommendation")) > 1
    assert_close(search(3), search(3, row_shape=ALONE))


@pytest.mark.parametrize(("depth", "k", "beams"), [(1, K, ITEMS), (3, K, ITEMS), (3, NARROW, NARROW)])
def test_who_has_met_all_but_two_items_is_answered_with_those_two(depth, k, beams):
    left = np.array([np.random.default_rng(row).permutation(ITEMS)[:2] for row in range(len(questions()))])
    seen = np.array([np.setdiff1d(np.arange(ITEMS), pair) for pair in left])
    found = search(depth, seen=seen, targets=left[:, 0], k=k, beams=beams)
    np.testing.assert_array_equal(np.sort(found.top[:, :2]), np.sort(left))
    np.testing.assert_array_equal(found.filtered, np.where(found.top[:, 0] == left[:, 0], 1, 2))
    assert np.isfinite(found.scores[:, :2]).all()
    assert (found.top[:, 2:] == -1).all()
    assert (found.scores[:, 2:] == -np.inf).all()


def test_who_has_met_everything_is_answered_with_nothing_but_the_right_item_has_a_rank():
    found = search(3, seen=np.tile(np.arange(ITEMS), (len(questions()), 1)))
    assert (found.top == -1).all()
    assert (found.scores == -np.inf).all()
    assert (found.filtered == 1).all()


def test_prompts_without_images_are_answered():
    data, model = asked(3, images=False)
    ranked = rank_catalogue(data, model, questions(), beams=ITEMS)
    assert np.isfinite(ranked.cross_entropy).all()
    ranking_metrics(ranked.filtered)
    assert (ranked.top >= 0).all()


def test_a_mesh_of_devices_finds_what_one_does():
    queries = questions()
    (data, model), (other_data, other) = asked(3), asked(3, devices=2)
    assert_close(rank_catalogue(data, model, queries), rank_catalogue(other_data, other, queries))


def test_more_items_than_beams_are_refused():
    with pytest.raises(ValueError, match="4 beams cannot find the 10 best"):
        search(3, k=10, beams=4)


def test_a_broken_model_finds_nothing():
    _, model = asked(3)
    nothing = jax.tree.map(lambda x: jax.device_put(np.full(x.shape, np.nan, x.dtype), x.sharding), model.parameters)
    ranked = search(3, model=model.with_parameters(nothing))
    assert (ranked.filtered == np.inf).all()
    assert (ranked.top == -1).all()
    assert np.isnan(ranked.cross_entropy).all()


def test_the_trie_is_that_of_the_names():
    data, _ = asked(3)
    same = build_trie(data.vocabulary.items)
    assert data.trie.depth == data.vocabulary.depth == same.depth
    np.testing.assert_array_equal(data.trie.items, same.items)


@pytest.mark.parametrize(
    ("depth", "fusion"), [(1, "cross_attention"), (3, "cross_attention"), (1, "interleaved"), (3, "interleaved")]
)
def test_images_that_were_encoded_before_give_the_answers_of_those_encoded_now(depth, fusion):
    data, model = asked(depth, fusion=fusion)
    queries = list(questions())
    served = model.encode_catalogue(data.writer.has_image, data.images.__getitem__)
    assert not served.needs_images
    assert served.latents_ILC.shape[0] == ITEMS
    assert_close(
        rank_catalogue(data, served, queries, k=K, beams=K), rank_catalogue(data, model, queries, k=K, beams=K)
    )
    blind = copy.copy(served)
    blind.latents_ILC = 0 * served.latents_ILC
    different = rank_catalogue(data, blind, queries, k=K, beams=K)
    assert (different.scores != rank_catalogue(data, served, queries, k=K, beams=K).scores).any(), "images matter"


def test_reviews_begin_with_a_rating_or_are_counted_as_unread():
    data, model = asked(1)
    queries = held_out_queries(CORPUS, "test", "rating")[:6]
    config = BeamConfig(beams=2, new_tokens=5)
    ratings, explanations, texts, scores = write_reviews(data, model, queries, config)
    names = {f"rate_{level:g}": level for level in data.vocabulary.rating_levels}
    for rating, text, explanation in zip(ratings, texts, explanations, strict=True):
        first = text.split(" ", 1)[0]
        if first in names:
            assert rating == names[first]
            assert text == f"{first} {explanation}".strip()
        else:
            assert np.isnan(rating)
            assert text == explanation
    _, _, alone, score = write_reviews(data, model, queries[:1], config)
    assert alone == texts[:1]
    np.testing.assert_allclose(score, scores[:1], atol=1e-4)


def test_parameters_are_let_go_with_their_predictor():
    data, model = asked(1)
    own = model.with_parameters(jax.tree.map(lambda x: jax.device_put(np.array(x), x.sharding), model.parameters))
    ask_for = functools.partial(rank_catalogue, data, queries=questions()[:2], k=3)
    ask_for(predictor=own)
    leaf = weakref.ref(jax.tree.leaves(own.parameters)[0])
    gc.disable()
    try:
        del own
        assert leaf() is None
    finally:
        gc.enable()
