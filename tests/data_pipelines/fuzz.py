"""Small good files of every source, damaged by a seed; each must end in records or in one line that names the file.

    python -m tests.data_pipelines.fuzz --count 2000

goes through 2,000 of them in processes of `BATCH` each, prints what became of them by source, and ends with status 1
where one ended in anything else, took more than `SECONDS` or more memory than `MEBIBYTES`. One alone, to look at:

    python -m tests.data_pipelines.fuzz --first 1234 --count 1 --keep FOLDER
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipelines.corpus import build_corpus
from data_pipelines.errors import DataError
from data_pipelines.prepare import prepare
from data_pipelines.records import read_items, read_users
from data_pipelines.sources.selection import SourceSelection
from tests.data_pipelines import (
    amazon_files,
    test_amazon,
    test_hm,
    test_movielens_archive,
    test_netflix,
    test_sequences,
)
from tests.data_pipelines.movielens_files import movielens_folder

SECONDS, MEBIBYTES, BATCH = 20, 2048, 100
LONGEST_MESSAGE = 1500


def release(name: str) -> Callable[[Path], object]:
    def build(folder: Path) -> None:
        users, items = ("U1", "U2", "U3"), ("B1", "B2", "B3", "B4")
        pairs = ((user, item) for user in users for item in items)
        reviews = [amazon_files.REVIEW[name](*pair, 60 * number) for number, pair in enumerate(pairs)]
        amazon_files.write(folder, name, reviews, [amazon_files.PRODUCT[name](item) for item in items])
        packed = next(folder.glob("*.gz"))
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()

    return build


def instruments(folder: Path) -> None:
    folder.mkdir()
    told = {"reviewText": 'It "is"\nfine, Œuvre.'}
    rows = [test_amazon.row(reviewerID=f"U{user}", asin=f"A{item}", **told) for user in range(3) for item in range(4)]
    test_amazon.write_csv(folder, rows)


def sample(folder: Path) -> None:
    folder.mkdir()
    reviews = [test_amazon.review(f"B{item}", 1000 * item) for item in range(5)]
    lines = (test_amazon.line(reviews[:-1], user_id=f"U{user}", heldout=reviews[-1]) for user in range(4))
    test_amazon.write_lines(folder, *lines)


def official_1m(folder: Path) -> None:
    test_movielens_archive.archive_1m(folder, test_movielens_archive.ratings_dat())


def local_1m(folder: Path) -> None:
    movielens_folder(folder)
    (folder / "movielens-small").rename(folder / "movielens-1m")
    users = ({"user": user, "history": [1, 2, 3], "validation": 4, "test": 5} for user in range(4))
    lines = "".join(f"{json.dumps(user)}\n" for user in users)
    (folder / "movielens-1m" / "users.jsonl").write_text(lines)


SEEDS: tuple[tuple[str, Callable[[Path], object]], ...] = (
    ("movielens_small", movielens_folder),
    ("movielens_small", test_movielens_archive.archive_small),
    ("movielens_1m", official_1m),
    ("movielens_1m", local_1m),
    ("amazon_2014", release("amazon_2014")),
    ("amazon_2018", release("amazon_2018")),
    ("amazon_2023", release("amazon_2023")),
    ("amazon_instruments_2014", instruments),
    ("amazon_2023_sample", sample),
    ("hm", test_hm.write),
    ("netflix", test_netflix.write),
    ("sequences", test_sequences.write),
)
"""Every source, each with a function that writes good files of it; two layouts of some."""
CORED = ("amazon_2014", "amazon_2018", "amazon_2023", "hm", "sequences")

# --- how files are damaged -------------------------------------------------------------------------------------------

VALUES = (
    b"", b" ", b"null", b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1", b"0", b"1.0", b"4,5", b"9" * 30,
    b"9" * 5000, b"18446744073709551616", b"1e18", b"1577836800000", b"1577836800000000", b"true", b"[]", b"{}", b'""',
    b'"', b"'", b"\\", b"\x00", b"\xff", b"\xe9", b"\xef\xbb\xbf", b"\\ud800", b"\xed\xa0\x80", b"a\tb",
    b"a b", b"\r", b"::", b",", b"\xe2\x80\xa8", b"\xe2\x80\xae", b"<image>", b"</s>", b"__import__('os')", b"{'a': 1}",
    b"(" * 300, b"[" * 3000, b"x" * 200_000, b"2020-02-31", b"0001-01-01", b"1e", b"0x10", b"1_000", b"\xd9\xa1",
    b"-0.0", b"None", b"nan",
)  # fmt: skip
TOKEN = re.compile(rb"[^\s,:;\"'\[\]{}()|]+")


def some_bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(len(changed) + 1)
        how = rng.randrange(4)
        if how == 0 and place < len(changed):
            changed[place] = rng.randrange(256)
        elif how == 1:
            changed[place:place] = rng.randbytes(rng.randint(1, 4))
        elif how == 2:
            del changed[place : place + rng.randint(1, 40)]
        elif place < len(changed):
            changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut_off(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def fields(data: bytes, rng: random.Random) -> bytes:
    """Some words and numbers become others, of this file or odd ones; in one line, or in all that have the first."""
    tokens = list(TOKEN.finditer(data))
    for token in sorted(rng.sample(tokens, min(len(tokens), rng.randint(1, 3))), key=lambda token: -token.start()):
        value = rng.choice(VALUES) if rng.random() < 0.8 else rng.choice(tokens)[0]
        if rng.random() < 0.2:
            data = data.replace(token[0], value)
        else:
            data = data[: token.start()] + value + data[token.end() :]
    return data


def lines(data: bytes, rng: random.Random) -> bytes:
    rows = data.splitlines(keepends=True) or [b""]
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(rows) + 1)
        row = rng.choice(rows)
        how = rng.randrange(6)
        if how == 0:
            del rows[place : place + rng.randint(1, 2)]
        elif how == 1:
            rows.insert(place, row)
        elif how == 2:
            rows.insert(place, rng.choice([b"\n", b"\r\n", b" \n", b"#\n", rng.choice(VALUES) + b"\n"]))
        elif how == 3:
            rows.insert(place, row.rstrip(b"\n"))  # runs into the next
        elif how == 4:
            half = rng.randrange(len(row) + 1)
            rows.insert(place, row[:half] + b"\n" + row[half:])
        else:
            rows = rows[:place] + [row] * rng.choice([10, 3000]) + rows[place:]
        rows = rows or [b""]
    return b"".join(rows)


def order(data: bytes, rng: random.Random) -> bytes:
    """Lines, or the fields of some or of all lines, in another order."""
    rows = data.splitlines(keepends=True)
    if rng.random() < 0.4:
        rng.shuffle(rows)
        return b"".join(rows)
    mark = rng.choice([b",", b"::", b" ", b", "])
    chance, seed = rng.choice([0.3, 1]), rng.random()
    for number, row in enumerate(rows):
        if rng.random() < chance:
            parts = row.rstrip(b"\n").split(mark)
            random.Random(seed).shuffle(parts)
            rows[number] = mark.join(parts) + b"\n"
    return b"".join(rows)


def whole(data: bytes, rng: random.Random) -> bytes:
    """The whole file in another way."""
    text = data.decode("latin-1")
    rows = data.splitlines()
    return rng.choice([
        lambda: gzip.compress(data, mtime=0),
        lambda: gzip.compress(gzip.compress(data, mtime=0), mtime=0),
        lambda: gzip.compress(data, mtime=0)[:-9],
        lambda: b"\xef\xbb\xbf" + data,
        lambda: text.encode("utf-16"),
        lambda: text.encode("utf-16-le"),
        lambda: text.encode("utf-32"),
        lambda: text.replace("i", "\xef").encode("latin-1"),
        lambda: data.replace(b"\n", b"\r\n"),
        lambda: data.replace(b"\n", b"\r"),
        lambda: data.replace(b",", rng.choice([b";", b"\t"])),
        lambda: b"[" + b",\n".join(rows) + b"]\n",
        lambda: b" ".join(rows),
        lambda: b"\n\n" + data,
        lambda: b"",
        lambda: b"\n",
        lambda: b"null",
        lambda: rng.randbytes(500),
        lambda: bytes(500),
        lambda: b"<!DOCTYPE html><html>404</html>",
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        lambda: b"\n".join(rows[1:]),
    ])()  # fmt: skip


def place(file: Path, rng: random.Random) -> None:
    """The file is gone, is a folder, has another name, or has others beside it."""
    how = rng.randrange(5)
    data = file.read_bytes()
    if how in (0, 1):
        file.unlink()
        if how == 1:
            file.mkdir()
            (file / file.name).write_bytes(data)
    elif how == 2:
        file.rename(file.with_name(f"{file.name}.gz"))
    elif how == 3:
        file.with_name(f"._{file.name}").write_bytes(b"\x00\x05\x16\x07")
        file.with_name(".DS_Store").write_bytes(b"\x00")
    else:
        file.with_name(f"copy_of_{file.name}").write_bytes(data)


CHANGES = (some_bytes, some_bytes, cut_off, fields, fields, fields, lines, lines, order, whole)


def damage(folder: Path, rng: random.Random) -> None:
    """One file of a folder, or two."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for file in rng.sample(files, min(len(files), rng.choice([1, 1, 1, 2]))):
        if rng.random() < 0.06:
            place(file, rng)
            continue
        data = file.read_bytes()
        for _ in range(rng.choice([1, 1, 2, 3])):
            data = rng.choice(CHANGES)(data, rng)
        file.write_bytes(data)


# --- what becomes of them --------------------------------------------------------------------------------------------


class TooLong(BaseException):
    """Not an exception that anybody catches."""


def outcome(number: int, folder: Path) -> tuple[str, str]:
    """(source, "records", "refused" or what was wrong) of a mutation; `folder` is empty."""
    rng = random.Random(number)
    source, build = SEEDS[number % len(SEEDS)]
    files = folder / "files"
    build(files)
    names = {path.name.removesuffix(".gz") for path in files.rglob("*")} | {str(files)}
    damage(files, rng)
    selection = SourceSelection(user_core=1, item_core=1) if source in CORED else SourceSelection()
    held = peak_memory()
    before = signal.signal(signal.SIGALRM, raise_too_long)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        prepare(source, folder / "data", files, rng.choice(["refuse", "skip"]), selection)
        build_corpus(read_items(source, folder / "data"), read_users(source, folder / "data"))
        return source, too_much_memory(held) or "records"
    except DataError as error:
        return source, wrong_with(str(error), names, files) or too_much_memory(held) or "refused"
    except TooLong:
        return source, f"it took more than {SECONDS} s"
    except BaseException as error:
        return source, f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def raise_too_long(*_: Any) -> None:
    raise TooLong


def wrong_with(message: str, names: set[str], files: Path) -> str:
    """What is wrong with a refusal; "" where nothing is."""
    if len(message.splitlines()) != 1 or not message.isprintable():
        return f"it is not one line of what can be printed: {message[:300]!r}"
    if len(message) > LONGEST_MESSAGE:
        return f"it is {len(message):,} characters long: {message[:300]}"
    if message.startswith(f"{files} could not be read (") or "records could not be written" in message:
        return f"nobody foresaw it: {message[:300]}"
    if not any(name in message for name in names):
        return f"it names no file: {message[:300]}"
    return ""


def peak_memory() -> int:
    """The largest memory that this process ever had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def too_much_memory(held: int) -> str:
    """What is wrong with the memory taken since the peak was `held` MiB; "" where nothing is.

    Only the growth counts: a process that trained a model before is large without any fault of a reader.
    """
    grown = peak_memory() - held
    return f"{grown:,} MiB of memory" if grown > MEBIBYTES else ""


def run(first: int, count: int, keep: Path | None = None) -> list[tuple[int, str, str]]:
    """(number, source, outcome) of each."""
    found = []
    for number in range(first, first + count):
        folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=keep))
        found.append((number, *outcome(number, folder)))
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=BATCH)
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    if asked.count <= BATCH:
        print(json.dumps(run(asked.first, asked.count, asked.keep)))
        return
    found: list[tuple[int, str, str]] = []
    for first in range(asked.first, asked.first + asked.count, BATCH):
        count = min(BATCH, asked.first + asked.count - first)
        command = [sys.executable, "-m", "tests.data_pipelines.fuzz", "--first", str(first), "--count", str(count)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            found.append((first, "a process", f"ended with status {done.returncode}"))
        else:
            found += json.loads(done.stdout.splitlines()[-1])
    wrong = [one for one in found if one[2] not in ("records", "refused")]
    for number, source, what in wrong:
        print(f"{number} ({source}): {what}")
    counts = Counter((source, what if what in ("records", "refused") else "wrong") for _, source, what in found)
    for source in dict.fromkeys(source for source, _ in sorted(counts)):
        print(source, {what: counts[source, what] for what in ("records", "refused", "wrong")})
    print(len(found), "in all,", len(wrong), "wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
