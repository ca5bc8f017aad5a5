"""The command line: every field an option, every mistake a line."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jax.errors import JaxRuntimeError

from data_pipelines.errors import DataError
from data_pipelines.sources.registry import SOURCES
from experiments import cli, prepare
from experiments.baselines import sasrec_training
from experiments.cli import COMMANDS
from experiments.presets import PRESETS
from tests.experiments.tiny_run import prepare_source

ROOT = Path(__file__).resolve().parents[2]


def run(monkeypatch, capsys, *arguments: str) -> tuple[int | str | None, str]:
    """(what the process would exit with, all that was printed)."""
    monkeypatch.setattr(sys, "argv", ["unimp", *arguments])
    monkeypatch.setattr(cli, "use_all_cores", lambda: None)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed = capsys.readouterr()
    return stopped.value.code, printed.out + printed.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(monkeypatch, capsys, command):
    code, text = run(monkeypatch, capsys, command, "--help")
    assert code == 0
    assert f"usage: unimp {command}" in text
    assert " ".join(COMMANDS[command][1].rstrip(".").split()) in " ".join(cli.load(command).__doc__.split())


def test_help_names_all_commands_and_imports_none_of_them():
    heavy = "jax flax optax orbax grain transformers polars pyarrow torch tensorflow_datasets scipy tyro pydantic"
    program = f"""
import sys
from experiments import cli
sys.argv = ["unimp", "--help"]
try:
    cli.main()
finally:
    print("imported:", *set("{heavy}".split()) & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    told, _, imported = done.stdout.partition("imported:")
    assert imported.split() == []
    for name, (_, about) in COMMANDS.items():
        assert f"  {name:10}{about}\n" in told


def test_generate_and_sweeps_import_nothing_that_takes_seconds_and_is_not_used():
    heavy = {"sklearn", "matplotlib", "torch", "transformers", "pandas", "tensorflow_datasets", "scipy.stats"}
    of_sweeps = {"optuna", "submitit", "sqlalchemy"}
    program = f"import sys; import experiments.generate; print(*{heavy} & set(sys.modules))\n"
    program += f"import experiments.sweep.command; print(*{of_sweeps} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "tiny"], "there is no command 'trian'; did you mean 'train'? There are prepare, train, "),
        ([], "the following arguments are required: COMMAND"),
        (["--no-compile-cache", "train", "tiny"], "unrecognized arguments: --no-compile-cache"),
    ],
)
def test_what_is_no_command_is_refused(monkeypatch, capsys, arguments, message):
    code, text = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert message in text.splitlines()[-1]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_field_of_every_preset_is_an_option(monkeypatch, capsys, preset):
    _, text = run(monkeypatch, capsys, "train", preset, "--help")
    for option in ("--model.decoder.layers", "--optimizer.learning-rate", "--mesh.fsdp", "--tasks.loss-weights.search"):
        assert option in text


def test_prepare_names_all_sources(monkeypatch, capsys):
    _, text = run(monkeypatch, capsys, "prepare", "--help")
    words = "".join(character if character.isalnum() or character == "_" else " " for character in text).split()
    assert set(SOURCES) <= set(words)


def test_a_wrong_name_is_refused_with_the_nearest_right_one(monkeypatch, capsys):
    code, text = run(monkeypatch, capsys, "train", "tiny", "--optimiser.learning-rat", "1")
    assert code == 2
    assert "--optimizer.learning-rate" in text


def test_a_wrong_value_is_refused_with_the_right_ones(monkeypatch, capsys):
    code, text = run(monkeypatch, capsys, "train", "tiny", "--tasks.history-targets", "next-item")
    assert code == 2
    assert "next_item" in text


@pytest.mark.parametrize(
    "arguments",
    [["train", "tiny", "--optimizer.learning-rate", "nan"], ["evaluate", "run", "--sasrec-config.seconds", "NaN"]],
)
def test_nan_is_no_number(monkeypatch, capsys, arguments):
    code, text = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert f"{arguments[-1]} is not a number" in " ".join(text.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "movielens_smal"], "did you mean 'movielens_small'"),
        (["prepare", "movielens_1m", "--source-dir", "nowhere"], "nowhere is not a folder"),
        (["prepare", "hm", "--fetch-images", "True"], "hm does not support --fetch-images"),
        (["prepare", "hm"], "articles.csv, the articles, is needed in the folder of --source-dir"),
        (["train", "tiny", "--data.folder", "nowhere"], "run `unimp prepare movielens_small"),
        (["evaluate", "nowhere"], "is nowhere the folder of a run?"),
        (["report", "nowhere"], "is nowhere the folder of a run or of a sweep?"),
        (["ids", "nowhere", "ids.parquet"], "is nowhere the folder of a run?"),
    ],
)
def test_mistakes_are_reported_in_one_line(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, text = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert text.startswith("unimp: ")
    assert message in text
    assert text.count("\n") == 1


# What the operating system refuses


@pytest.fixture
def fails(monkeypatch):
    """`unimp demo` raises what is given."""

    def give(error: BaseException) -> None:
        def command() -> None:
            raise error

        monkeypatch.setattr(cli, "load", lambda _: command)

    return give


SYSTEM = {
    errno.ENOENT: "it does not exist, or its parent folder does not",
    errno.ENOTDIR: "a parent of the path is a file, not a folder; name another path",
    errno.EISDIR: "it is a folder; a file is needed",
    errno.EEXIST: "it already exists and is not what is needed; name another path",
    errno.EACCES: "permission denied; name another path, or change the permissions",
    errno.EROFS: "the file system is read-only; name another path",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "the path is a circle of symbolic links",
    errno.ENOSPC: "no space is left on the disk; free some space, or name a folder on another disk",
    errno.EDQUOT: "the disk quota is exceeded; free some space, or name a folder on another disk",
    errno.EIO: "the disk cannot be read or written there (input/output error)",
    errno.EMFILE: "too many files are open; raise the limit, for example with `ulimit -n 65536`",
}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        *((OSError(number, os.strerror(number), "a/b"), f"a/b: {told}") for number, told in SYSTEM.items()),
        (OSError(errno.ENOSPC, "No space left on device"), SYSTEM[errno.ENOSPC]),
        (OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"), "a -> b: Invalid cross-device link"),
        (OSError("a library's own words"), "a library's own words"),
        (TimeoutError(), "TimeoutError"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "Broken pipe"),  # not that of standard output
        (DataError("a title\x1b[31m of\ntwo lines"), r"a title\x1b[31m of\ntwo lines"),
        (DataError("item " + "x" * 5000), "item " + "x" * 1994 + "…"),
        (MemoryError(), "out of memory (of this machine); reduce memory with a smaller --loader.batch-size"),
        (
            JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\nBufferAssignment"),
            "out of memory (RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes. BufferAssignment); r",
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else type(value).__name__,
)
def test_what_the_machine_refuses_is_one_line(monkeypatch, capsys, fails, error, told):
    fails(error)
    code, text = run(monkeypatch, capsys, "demo")
    assert code == 2
    assert text.startswith(f"unimp: {told}")
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    "error", [TypeError("a bug"), AssertionError(), KeyError("x"), JaxRuntimeError("INTERNAL: a bug")]
)
def test_bugs_keep_their_traceback(monkeypatch, capsys, fails, error):
    fails(error)
    monkeypatch.setattr(sys, "argv", ["unimp", "demo"])
    monkeypatch.setattr(cli, "use_all_cores", lambda: None)
    with pytest.raises(type(error)):
        cli.main()


def test_all_errors_keep_it_where_that_is_asked_for(monkeypatch, fails):
    fails(FileNotFoundError(errno.ENOENT, "No such file", "a"))
    monkeypatch.setenv("UNIMP_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["unimp", "demo"])
    monkeypatch.setattr(cli, "use_all_cores", lambda: None)
    with pytest.raises(FileNotFoundError):
        cli.main()


def test_an_interruption_is_one_line(monkeypatch, capsys, fails):
    fails(KeyboardInterrupt())
    code, _ = run(monkeypatch, capsys, "demo")
    assert code == "unimp: interrupted; the same command continues from the last checkpoint"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_source(tmp_path_factory.mktemp("cli"))


def odd_places(folder):
    """Paths where nothing can be read or made."""
    (folder / "file").write_text("{}")
    (folder / "circle").symlink_to(folder / "circle")
    (folder / "other" / "config.json").mkdir(parents=True)
    return {
        "file": folder / "file",
        "below a file": folder / "file" / "run",
        "circle": folder / "circle",
        "proc": "/proc/nowhere/run",
        "long": folder / ("x" * 300),
        "folder for a file": folder / "other",
    }


@pytest.mark.parametrize("place", ["file", "below a file", "circle", "proc", "long", "folder for a file"])
@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "PLACE"],
        ["report", "PLACE"],
        ["generate", "PLACE", "--user", "1"],
        ["ids", "PLACE", "ids.parquet"],
        ["export", "PLACE", "out"],
        ["import", "out", "--language", "PLACE"],
        ["import", "out", "--vqgan", "PLACE"],
        ["vqgan", "evaluate", "PLACE", "--data.source", "movielens_small", "--data.folder", "DATA"],
        ["train", "tiny", "--data.folder", "DATA", "--folder", "PLACE"],
        ["train", "tiny", "--data.folder", "DATA", "--folder", "run", "--init-from", "PLACE"],
        ["train", "tiny", "--data.folder", "PLACE", "--folder", "run"],
        ["prepare", "movielens_small", "--source-dir", "PLACE"],
    ],
    ids=lambda command: " ".join(command[:2] + command[-2:]),
)
def test_odd_paths_are_one_line(monkeypatch, capsys, tmp_path, data, command, place):
    path = str(odd_places(tmp_path)[place])
    monkeypatch.chdir(tmp_path)
    words = [{"PLACE": path, "DATA": str(data)}.get(word, word) for word in command]
    code, text = run(monkeypatch, capsys, *words)
    assert code == 2
    assert text.startswith("unimp: ")
    assert text.count("\n") == 1
    assert path[:250] in text or str(Path(path).parent) in text


@pytest.mark.parametrize("place", ["file", "below a file", "circle", "proc", "long"])
def test_what_cannot_be_written_is_reported_before_anything_is_trained(monkeypatch, capsys, tmp_path, data, place):
    monkeypatch.setattr(sasrec_training, "train_sasrec", lambda *_: pytest.fail("trained"))
    path = str(odd_places(tmp_path)[place])
    code, text = run(
        monkeypatch, capsys, "sasrec", path, "--data.source", "movielens_small", "--data.folder", str(data)
    )
    assert code == 2
    assert path[:250] in text or str(Path(path).parent) in text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(monkeypatch, capsys, tmp_path, data):
    (tmp_path / "locked").mkdir(mode=0o500)
    folder = str(tmp_path / "locked" / "run")
    code, text = run(monkeypatch, capsys, "train", "tiny", "--data.folder", str(data), "--folder", folder)
    assert code == 2
    assert f"{folder}" in text
    assert "permission denied" in text


# Terminals


def printed(monkeypatch, encoding: str, text: str) -> bytes:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "argv", ["unimp", "demo"])
    monkeypatch.setattr(cli, "use_all_cores", lambda: None)
    monkeypatch.setattr(cli, "load", lambda _: lambda: print(text))
    cli.main()
    return stream.buffer.getvalue()


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("ascii", b"L?on ?\n"), ("cp1252", b"L\xe9on ?\n"), ("utf-8", "Léon \U0001f600\n".encode())],
)
def test_every_command_prints_on_every_terminal(monkeypatch, encoding, expected):
    assert printed(monkeypatch, encoding, "Léon \U0001f600") == expected


def test_prepare_shows_text_of_the_data_without_its_control_characters(monkeypatch, capsys, tmp_path):
    class Prepared:
        def __str__(self) -> str:
            return "40 users\nleft out:\n  line 3: \x1b[31mred"

    monkeypatch.setattr(prepare, "prepare", lambda *_: Prepared())
    monkeypatch.setattr(sys, "argv", ["unimp", "prepare", "movielens_small", "--folder", str(tmp_path)])
    monkeypatch.setattr(cli, "use_all_cores", lambda: None)
    cli.main()
    assert capsys.readouterr().out == "40 users\nleft out:\n  line 3: \ufffd[31mred\n"


def test_half_a_surrogate_is_printed_as_well(monkeypatch):
    assert printed(monkeypatch, "utf-8", "file \udce9.json") == b"file ?.json\n"


def test_a_reader_that_goes_ends_the_command_quietly(monkeypatch, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "argv", ["unimp", "demo"])
        monkeypatch.setattr(cli, "use_all_cores", lambda: None)
        monkeypatch.setattr(cli, "load", lambda _: lambda: print("x" * 10_000))
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    assert stopped.value.code == 141
    assert capsys.readouterr().err == ""


def test_a_command_needs_no_standard_output(monkeypatch):
    """As of a job that was started with `>&-`."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "argv", ["unimp", "demo"])
    monkeypatch.setattr(cli, "use_all_cores", lambda: None)
    done = []
    monkeypatch.setattr(cli, "load", lambda _: lambda: done.append(print("x")))
    cli.main()
    assert done == [None]
