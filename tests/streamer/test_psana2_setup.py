"""What psana2 is told, and what it changes; psana2 itself is not needed for that."""

import logging
import os
import socket
import sys
import threading
import uuid
from types import SimpleNamespace
from typing import Any

import pytest

from lclstream.core.errors import InvalidConfigError, UnavailableError
from lclstream.streamer.config import Psana2EventSourceConfig, parse_parameters
from lclstream.streamer.sources import psana2_setup as setup
from lclstream.streamer.sources import psana2_shmem as shmem
from lclstream.streamer.sources.psana2 import check_ranks
from lclstream.streamer.sources.xtc2_watch import StoppedError

CONFIG = Psana2EventSourceConfig()


@pytest.mark.parametrize(
    ("identifier", "arguments"),
    [
        ("exp=mfx101332224,run=7", {"exp": "mfx101332224", "run": 7}),
        ("exp=mfx101332224,run=7,run=9", {"exp": "mfx101332224", "run": [7, 9]}),
        (
            "exp=a,run=7,9,11-13,9,max_events=2",
            {"exp": "a", "run": [7, 9, 11, 12, 13], "max_events": 2},
        ),
        ("exp=mfx101332224", {"exp": "mfx101332224"}),
        (
            "exp=tmo1, run=8, dir=/data, live, max_events=100",
            {"exp": "tmo1", "run": 8, "dir": "/data", "live": True, "max_events": 100},
        ),
        ("exp=tmo1,run=8,ffb", {"exp": "tmo1", "run": 8}),
        ("files=/a.xtc2,files=/b.xtc2", {"files": ["/a.xtc2", "/b.xtc2"]}),
        ("shmem=tag,max_events=5", {"shmem": "tag", "max_events": 5}),
    ],
)
def test_parts_become_arguments(identifier: str, arguments: dict[str, Any]) -> None:
    assert setup.arguments_of(identifier, CONFIG) == arguments


def test_options_become_arguments() -> None:
    config = Psana2EventSourceConfig(
        skip_calib_load="all", detectors=["cam"], batch_size=7, timestamps="x.npy", intg_det="andor"
    )
    assert setup.arguments_of("shmem=x", config) == {
        "shmem": "x", "skip_calib_load": "all", "detectors": ["cam"], "batch_size": 7,
        "timestamps": "x.npy", "intg_det": "andor",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("identifier", "message"),
    [
        ("run=7", "one of exp, files, shmem and drp must be given, got none of them"),
        ("exp=a,files=b", "got exp and files"),
        ("files=a,run=7", "run can only be given with exp, not files"),
        ("shmem=a,live,ffb", "live and ffb can only be given with exp, not shmem"),
        ("exp=a,exp=b", "exp is given 2 times"),
        ("exp=,run=1", "exp has no value"),
        ("exp=a,run=-1", "run must be a whole number, got ''"),
        ("exp=a,run=5-3", "run must name 1 to 10000 runs, got '5-3'"),
        ("exp=a,run=1-99999", "run must name 1 to 10000 runs"),
        ("exp=a,run=x", "run must be a whole number, got 'x'"),
        ("exp=a,run=²", "run must be a whole number"),
        ("exp=a,max_events=x", "max_events must be a whole number, got 'x'"),
        ("drp=", "drp works only in a process that the data acquisition started; .*'drp_info'"),
    ],
)
def test_parts_that_make_no_sense_are_named(identifier: str, message: str) -> None:
    with pytest.raises(InvalidConfigError, match=rf"^source_identifier: .*{message}"):
        setup.arguments_of(identifier, CONFIG)


def test_a_wrong_part_is_named_with_the_whole_configuration() -> None:
    document = {
        "source_identifier": "exp=a,rnu=5",
        "event_source": {"type": "Psana2EventSource"},
        "data_sources": {"stamp": {"type": "Psana2Timestamp"}},
        "processing_pipeline": {"type": "BatchProcessingPipeline", "batch_size": 1},
        "data_serializer": {"type": "HDF5BinarySerializer"},
    }
    with pytest.raises(InvalidConfigError, match=r"unknown part 'rnu'.*run"):
        parse_parameters(document)


def test_the_data_acquisition_gives_its_object(monkeypatch: pytest.MonkeyPatch) -> None:
    own = SimpleNamespace()
    monkeypatch.setattr(sys.modules["__main__"], "drp_info", own, raising=False)
    assert setup.arguments_of("drp=", CONFIG)["drp"] is own
    assert setup.arguments_of("drp=drp_info", CONFIG)["drp"] is own


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIT_PSDM_DATA", "LCLS_CALIB_HTTP", "PS_PARALLEL", "PS_GEO_SHARE"):
        # So that what is set is unset again.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("clean")
def test_the_environment_is_set_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    config = Psana2EventSourceConfig(calib_url="http://127.0.0.1:1/")
    setup.prepare_environment("exp=a,ffb", config, 1, is_distributed=False)
    assert os.environ["SIT_PSDM_DATA"] == setup.FAST_FEEDBACK
    assert os.environ["LCLS_CALIB_HTTP"] == "http://127.0.0.1:1"
    assert os.environ["PS_PARALLEL"] == "none"
    changed = [vars(each)["setting"] for each in caplog.records if each.msg == "setting_changed"]
    assert changed == ["SIT_PSDM_DATA", "LCLS_CALIB_HTTP", "PS_PARALLEL"]


@pytest.mark.usefixtures("clean")
def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PS_GEO_SHARE", "1")
    setup.prepare_environment("exp=a", CONFIG, 4, is_distributed=True)
    assert os.environ["PS_GEO_SHARE"] == "1"
    assert "PS_PARALLEL" not in os.environ
    monkeypatch.delenv("PS_GEO_SHARE")
    setup.prepare_environment("exp=a", CONFIG, 4, is_distributed=True)
    assert os.environ["PS_GEO_SHARE"] == "0"


@pytest.mark.usefixtures("clean")
def test_another_calibration_service_comes_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = SimpleNamespace(URL_ENV="http://other")
    monkeypatch.setitem(sys.modules, "psana.pscalib.calib.CalibConstants", imported)
    config = Psana2EventSourceConfig(calib_url="http://127.0.0.1:1")
    with pytest.raises(InvalidConfigError, match=r"psana was already imported with http://other$"):
        setup.prepare_environment("files=a", config, 1, is_distributed=False)


def test_what_psana_changes_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PS_EB_NODES", "7")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with setup.changes_logged({"batch_size": 5}) as look:
        # What it does for experiments of one instrument.
        monkeypatch.setenv("PS_SMD_N_EVENTS", "1000")
        monkeypatch.setenv("PS_EB_NODES", "1")
        monkeypatch.setenv("UNRELATED", "1")
        monkeypatch.setattr(sys, "excepthook", print)
        look(SimpleNamespace(batch_size=1))
    found = {
        vars(each)["setting"]: (vars(each)["before"], vars(each)["after"])
        for each in caplog.records
    }
    assert found == {
        "batch_size": ("5", "1"),
        "PS_EB_NODES": ("7", "1"),
        "PS_SMD_N_EVENTS": ("None", "1000"),
        "sys.excepthook": ("as it was", "ends all ranks"),
    }


class Base:
    """As psana2's data sources ask the logbook."""

    url = ""
    live = False

    def _file_info_url(self, run: int) -> str:
        return f"{self.url}/{run}"

    def _get_file_info_from_db(self, run: int) -> Any:
        return {"asked": run}


def fresh(**attributes: Any) -> Any:
    return type("Source", (Base,), dict(vars(Base)) | attributes)


def test_a_logbook_that_answers_is_asked() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        kind = fresh(url=f"http://127.0.0.1:{server.getsockname()[1]}/ws")
        # What an earlier source was told does not count.
        setup.tolerate_missing_logbook(kind, ask=False)
        setup.tolerate_missing_logbook(kind, ask=True)
        assert kind()._get_file_info_from_db(5) == {"asked": 5}


@pytest.mark.parametrize("ask", [True, False])
def test_without_a_logbook_the_folder_is_looked_through(ask: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    kind = fresh(url=f"http://127.0.0.1:{port}/ws" if ask else "")
    setup.tolerate_missing_logbook(kind, ask=ask)
    assert kind()._get_file_info_from_db(5) == {}


def test_a_run_under_way_needs_the_logbook() -> None:
    kind = fresh(live=True)
    setup.tolerate_missing_logbook(kind, ask=False)
    with pytest.raises(UnavailableError, match=r"known to the logbook only: it is not asked$"):
        kind()._get_file_info_from_db(5)


def test_a_proxy_may_lead_to_what_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert setup.unreachable("http://pswww.example/ws") == ""


@pytest.mark.parametrize(("builders", "size"), [("1", 2), ("2", 3), ("", 2)])
def test_too_few_ranks_are_refused(
    monkeypatch: pytest.MonkeyPatch, builders: str, size: int
) -> None:
    monkeypatch.setenv("PS_EB_NODES", builders)
    message = rf"^of {size} ranks psana2 would use {size} to serve .*, or {size + 1} and more$"
    with pytest.raises(InvalidConfigError, match=message):
        check_ranks(0, size)


class Manager:
    """As psana2's manager of shared memory."""

    def __init__(self) -> None:
        self._shmem_cond = threading.Condition()
        self.connected: list[str] = []

    def _connect_shmem_cli(self, tag: str) -> str:
        self.connected.append(tag)
        return "view"


class Asked:
    """A wish to end."""

    def __init__(self) -> None:
        self.asked = False

    def wait(self, timeout_s: float) -> bool:
        del timeout_s
        return self.asked


def test_shared_memory_that_nobody_serves() -> None:
    tag = f"lclstream{uuid.uuid4().hex[:12]}"
    assert not shmem.is_served(tag)
    with pytest.raises(UnavailableError, match=rf"nobody has served .* '{tag}' for 0 s$"):
        shmem.wait_for_server(tag, 0.1)


def test_a_wait_for_shared_memory_ends_when_asked() -> None:
    manager, stop = Manager(), Asked()
    memory = shmem.SharedMemory(manager)
    memory.interrupt_by(stop)
    condition = manager._shmem_cond

    def notify() -> None:
        with condition:
            condition.notify_all()

    timer = threading.Timer(0.05, notify)
    with condition:
        timer.start()
        assert condition.wait()
    timer.join()
    stop.asked = True
    with condition:
        assert not condition.wait(0.01)
        with pytest.raises(StoppedError):
            condition.wait()


def test_a_server_is_connected_to_when_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False, False, True])
    monkeypatch.setattr(shmem, "is_served", lambda tag: next(answers))
    monkeypatch.setattr(shmem, "LOOK_S", 0.001)
    manager = Manager()
    shmem.SharedMemory(manager)
    assert manager._connect_shmem_cli("tag") == "view"
    assert manager.connected == ["tag"]
    assert next(answers, None) is None
