"""Which files a source identifier names."""

from pathlib import Path

import pytest

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.sources.xtc2_files import Recording, group, select


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = [
        "tst1-r0007-s000-c000.xtc2",
        "tst1-r0007-s000-c001.xtc2",
        "tst1-r0007-s001-c000.xtc2.inprogress",
        "tst1-r0007-s000-c000.xtc2.inprogress",
        "tst1-r0007-s000-c000.smd.xtc2",
        "tst1-r0008-s000-c000.xtc2",
        "any.xtc2",
    ]
    for name in names:
        (tmp_path / name).touch()
    return tmp_path


def test_a_run_is_found_by_experiment_and_number(folder: Path) -> None:
    selection = select(f"exp=tst1, run=7, dir={folder}, max_events=3")
    streams = (
        (folder / "tst1-r0007-s000-c000.xtc2", folder / "tst1-r0007-s000-c001.xtc2"),
        (folder / "tst1-r0007-s001-c000.xtc2.inprogress",),
    )
    assert selection.recordings == (
        Recording(streams=streams, experiment="tst1", run=7, is_whole=True),
    )
    assert selection.max_events == 3


def test_a_run_is_looked_for_where_psana_looks(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folder / "tst" / "tst1" / "xtc"
    place.mkdir(parents=True)
    file = place / "tst1-r0007-s000-c000.xtc2"
    file.touch()
    monkeypatch.setenv("SIT_PSDM_DATA", str(folder))
    assert select("exp=tst1,run=7").recordings[0].streams == ((file,),)


def test_files_are_joined_by_their_names(folder: Path) -> None:
    first = folder / "tst1-r0007-s000-c000.xtc2"
    second = folder / "tst1-r0007-s000-c001.xtc2"
    next_run, other = folder / "tst1-r0008-s000-c000.xtc2", folder / "any.xtc2"
    selection = select(f"files={second},{next_run},files={first},{other}")
    assert selection.recordings == (
        Recording(streams=((first, second),), experiment="tst1", run=7),
        Recording(streams=((next_run,),), experiment="tst1", run=8),
        Recording(streams=((other,),)),
    )
    assert selection.max_events == 0


@pytest.mark.parametrize(
    ("identifier", "message"),
    [
        ("", "names no file"),
        ("gone.xtc2,files=away.xtc2", "no such file: gone.xtc2, away.xtc2"),
        ("exp=tst1", "run must be given"),
        ("run=7", "exp must be given"),
        ("exp=tst1,run=seven", "run must be a whole number or a range, got 'seven'"),
        ("exp=tst1,run=9,dir=/nowhere", "no tst1-r0009-s*-c*.xtc2 in /nowhere"),
        ("exp=../etc,run=9", "'../etc' is no name of an experiment"),
        ("exp=tst1,run=7,a.xtc2", "give either files or exp and run, not both"),
        ("expt=tst1,run=7", "'expt=tst1' is not understood (did you mean 'exp'?)"),
        (
            "shmem=x",
            "'shmem=x' is not understood; allowed: files, exp, run, dir, max_events, live, ffb",
        ),
    ],
)
def test_what_is_wrong_is_said(identifier: str, message: str) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        select(identifier)
    assert str(caught.value) == f"source_identifier: {message}"


def test_a_missing_chunk_is_refused(tmp_path: Path) -> None:
    paths = [tmp_path / f"tst1-r0007-s000-c00{chunk}.xtc2" for chunk in (0, 2)]
    with pytest.raises(InvalidConfigError, match=r"chunk 1 before .*-c002\.xtc2 is missing$"):
        group(paths)
    with pytest.raises(InvalidConfigError, match=r"chunk 0 before .*-c002\.xtc2 is missing$"):
        group(paths[1:])


def test_a_file_named_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tst1-r0007-s000-c000.xtc2"
    with pytest.raises(InvalidConfigError, match="are the same"):
        group([path, tmp_path / "other" / path.name])
