"""Amazon's reviews of 2014 and of 2023: from files to records, clean text, and what is said where one is wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipelines.corpus import TEST, VALIDATION, build_corpus
from data_pipelines.errors import DataError
from data_pipelines.prepare import prepare
from data_pipelines.records import read_items, read_users
from data_pipelines.sources.amazon import written
from data_pipelines.sources.amazon_reviews import Amazon2023Sample, AmazonInstruments2014
from data_pipelines.sources.checks import Faults, clean
from data_pipelines.sources.registry import find_source
from tests.data_pipelines.test_amazon_2014 import row, write_csv
from tests.data_pipelines.test_amazon_2023_sample import line, review, write_lines

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def test_sources_are_found_by_name() -> None:
    assert find_source("amazon_instruments_2014") is AmazonInstruments2014
    assert find_source("amazon_2023_sample") is Amazon2023Sample


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("  two\nlines\r\n\tand\u2028three ", "two lines and three"),
        ("one.<br /><br />Two, <b>bold</b>", "one. Two, bold"),
        ('<a href="http://x.y/?a=1&amp;b=2">link</a>', "link"),
        ("&#34;loud&#34; &amp; 5&#8217;s", '"loud" & 5\u2019s'),
        ("at &lt;$20 not >$30", "at <$20 not >$30"),  # an entity begins no tag
        ("I <3 it, 2 < 3", "I <3 it, 2 < 3"),
        ("the K&M; stand", "the K&M; stand"),
        ("[[VIDEOID:5c532f5f5d94b557]] I want", "I want"),
        ("nul\x00l and \x8a and &#xD800; and &#0;", "nul l and and \ufffd and \ufffd"),
        ("<br />", ""),
    ],
)
def test_text_is_one_clean_line(text: str, expected: str) -> None:
    assert clean(text) == expected


def test_a_review_without_text_is_its_headline() -> None:
    assert written("long", "short") == "long"
    assert written(" <br /> ", "it&#8217;s\nshort") == "it\u2019s short"
    assert written("", "") == ""


@pytest.mark.parametrize(
    ("source", "file", "publisher"),
    [
        ("amazon_instruments_2014", "reviews_5core.csv", "cseweb.ucsd.edu"),
        ("amazon_2023_sample", "users.jsonl", "amazon-reviews-2023.github.io"),
    ],
)
def test_what_is_needed_is_reported(tmp_path: Path, source: str, file: str, publisher: str) -> None:
    with pytest.raises(DataError, match=rf"cannot be downloaded from here: {file}, .*--source-dir.*{publisher}"):
        prepare(source, tmp_path / "data")
    with pytest.raises(DataError, match=rf"{file} does not exist: .*{publisher}"):
        prepare(source, tmp_path / "data", tmp_path)


@pytest.mark.parametrize(
    ("source", "write", "told"),
    [
        (
            "amazon_instruments_2014",
            lambda folder: write_csv(folder, [row(), row(asin="A2"), row(asin="A2"), row(overall="9")]),
            "line 5",
        ),
        (
            "amazon_2023_sample",
            lambda folder: write_lines(folder, line([review("B1"), review("B2")]), "{}"),
            "line 2",
        ),
    ],
)
def test_records_are_written_and_faults_reported_once(
    tmp_path: Path, source: str, write: Callable[[Path], Path], told: str
) -> None:
    write(tmp_path)
    prepared = prepare(source, tmp_path / "data", tmp_path, "skip")
    assert (prepared.users, prepared.items, prepared.interactions, prepared.images) == (1, 2, 2, 0)
    assert len(prepared.bad_records) == 1
    assert told in prepared.bad_records[0]
    reader = find_source(source)(
        config="items", data_dir=str(tmp_path / "unused"), source_dir=tmp_path, faults=Faults("skip")
    )
    assert list(read_items(source, tmp_path / "data")) == list(reader.open_source(None).items())


@pytest.mark.parametrize(
    ("source", "folder", "counts"),
    [
        ("amazon_instruments_2014", "amazon-2014/musical-instruments", (1429, 900, 10_261, 10_261)),
        ("amazon_2023_sample", "amazon-2023-sample", (691, 3228, 3452, 3452)),  # 3,455 reviews, 3 of them superseded
    ],
)
def test_the_real_files(tmp_path: Path, source: str, folder: str, counts: tuple[int, ...]) -> None:
    if not (SHARED / folder).is_dir():
        pytest.skip(f"the shared folder {folder} is not beside the checkout")
    prepared = prepare(source, tmp_path, SHARED / folder)
    assert (prepared.users, prepared.items, prepared.interactions, prepared.rated) == counts
    assert prepared.bad_records == prepared.bad_images == []
    corpus = build_corpus(read_items(source, tmp_path), read_users(source, tmp_path))
    assert len(corpus.texts) == prepared.interactions
    assert not any("\n" in text or "<br" in text for text in corpus.texts.values())
    assert len(corpus.held_out(TEST)[0]) == len(corpus.held_out(VALIDATION)[0]) == prepared.users
    assert corpus.rating_levels == [1, 2, 3, 4, 5]
