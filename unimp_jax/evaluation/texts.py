r"""BLEU, ROUGE and METEOR of generated texts against the users' own texts, as computed by maintained libraries.

METEOR needs WordNet where NLTK looks for data (the folders of NLTK_DATA); without it METEOR is left out and
`signatures` says so.
Install it with `python -m nltk.downloader wordnet`, or from Debian's packages alone:

    apt-get download wordnet-base wordnet-sense-index && for deb in wordnet-*.deb; do dpkg -x $deb wn; done
    zcat wn/usr/share/man/man5/lexnames.5WN.gz | awk '/^[0-9][0-9]\t/ {print $1 "\t" $2 "\t" \
        index("nva", substr($2, 1, 1)) + ($2 ~ /adv/)}' > wn/usr/share/wordnet/lexnames
    mkdir -p $NLTK_DATA/corpora && mv wn/usr/share/wordnet $NLTK_DATA/corpora/wordnet
"""

import importlib.metadata
import operator
from collections.abc import Callable, Sequence

import numpy as np
from nltk.corpus import wordnet
from nltk.tokenize import wordpunct_tokenize
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from unimp_jax.evaluation.metrics import Means

ROUGE = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}
ORDERS = range(1, 5)  # orders of the n-grams of BLEU
BLEU_COLUMNS = (
    "BLEU length",
    "BLEU reference length",
    *(f"BLEU matches {n}" for n in ORDERS),
    *(f"BLEU n-grams {n}" for n in ORDERS),
)


def text_scores(generated: Sequence[str], written: Sequence[str]) -> dict[str, np.ndarray]:
    """Computes the per-user values that `TEXT_METRICS` needs from each generated text and the text that the user wrote.

    An empty generated text scores 0.

    Args:
      generated, written: M texts each; no written text is empty.

    Returns:
      float64 [M] by name. `ROUGE-1`, `ROUGE-2` and `ROUGE-L` are F1 of Porter stems, 0 to 1 (Lin 2004); `METEOR`, 0 to
      1 (Lavie and Agarwal 2007), is present if WordNet is. BLEU (Papineni et al. 2002) is represented by its counts,
      which can be summed over users, unlike BLEU itself; `BLEU users` is M for everyone.

    Raises:
      ValueError: The numbers of texts differ, or a written text is blank.
    """
    if len(generated) != len(written):
        raise ValueError(f"{len(generated)} generated texts for {len(written)} reference texts")
    blank = sum(not text.strip() for text in written)
    if blank:
        raise ValueError(f"{blank} of {len(written)} reference texts are blank, so there is nothing to compare with")
    pairs = list(zip(generated, written, strict=True))
    values = _bleu_counts(pairs) | _rouge(pairs)
    if not _wordnet_missing():
        values["METEOR"] = np.array([meteor(*pair) for pair in pairs], np.float64)
    return values


def meteor(generated: str, written: str) -> float:
    """Computes METEOR of one text, 0 to 1, with NLTK: synonyms are looked up for the Porter stems of unmatched words.
    Raises LookupError if WordNet is not installed."""
    return single_meteor_score(wordpunct_tokenize(written), wordpunct_tokenize(generated), wordnet=wordnet)


def text_metrics(values: dict[str, np.ndarray]) -> dict[str, Callable[[Means], np.ndarray]]:
    """Returns the `TEXT_METRICS` for which `values`, from `text_scores`, contains values."""
    return {name: formula for name, formula in TEXT_METRICS.items() if name == "BLEU" or name in values}


def signatures() -> dict[str, str]:
    """Returns version and settings of the libraries for `BLEU`, `ROUGE` and `METEOR`, or why METEOR is left out."""
    bleu = BLEU()
    bleu.corpus_score(["a"], [["a"]])  # sets the number of references in the signature
    missing = _wordnet_missing()
    return {
        "BLEU": f"sacrebleu {bleu.get_signature()}",
        "ROUGE": f"rouge-score F1|stemmer:porter|version:{importlib.metadata.version('rouge-score')}",
        "METEOR": missing
        or f"nltk alpha:0.9|beta:3|gamma:0.5|case:lc|tok:wordpunct|wordnet:{wordnet.get_version()}"
        f"|version:{importlib.metadata.version('nltk')}",
    }


def _bleu_counts(pairs: list[tuple[str, str]]) -> dict[str, np.ndarray]:
    """Returns float64 [M] by the names of `BLEU_COLUMNS`, and `BLEU users`."""
    bleu = BLEU()
    scores = [bleu.corpus_score([generated], [[written]]) for generated, written in pairs]
    rows = [[score.sys_len, score.ref_len, *score.counts, *score.totals] for score in scores]
    columns = np.array(rows, np.float64).reshape(len(pairs), len(BLEU_COLUMNS)).T
    return dict(zip(BLEU_COLUMNS, columns, strict=True)) | {"BLEU users": np.full(len(pairs), len(pairs), np.float64)}


def _rouge(pairs: list[tuple[str, str]]) -> dict[str, np.ndarray]:
    """Returns float64 [M] by the names of `ROUGE`."""
    scorer = RougeScorer(list(ROUGE.values()), use_stemmer=True)
    scores = [scorer.score(written, generated) for generated, written in pairs]
    return {name: np.array([score[key].fmeasure for score in scores], np.float64) for name, key in ROUGE.items()}


def _wordnet_missing() -> str:
    """Returns why WordNet cannot be used; empty if it can."""
    try:
        wordnet.ensure_loaded()
    except LookupError:
        return "left out: WordNet was not found; see unimp_jax.evaluation.texts for how to install it"
    except OSError as error:
        return f"left out: WordNet is incomplete ({error}); see unimp_jax.evaluation.texts for how to install it"
    return ""


def _corpus_bleu(means: Means) -> np.ndarray:
    """Computes corpus BLEU, 0 to 100, from means over users, which are converted back to sums because smoothing depends
    on the total number of n-grams."""
    bleu = BLEU()
    columns = [np.rint(means[name] * means["BLEU users"]).astype(np.int64) for name in BLEU_COLUMNS]
    scores = [
        BLEU.compute_bleu(
            counts[: len(ORDERS)],
            counts[len(ORDERS) :],
            length,
            reference_length,
            smooth_method=bleu.smooth_method,
            smooth_value=bleu.smooth_value,
        ).score
        for length, reference_length, *counts in np.stack(columns, axis=-1).reshape(-1, len(BLEU_COLUMNS)).tolist()
    ]
    return np.array(scores, np.float64).reshape(columns[0].shape)


TEXT_METRICS: dict[str, Callable[[Means], np.ndarray]] = {
    "BLEU": _corpus_bleu,
    **{name: operator.itemgetter(name) for name in (*ROUGE, "METEOR")},
}
