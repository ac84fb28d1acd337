"""Which files a source identifier names."""

from pathlib import Path

import pytest

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.sources.xtc2_files import Recording, Selection, group, select


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


def names(selection: Selection) -> list[list[list[str]]]:
    """Return the names of the files, by recording and stream."""
    return [
        [[path.name for path in chunks] for chunks in recording.streams]
        for recording in selection.recordings
    ]


RUN_7 = [
    ["tst1-r0007-s000-c000.xtc2", "tst1-r0007-s000-c001.xtc2"],
    ["tst1-r0007-s001-c000.xtc2.inprogress"],
]
RUN_8 = [["tst1-r0008-s000-c000.xtc2"]]
ANY = [["any.xtc2"]]


@pytest.mark.parametrize(
    ("identifier", "expected"),
    [
        # A folder, with or without `files=`; an index is no recording.
        ("{}", [ANY, RUN_7, RUN_8]),
        ("files={}", [ANY, RUN_7, RUN_8]),
        ("{}/*r0007*", [RUN_7]),
        ("files={}/tst1-r000?-s000-c000.xtc2", [[RUN_7[0][:1]], RUN_8]),
        # Not complete yet, and named as it will be.
        ("{}/tst1-r0007-s001-c000.xtc2", [[RUN_7[1]]]),
        ("{}/any.xtc2,{}/*r0008*", [ANY, RUN_8]),
        ("exp=tst1,run=7,8,dir={}", [RUN_7, RUN_8]),
        ("exp=tst1, run=[8, 7], dir={}", [RUN_8, RUN_7]),
        ("dir={},exp=tst1,run=8,7-8", [RUN_8, RUN_7]),
        # Of a range those that there are.
        ("exp=tst1,run=1-100,max_events=5,dir={}", [RUN_7, RUN_8]),
    ],
)
def test_files_can_be_named_in_many_ways(
    folder: Path, identifier: str, expected: list[list[list[str]]]
) -> None:
    selection = select(identifier.replace("{}", str(folder)))
    assert names(selection) == expected
    assert not selection.is_live


@pytest.mark.parametrize("word", ["live", "live=true", "live=1"])
def test_what_is_followed_need_not_be_there_yet(folder: Path, word: str) -> None:
    selection = select(f"exp=tst1,run=8-9,{word},dir={folder}")
    assert selection.is_live
    assert selection.recordings == ()
    there, awaited = selection.searches
    assert (there.run, awaited.run) == (8, 9)
    assert awaited.recording() is None
    (folder / "tst1-r0009-s000-c000.xtc2.inprogress").touch()
    recording = awaited.recording()
    assert recording is not None
    assert recording.is_whole
    assert select(f"exp=tst1,run=8,dir={folder}", is_live=True).is_live
    assert not select(f"exp=tst1,run=8,live=false,dir={folder}").is_live


def test_the_fast_store_is_another_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lclstream.streamer.sources.xtc2_files.FAST_FOLDER", str(tmp_path))
    (search,) = select("exp=tst1,run=7,ffb,live").searches
    assert search.folder == tmp_path / "tst" / "tst1" / "xtc"


@pytest.mark.parametrize(
    ("identifier", "message"),
    [
        ("", "names no file"),
        ("gone.xtc2,files=away.xtc2", "no such file: gone.xtc2, away.xtc2"),
        ("exp=tst1", "run must be given"),
        ("run=7", "exp must be given"),
        ("exp=tst1,run=seven", "run must be a whole number or a range, got 'seven'"),
        ("exp=tst1,run=9-8,dir=/x", "run must name 1 to 10000 runs, got '9-8'"),
        ("exp=tst1,run=1-20000,live,dir=/x", "run must name 1 to 10000 runs, got '1-20000'"),
        ("exp=tst1,run=9-20,dir=/nowhere", "no run 9-20 of tst1 in /nowhere"),
        ("exp=tst1,run=9,live=maybe", "live must be true or false, got 'maybe'"),
        ("/nowhere/*.xtc2", "no such file: /nowhere/*.xtc2"),
        ("max_events=-1,x.xtc2", "max_events must be a whole number, got '-1'"),
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
