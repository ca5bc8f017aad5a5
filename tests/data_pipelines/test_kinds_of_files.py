"""What can be odd about a file of any source: how it is packed, its encoding, its lines, its header, its units."""

import csv
import gzip
import io
import re
from pathlib import Path

import pytest

from data_pipelines.errors import DataError
from data_pipelines.sources.checks import FEW, Faults
from tests.data_pipelines.small import START
from tests.data_pipelines.source_files import EVERY_FILE, GOOD, MET, read, read_good, table, write_files

TABLES = [(source, file) for source, file in EVERY_FILE if file.endswith(".csv") and source != "netflix"]
IN_LINES = [
    (source, file)
    for source, file in EVERY_FILE
    if not file.endswith(".json") or source in ("amazon_2014", "amazon_2018")
]
TIMES = {
    "movielens_small": "ratings.csv",
    "movielens_small, local": "movielens-small/users.jsonl",
    "movielens_1m": "ratings.dat",
    "amazon_2014": "reviews_Books_5.json",
    "amazon_2018": "Books_5.json",
    "amazon_2023": "Books.jsonl",
    "amazon_instruments_2014": "reviews_5core.csv",
    "amazon_2023_sample": "users.jsonl",
}
every_file = pytest.mark.parametrize(("source", "file"), EVERY_FILE)
every_table = pytest.mark.parametrize(("source", "file"), TABLES)
every_file_in_lines = pytest.mark.parametrize(("source", "file"), IN_LINES)


@pytest.fixture(scope="session")
def valid(tmp_path_factory: pytest.TempPathFactory):
    """The records of every valid folder."""
    return {source: read_good(tmp_path_factory.mktemp("valid"), source) for source in GOOD}


@pytest.fixture
def good(valid, source: str):
    """The records of the valid folder, to be compared as text: a rating that is NaN equals none."""
    assert len(valid[source][0]) in (4, 5)
    assert len(valid[source][1]) >= 2
    return valid[source]


def test_the_valid_files_say_what_they_say(tmp_path: Path) -> None:
    """Of three sources; those of the others have tests of their own."""
    items, users = read_good(tmp_path, "movielens_small")
    assert [item.title for item in items] == ["Toy Story", "Misérables, Les", "Se7en", "M"]
    found = [(user.user_id, one.item_id, one.time - START, one.rating) for user in users for one in user.interactions]
    assert found == [(str(user), str(item), time, float(stars)) for user, item, time, stars in MET]
    assert users[0].interactions[1].text == "fun, for all, é"
    items, users = read_good(tmp_path, "hm")
    assert [(item.title, dict(item.attributes)["Description"]) for item in items[:1]] == [("Top 1", '"é", blue')]
    items, users = read_good(tmp_path, "amazon_instruments_2014")
    assert users[0].interactions[0].text == 'He said "é", and left'


# --- how it is packed and written ------------------------------------------------------------------------------------


@every_file
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, source: str, file: str, good) -> None:
    marked = b"\xef\xbb\xbf" + GOOD[source][file]
    assert str(read_good(tmp_path, source, {file: marked})) == str(good)


@every_file_in_lines
def test_byte_order_marks_of_files_that_were_joined_are_no_part_of_the_text(
    tmp_path: Path, source: str, file: str, good
) -> None:
    first, *others = GOOD[source][file].split(b"\n")
    mark = b"\xef\xbb\xbf"
    if b'"' in GOOD[source][file] and file.endswith(".csv"):  # a line may be a part of a record
        joined = mark + mark + GOOD[source][file]
    else:
        joined = (b"\n" + mark).join([mark + mark + first, *others])
    assert str(read_good(tmp_path, source, {file: joined})) == str(good)


@every_file
@pytest.mark.parametrize("named", ["plain", "gz"])
def test_gzip_is_reported_by_its_bytes(tmp_path: Path, source: str, file: str, named: str, good) -> None:
    packed = gzip.compress(GOOD[source][file], mtime=0)
    if named == "plain":
        assert str(read_good(tmp_path, source, {file: packed})) == str(good)
        return
    folder = write_files(tmp_path, {**GOOD[source], f"{file}.gz": packed})
    (folder / file).unlink()
    assert str(read(folder, source)) == str(good)
    (folder / f"{file}.gz").write_bytes(GOOD[source][file])
    assert str(read(folder, source)) == str(good)
    (folder / file).mkdir()  # as 7-Zip leaves it
    assert str(read(folder, source)) == str(good)
    (folder / f"{file}.gz").write_bytes(packed[:-9])
    with pytest.raises(DataError, match=rf"{file}.gz is damaged: it is not a complete gzip file"):
        read(folder, source)


@every_file
@pytest.mark.parametrize(("end", "before"), [(b"\r\n", b""), (b"\r", b""), (b"\n", b"\n \n")])
def test_ends_of_lines_and_empty_lines(tmp_path: Path, source: str, file: str, end: bytes, before: bytes, good) -> None:
    text = before + GOOD[source][file].replace(b"\n", end) + 2 * end
    assert str(read_good(tmp_path, source, {file: text})) == str(good)


@every_file
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_characters_are_named_with_the_remedy(tmp_path: Path, source: str, file: str, encoding: str) -> None:
    text = GOOD[source][file].decode("latin-1" if file.endswith(".dat") else "utf-8").encode(encoding)
    name = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    with pytest.raises(DataError, match=rf"{file} is {name}; UTF-8 is needed: iconv -f {name} -t UTF-8"):
        read_good(tmp_path, source, {file: text}, Faults("skip"))


@pytest.mark.parametrize(("source", "file"), [(s, f) for s, f in EVERY_FILE if s in ("hm", "netflix", "amazon_2023")])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\x03\x04...", "a zip archive; unzip it"),
        (b"PAR1...", "a Parquet file"),
        (gzip.compress(gzip.compress(b"1,2\n", mtime=0), mtime=0), "compressed twice"),
        (gzip.compress(gzip.compress(b"1,2\n", mtime=1e9), mtime=1e9), "compressed twice"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS.*git lfs pull"),
        (b"<!DOCTYPE html>\n<html>", "a web page"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "binary; a text file is needed"),
        (b"ratings.csv" + bytes(89) + b"0000644" + bytes(500), "binary; a text file is needed"),
    ],
    ids=["zip", "parquet", "gzip -n twice", "gzip twice", "git lfs", "web page", "excel", "tar"],
)
def test_what_is_no_text_is_named(tmp_path: Path, source: str, file: str, content: bytes, what: str) -> None:
    with pytest.raises(DataError, match=rf"{file} is {what}") as caught:
        read_good(tmp_path, source, {file: content}, Faults("skip"))
    assert len(str(caught.value).splitlines()) == 1


@every_file
def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path, source: str, file: str) -> None:
    folder = write_files(tmp_path, GOOD[source])
    (folder / file).unlink()
    (folder / file).mkdir()
    with pytest.raises(DataError, match=rf"{file} is a folder; a file is needed \(7-Zip unpacks"):
        read(folder, source)


@every_file
def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, source: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def refuse(path: Path, *arguments: object, **named: object) -> object:
        if path == tmp_path / file:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **named)

    write_files(tmp_path, GOOD[source])
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=rf"{file} cannot be read \(Permission denied\)"):
        read(tmp_path, source)


@pytest.mark.parametrize("source", GOOD)
def test_files_that_macos_adds_and_folders_are_no_data(tmp_path: Path, source: str, good) -> None:
    mac = {f"{Path(file).parent}/._{Path(file).name}": b"\0\5\x16\7\0Mac OS X" for file in GOOD[source]}
    folder = write_files(tmp_path / "in", {**GOOD[source], **mac, ".DS_Store": b"\0\0\0\1Bud1"})
    for name in ("__MACOSX", "Backup.txt", "Backup.jsonl", "Backup_5.json", "reviews_Backup_5.json"):
        (folder / name).mkdir()
    assert str(read(folder, source)) == str(good)


# --- bad lines -------------------------------------------------------------------------------------------------------


@every_file_in_lines
@pytest.mark.parametrize("bad", [b'{"x', b'"never closed', b"caf\xe9,1\xe9", b'{"a": 1, "a": 2}', b"[" * 10**5])
def test_a_bad_line_is_named_and_costs_no_neighbour(tmp_path: Path, source: str, file: str, bad: bytes, good) -> None:
    text = GOOD[source][file]
    after = text.index(b"\n", len(text) // 2) + 1
    if source == "amazon_instruments_2014":
        after = text.index(b"\nU2,B2") + 1  # not within a quoted text
    if file == "articles.csv":
        after = text.index(b"\n0108775003") + 1
    if source == "netflix":
        after = len(text)  # the films after it would have other numbers
    broken = text[:after] + bad + b"\n" + text[after:]
    line = text[:after].count(b"\n") + 1
    with pytest.raises(DataError, match=rf"^{Path(file).name} line {line}: .*--on-bad skip leaves out such") as caught:
        read_good(tmp_path, source, {file: broken})
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400
    faults = Faults("skip")
    assert str(read_good(tmp_path, source, {file: broken}, faults)) == str(good)
    assert [fault.split(":")[0] for fault in faults.records] == [f"{Path(file).name} line {line}"]


@every_file_in_lines
def test_a_file_of_another_layout_is_refused_and_not_left_out_line_by_line(
    tmp_path: Path, source: str, file: str
) -> None:
    head = GOOD[source][file].splitlines(keepends=True)[0] if file.endswith(".csv") else b""
    line = 2 if head else 1
    other = head + b"".join(b"no %d such line\n" % number for number in range(3 * FEW))
    with pytest.raises(
        DataError,
        match=rf"^{Path(file).name} line {line}: .*; .* records are bad, too many to leave out$",
    ):
        read_good(tmp_path, source, {file: other}, Faults("skip"))


@every_file
def test_an_empty_file_is_named(tmp_path: Path, source: str, file: str) -> None:
    if file.startswith("meta_") or file == "tags.csv":
        pytest.skip("items may be undescribed")
    with pytest.raises(DataError, match=re.escape(Path(file).name)):
        read_good(tmp_path, source, {file: b""})


@pytest.mark.parametrize("source", ["amazon_2018", "amazon_2023", "amazon_2023_sample", "movielens_small, local"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: b"[" + text.strip().replace(b"\n", b",\n") + b"]",
            "line 1: one object per line is needed, but this is an arr",
        ),
        (
            lambda text: text.replace(b"{", b"{\n ", 1),
            r"line 1: one object per line is needed, but this one spans several",
        ),
        (lambda text: text.rstrip()[:-2], r"line \d+: not JSON \(it ends inside a value: the line is cut off"),
        (lambda text: text.replace(b"}\n{", b"}{", 1), r"line \d+: not JSON \(more than one value, the second starts"),
    ],
)
def test_json_that_is_not_an_object_a_line_is_reported(tmp_path: Path, source: str, change, message: str) -> None:
    file = TIMES[source]
    with pytest.raises(DataError, match=rf"^{Path(file).name} {message}"):
        read_good(tmp_path, source, {file: change(GOOD[source][file])})


@pytest.mark.parametrize(("source", "file"), [("netflix", "train.json"), ("sequences", "Toys_item2attributes.json")])
def test_a_key_that_occurs_twice_in_a_file_is_a_bad_record(tmp_path: Path, source: str, file: str, good) -> None:
    twice = GOOD[source][file][:-1] + GOOD[source][file][:7].replace(b"{", b", ") + b"4]}"
    with pytest.raises(DataError, match=rf"^{file}: key '\d' occurs twice"):
        read_good(tmp_path, source, {file: twice})
    assert str(read_good(tmp_path, source, {file: twice}, Faults("skip"))) == str(good)


# --- headers ---------------------------------------------------------------------------------------------------------


def rows_of(source: str, file: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(GOOD[source][file].decode())))


@every_table
def test_columns_are_found_by_name_in_any_order(tmp_path: Path, source: str, file: str, good) -> None:
    header, *rows = ([f"extra {number}", *reversed(row)] for number, row in enumerate(rows_of(source, file)))
    assert str(read_good(tmp_path, source, {file: table(header, rows)})) == str(good)
    quoted = io.StringIO()
    csv.writer(quoted, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([header, *rows])
    assert str(read_good(tmp_path, source, {file: quoted.getvalue().encode()})) == str(good)


@every_table
@pytest.mark.parametrize(("mark", "what"), [(";", "semicolons"), ("\t", "tabs")])
def test_other_marks_between_columns_are_reported(tmp_path: Path, source: str, file: str, mark: str, what: str) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=mark, lineterminator="\n").writerows(rows_of(source, file))
    with pytest.raises(DataError, match=rf"^{file} line 1: columns .* by {what}; they must be separated by commas"):
        read_good(tmp_path, source, {file: text.getvalue().encode()}, Faults("skip"))


@every_table
def test_a_header_that_is_not_there_or_not_right_is_reported(tmp_path: Path, source: str, file: str) -> None:
    header, *rows = rows_of(source, file)
    first = header.index({"hm": "article_id", "amazon_instruments_2014": "asin"}.get(source, "movieId"))
    for names, message in (
        (rows[0], r"column '\w+' is missing; there must be a header .*, not '"),
        (
            [*header[:first], "other", *header[first + 1 :]],
            rf"column '{header[first]}' is missing; there must be .*, not '\w",
        ),
        ([*header, header[first]], rf"column '{header[first]}' occurs 2 times"),
    ):
        with pytest.raises(DataError, match=rf"^{file} line 1: {message}"):
            read_good(tmp_path, source, {file: table(names, rows)}, Faults("skip"))


def test_the_films_of_netflix_may_have_a_header_in_any_order(tmp_path: Path) -> None:
    good = read_good(tmp_path, "netflix")
    rows = list(csv.reader(io.StringIO(GOOD["netflix"]["item_attribute.csv"].decode())))
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        header, *films = ([row[place] for place in order] for row in [["id", "year", "title"], *rows])
        assert str(read_good(tmp_path, "netflix", {"item_attribute.csv": table(header, films)})) == str(good)
    with pytest.raises(
        DataError, match=r"^item_attribute.csv line 1: column 'year' is missing; there must be id, year"
    ):
        read_good(tmp_path, "netflix", {"item_attribute.csv": table(["id", "title"], [row[::2] for row in rows])})


# --- units -----------------------------------------------------------------------------------------------------------

DIGITS = re.compile(rb"10000000\d\d(\d{3}(?=[,}]))?")


def in_unit(text: bytes, zeros: int, count: int = 0) -> bytes:
    """Times in another unit: the first `count` of them, or all."""
    return DIGITS.sub(lambda match: match[0][:10] + b"0" * zeros, text, count)


@pytest.mark.parametrize(("source", "file"), TIMES.items())
@pytest.mark.parametrize("zeros", [0, 3, 6, 9])
def test_times_in_any_unit_are_the_same_times(tmp_path: Path, source: str, file: str, zeros: int, good) -> None:
    changed = in_unit(GOOD[source][file], zeros)
    assert str(read_good(tmp_path, source, {file: changed})) == str(good)
    whole = re.sub(rb"(10000000\d\d0*)(?=[,}\n])", rb"\1.0", changed)
    assert str(read_good(tmp_path, source, {file: whole})) == str(good)


@pytest.mark.parametrize(("source", "file"), TIMES.items())
@pytest.mark.parametrize("time", [b"1000000011000000", b"5", b"631151999", b"99999999999", b"-7"])
def test_a_time_that_is_none_is_refused_or_left_out(tmp_path: Path, source: str, file: str, time: bytes, good) -> None:
    usual = in_unit(GOOD[source][file], 0)
    changed = DIGITS.sub(time, usual, 1)
    told = (
        "in microseconds; it must be seconds since 1970 like the other times in the file"
        if len(time) == 16
        else "it must be"
    )
    with pytest.raises(DataError, match=rf"^{Path(file).name} line \d: .*field '\w+' is {time.decode()}[,;] {told}"):
        read_good(tmp_path, source, {file: changed})
    faults = Faults("skip")
    _, users = read_good(tmp_path, source, {file: changed}, faults)
    assert len(faults.records) == 1
    if source != "movielens_1m":  # of which the core of five is gone
        assert str(users[-2:]) == str(good[1][-2:])


def test_times_may_be_counted_where_only_their_order_is_known(tmp_path: Path) -> None:
    for source in ("movielens_small, local", "amazon_instruments_2014"):
        file = TIMES[source]
        _, (first, *_) = read_good(
            tmp_path, source, {file: DIGITS.sub(lambda match: b"7" + match[0][-2:], GOOD[source][file])}
        )
        assert [one.time for one in first.interactions] == [711, 712, 713, 714]


def test_days_of_purchases_lie_between_1990_and_next_year(tmp_path: Path) -> None:
    good = GOOD["hm"]["transactions_train.csv"]
    for day in (b"1899-12-30", b"2999-01-01", b"2020-02-30"):
        text = re.sub(rb"2020-07-11", day, good, count=1)
        with pytest.raises(
            DataError, match=r"^transactions_train.csv line 2: field 't_dat' is .*a day from 1990 to next year"
        ):
            read_good(tmp_path, "hm", {"transactions_train.csv": text})


# --- numbers and texts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "file"), TIMES.items())
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1e39", "50", "-1", ""])
def test_ratings_are_finite_and_on_their_scale(tmp_path: Path, source: str, file: str, number: str) -> None:
    good = in_unit(GOOD[source][file], 0).decode()
    written = {".csv": r"(\n1,1,|left\",)([\d.]+)(?=,)", ".dat": r"(^1::1::)(\d)(?=::)"}
    pattern = written.get(Path(file).suffix, r'("(?:rating|overall)": )([\d.]+)(?=[,}])')
    text, count = re.subn(
        pattern, lambda match: match[1] + (number or ("null" if "json" in file else "")), good, count=1
    )
    assert count == 1
    faults = Faults("skip")
    with pytest.raises(DataError, match=rf"^{Path(file).name} line \d: .*field '(rating|overall)' is .*; it must be"):
        read_good(tmp_path, source, {file: text.encode()})
    read_good(tmp_path, source, {file: text.encode()}, faults)
    assert len(faults.records) == 1


@pytest.mark.parametrize(
    "source", ["movielens_small", "movielens_small, local", "movielens_1m", "hm", "netflix", "amazon_2023"]
)
def test_titles_have_no_control_characters(tmp_path: Path, source: str) -> None:
    title = {"hm": "Top", "netflix": "Dinosaur", "amazon_2023": "Œuvre"}.get(source, "Toy Story")
    changed = {
        file: text.replace(
            title.encode(),
            title[:2].encode() + (rb"\u001b\u0007" if "json" in file else b"\x1b\x07") + title[2:].encode(),
        )
        for file, text in GOOD[source].items()
    }
    items, _ = read_good(tmp_path, source, changed)
    assert items[0].title.startswith(f"{title[:2]} {title[2:]}")
    assert all(character >= " " for item in items for _, text in item.attributes for character in text)
