"""Metrics of generated texts against the libraries' own, on the whole and on resamples of users."""

import numpy as np
import pytest
import sacrebleu
from nltk.corpus import WordNetCorpusReader, wordnet
from nltk.corpus.util import LazyCorpusLoader
from nltk.tokenize import wordpunct_tokenize
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer

from unimp_jax.evaluation import bootstrap, texts
from unimp_jax.evaluation.texts import TEXT_METRICS, meteor, signatures, text_metrics, text_scores

WORDS = ["a", "funny", "film,", "films", "with", "moving", "scenes", "and", "the", "Best", "ending.", "7", "naïve", "!"]


@pytest.fixture(autouse=True)
def _without_wordnet(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """WordNet takes seconds to load: it is there for the tests that ask for it alone."""
    if "wordnet_installed" not in request.fixturenames:
        monkeypatch.setattr(texts, "wordnet", LazyCorpusLoader("no_such_corpus", WordNetCorpusReader, None))


@pytest.fixture
def wordnet_installed() -> None:
    try:
        wordnet.ensure_loaded()
    except (LookupError, OSError):
        pytest.skip("METEOR needs WordNet, which is not in the folders of NLTK_DATA or not complete")


def drawn_texts(num_texts: int, seed: int, longest: int = 12) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(1, longest + 1))) for _ in range(num_texts)]


def whole(values: dict[str, np.ndarray], chosen: np.ndarray, name: str) -> float:
    """The metric over some users, as `bootstrap.metric` computes it of a resample."""
    means = {column: value[chosen].mean(keepdims=True) for column, value in values.items()}
    return float(TEXT_METRICS[name](means)[0])


@pytest.mark.parametrize("longest", [3, 12])
def test_bleu_of_any_resample_is_the_corpus_bleu_of_its_texts(longest: int) -> None:
    """Short texts have few or no n-grams of four words, so that smoothing decides."""
    generated, written = drawn_texts(30, 0, longest), drawn_texts(30, 1, longest)
    generated[3], generated[4] = "", written[4]
    values = text_scores(generated, written)
    rng = np.random.default_rng(2)
    for chosen in [np.arange(30), *(rng.integers(0, 30, 30) for _ in range(20))]:
        right = sacrebleu.corpus_bleu([generated[user] for user in chosen], [[written[user] for user in chosen]])
        assert whole(values, chosen, "BLEU") == pytest.approx(right.score, rel=1e-12)
    found = bootstrap.metric(values, TEXT_METRICS["BLEU"], resamples=200)
    assert found.mean == pytest.approx(sacrebleu.corpus_bleu(generated, [written]).score, rel=1e-12)
    assert found.low < found.mean < found.high


def test_bleu_keeps_the_shape_of_its_means() -> None:
    values = text_scores(drawn_texts(6, 0), drawn_texts(6, 1))
    means = {name: np.tile(value.mean(), (2, 3)) for name, value in values.items()}
    found = TEXT_METRICS["BLEU"](means)
    assert found.shape == (2, 3)
    assert (found == found[0, 0]).all()


def test_rouge_is_that_of_rouge_score() -> None:
    generated, written = drawn_texts(20, 0), drawn_texts(20, 1)
    values = text_scores(generated, written)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for user, pair in enumerate(zip(written, generated, strict=True)):
        right = scorer.score(*pair)
        for name, key in (("ROUGE-1", "rouge1"), ("ROUGE-2", "rouge2"), ("ROUGE-L", "rougeL")):
            assert values[name][user] == right[key].fmeasure
    assert bootstrap.metric(values, TEXT_METRICS["ROUGE-L"]).mean == pytest.approx(values["ROUGE-L"].mean())


def test_perfect_answers_score_highest_and_empty_ones_0() -> None:
    written = ["A funny film with a moving ending.", "The best scenes and the best films of all!"]
    users = np.arange(2)
    for generated, bleu, rouge in ((written, 100, 1), (["", "  "], 0, 0)):
        values = text_scores(generated, written)
        assert whole(values, users, "BLEU") == pytest.approx(bleu)
        assert [whole(values, users, name) for name in ("ROUGE-1", "ROUGE-2", "ROUGE-L")] == [rouge] * 3
        assert all(value.shape == (2,) and value.dtype == np.float64 for value in values.values())


def test_meteor_is_that_of_nltk(wordnet_installed: None) -> None:
    generated, written = drawn_texts(20, 0), drawn_texts(20, 1)
    generated[3] = ""
    values = text_scores(generated, written)
    right = [
        meteor_score([wordpunct_tokenize(one)], wordpunct_tokenize(other))
        for one, other in zip(written, generated, strict=True)
    ]
    assert values["METEOR"].tolist() == right
    assert values["METEOR"][3] == 0
    assert set(text_metrics(values)) == set(TEXT_METRICS)
    assert meteor("dog", "frump") == 0.5  # synonyms; one chunk for one match costs half
    assert "wordnet:3" in signatures()["METEOR"]


def test_without_wordnet_meteor_is_left_out_and_said_to_be() -> None:
    values = text_scores(["a film"], ["a film"])
    assert "METEOR" not in values
    assert set(text_metrics(values)) == set(TEXT_METRICS) - {"METEOR"}
    assert signatures()["METEOR"].startswith("left out: WordNet was not found")


def test_signatures_tell_versions_and_settings() -> None:
    found = signatures()
    assert found["BLEU"] == f"sacrebleu nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"
    assert found["ROUGE"].startswith("rouge-score F1|stemmer:porter|version:0.")


def test_broken_input_is_refused() -> None:
    with pytest.raises(ValueError, match="1 generated texts for 2 reference texts"):
        text_scores(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="1 of 2 reference texts are blank"):
        text_scores(["a", "b"], ["a", " "])
