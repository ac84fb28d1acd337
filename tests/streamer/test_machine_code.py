"""Machine code is made whatever the state of the files in which it is kept."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from lclstream.streamer.machine_code import MachineCode

SOURCE = "def double(x):\n    return 2 * x\n"


def loaded(path: Path) -> Callable[[int], int]:
    """Return the function of a file, as a new process sees it."""
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("doubling", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[[int], int] = module.double
    return function


def kept(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.nb?"))


def test_it_is_kept_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "doubling.py"
    assert MachineCode(loaded(path))(21) == 42
    (index, code) = sorted(kept(tmp_path), key=lambda each: each.suffix, reverse=True)
    before = code.stat().st_mtime_ns
    assert MachineCode(loaded(path))(21) == 42
    assert code.stat().st_mtime_ns == before
    assert index.exists()


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_damaged_files_are_passed_over(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "doubling.py"
    assert MachineCode(loaded(path))(21) == 42
    for each in kept(tmp_path):
        if each.suffix == suffix:
            each.write_bytes(each.read_bytes()[:40])
    code = MachineCode(loaded(path))
    assert code(21) == 42
    assert "machine_code_not_kept" in caplog.text
    assert code(4) == 8


def test_it_is_made_where_nothing_can_be_kept() -> None:
    names: dict[str, Callable[[int], int]] = {}
    exec(SOURCE, names)  # noqa: S102
    code = MachineCode(names["double"])
    assert code(21) == 42
    assert code.plain(21) == 42


def test_what_cannot_be_compiled_is_an_error() -> None:
    names: dict[str, Callable[[int], int]] = {}
    exec("def broken(x):\n    return x.nothing()\n", names)  # noqa: S102
    with pytest.raises(Exception, match="Unknown attribute 'nothing'"):
        MachineCode(names["broken"])(1)
