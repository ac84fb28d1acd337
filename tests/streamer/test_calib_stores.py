"""Constants from files, folders and a service on this machine, also one that sends nonsense."""

import json
import pickle
import socket
import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from tests.helpers.calibration_service import CalibrationService, calibration_service

from lclstream.core.errors import DecodeError, InvalidConfigError, UnavailableError
from lclstream.streamer.calibration.constants import Detector
from lclstream.streamer.calibration.service import (
    ServiceStore,
    array_type,
    default_cache,
    valid_for,
)
from lclstream.streamer.calibration.stores import FileStore

CAM = Detector("cam", "jungfrau", {0: "a-1", 1: "b-2"})
SHORT, EXPERIMENT = "jungfrau_000001", "tst000124"
PEDESTALS = np.arange(24, dtype=np.float32).reshape(3, 2, 2, 2)
GEOMETRY = "IP 0 CAM 0 0 0 0 0 0 0 0 0 0\n"


class TestFiles:
    def test_an_archive_of_several_detectors(self, tmp_path: Path) -> None:
        path = tmp_path / "all.npz"
        arrays: dict[str, Any] = {"cam/pedestals": PEDESTALS, "cam/geometry": GEOMETRY}
        arrays |= {"other/pedestals": PEDESTALS * 2, "pixel_gain": PEDESTALS}
        np.savez(path, **arrays)
        found = FileStore(path).constants(CAM, EXPERIMENT, 5)
        assert found.arrays.keys() == {"pedestals"}
        assert np.array_equal(found.arrays["pedestals"], PEDESTALS)
        assert (found.geometry, found.origin) == (GEOMETRY, str(path))

    def test_an_archive_of_one_detector(self, tmp_path: Path) -> None:
        path = tmp_path / "one.npz"
        np.savez(path, pedestals=PEDESTALS, remark="mine")
        assert FileStore(path).constants(CAM, "", 0).arrays.keys() == {"pedestals"}

    @pytest.mark.parametrize("prefix", ["", "cam/"])
    def test_hdf5(self, tmp_path: Path, prefix: str) -> None:
        path = tmp_path / "one.h5"
        with h5py.File(path, "w") as file:
            file[f"{prefix}pedestals"] = PEDESTALS
            file[f"{prefix}geometry"] = GEOMETRY
            file["other/pedestals"] = PEDESTALS
        found = FileStore(path).constants(CAM, "", 0)
        assert np.array_equal(found.arrays["pedestals"], PEDESTALS)
        assert found.geometry == GEOMETRY

    def test_a_folder_of_files(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "cam.npz", pedestals=PEDESTALS)
        np.savez(tmp_path / "other.npz", pedestals=PEDESTALS * 2)
        found = FileStore(tmp_path).constants(CAM, "", 0)
        assert np.array_equal(found.arrays["pedestals"], PEDESTALS)

    def test_a_folder_of_arrays_for_runs(self, tmp_path: Path) -> None:
        folder = tmp_path / "cam"
        (folder / "pedestals").mkdir(parents=True)
        for value, name in enumerate(["1-end", "5-9", "5-7", "20-end", "remark"]):
            np.save(folder / "pedestals" / f"{name}.npy", PEDESTALS + value)
        np.save(folder / "pixel_gain.npy", PEDESTALS)
        (folder / "geometry.data").write_text(GEOMETRY)
        store = FileStore(tmp_path)
        found = {run: store.constants(CAM, "", run) for run in (1, 4, 5, 8, 10, 9999)}
        values = {run: float(each.arrays["pedestals"][0, 0, 0, 0]) for run, each in found.items()}
        assert values == {1: 0, 4: 0, 5: 2, 8: 1, 10: 0, 9999: 3}
        assert found[1].arrays.keys() == {"pedestals", "pixel_gain"}
        assert found[1].geometry == GEOMETRY
        assert store.constants(CAM, "", 0).arrays.keys() == {"pixel_gain"}

    def test_what_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        def refused(path: Path, message: str) -> None:
            with pytest.raises(InvalidConfigError, match=message):
                FileStore(path).constants(CAM, "", 0)

        refused(tmp_path / "none", "there is no .*none$")
        (tmp_path / "x.txt").touch()
        refused(tmp_path / "x.txt", "x.txt is neither a folder nor .npz, .h5, .hdf5$")
        refused(tmp_path, "has nothing for 'cam'; there are: x$")
        for name in ("bad.npz", "bad.h5"):
            (tmp_path / name).write_bytes(b"PK\3\4 no archive")
            refused(tmp_path / name, f"cannot read .*{name}: ")
        np.savez(tmp_path / "text.npz", pedestals="text")
        refused(tmp_path / "text.npz", r"constants 'pedestals' are <U4$")
        np.savez(tmp_path / "geo.npz", geometry=np.arange(3))
        refused(tmp_path / "geo.npz", "'geometry' must be one text$")

    def test_pickled_objects_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "evil.npz"
        np.savez(path, pedestals=np.array([{"a": 1}], dtype=object))
        with pytest.raises(InvalidConfigError, match=r"cannot read .*evil.npz: .*allow_pickle"):
            FileStore(path).constants(CAM, "", 0)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    def make(service: CalibrationService, timeout_s: float = 20.0) -> ServiceStore:
        return ServiceStore(service.url, tmp_path / "cache", timeout_s)

    return make


class TestService:
    def test_constants_are_fetched_once(self, store: Any) -> None:
        with calibration_service() as service:
            service.add_detector(CAM.unique, SHORT)
            service.add(EXPERIMENT, SHORT, "pedestals", PEDESTALS)
            service.add(EXPERIMENT, SHORT, "pixel_rms", PEDESTALS)
            service.add(EXPERIMENT, SHORT, "geometry", GEOMETRY)
            service.add(SHORT, SHORT, "pixel_gain", PEDESTALS + 1)
            service.add(SHORT, SHORT, "pedestals", PEDESTALS + 2)
            found = [store(service).constants(CAM, EXPERIMENT, 7) for _ in range(2)]
        for each in found:
            # Those of the experiment go before those of the detector.
            assert np.array_equal(each.arrays["pedestals"], PEDESTALS)
            assert np.array_equal(each.arrays["pixel_gain"], PEDESTALS + 1)
            assert each.arrays.keys() == {"pedestals", "pixel_gain"}
            assert each.geometry == GEOMETRY
        data = [path for path in service.asked if "gridfs" in path]
        assert len(data) == len(set(data)) == 3

    def test_the_newest_that_is_valid_counts(self, store: Any) -> None:
        with calibration_service() as service:
            service.add_detector(CAM.unique, SHORT)
            for value, (run, end) in enumerate(
                [(1, "end"), (5, "end"), (5, 8), (5, 8), (20, 30), (1, "?")]
            ):
                service.add(EXPERIMENT, SHORT, "pedestals", PEDESTALS + value, run, end)
            runs = (1, 4, 5, 8, 9, 25, 31)
            found = {run: store(service).constants(CAM, EXPERIMENT, run) for run in runs}
            values = {run: float(each.arrays["pedestals"].min()) for run, each in found.items()}
        assert values == {1: 0, 4: 0, 5: 3, 8: 3, 9: 1, 25: 4, 31: 1}

    def test_without_an_experiment_those_of_the_detector_count(self, store: Any) -> None:
        with calibration_service() as service:
            service.add_detector(CAM.unique + "_c-3", SHORT)
            service.add(SHORT, SHORT, "pedestals", PEDESTALS)
            service.add(SHORT, SHORT, "pedestals", PEDESTALS + 1)
            # The name of the detector has more panels than ours.
            found = store(service).constants(CAM, "", 0)
        assert np.array_equal(found.arrays["pedestals"], PEDESTALS + 1)

    def test_nothing_of_a_service_is_executed(self, store: Any, tmp_path: Path) -> None:
        trap = tmp_path / "trap"

        class Trap:
            def __reduce__(self) -> Any:
                return Path.touch, (trap,)

        with calibration_service() as service:
            service.add_detector(CAM.unique, SHORT)
            service.add(EXPERIMENT, SHORT, "pedestals", PEDESTALS)
            # Passed over: it is pickled.
            document = service.add(EXPERIMENT, SHORT, "common_mode", (7, 2, 100))
            service.data[document["id_data"]] = pickle.dumps(Trap())
            assert store(service).constants(CAM, EXPERIMENT, 7).arrays.keys() == {"pedestals"}
            for shape in (f"__import__('pathlib').Path({str(trap)!r}).touch() or (24,)", "(24,)()"):
                document = service.add(EXPERIMENT, SHORT, "pedestals", PEDESTALS)
                document["data_shape"] = shape
                with pytest.raises(DecodeError, match=r"expected an array of numbers, got"):
                    store(service).constants(CAM, EXPERIMENT, 7)
        assert not trap.exists()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"data_shape": "(3, 2, 2, 3)"}, "96 bytes, expected 144$"),
            ({"data_shape": "(3, 2, 2, 1)"}, "more than 48 bytes$"),
            ({"data_shape": "(99999999, 99999999)"}, r"is too large$"),
            ({"data_dtype": "object"}, "expected an array of numbers"),
            ({"data_dtype": "f4,f4"}, "expected an array of numbers"),
            ({"id_data": "../../secret"}, "id_data is '../../secret'$"),
            ({"id_data": None}, "id_data is 'None'$"),
        ],
    )
    def test_impossible_documents_are_refused(
        self, store: Any, change: dict[str, Any], message: str
    ) -> None:
        with calibration_service() as service:
            service.add_detector(CAM.unique, SHORT)
            service.add(EXPERIMENT, SHORT, "pedestals", PEDESTALS).update(change)
            with pytest.raises(DecodeError, match=message):
                store(service).constants(CAM, EXPERIMENT, 7)

    @pytest.mark.parametrize("body", [b"", b"{", b"{}", b"[1]", b"\xff\xfe", b"[[]]", b"null"])
    def test_nonsense_instead_of_a_list_is_refused(self, store: Any, body: bytes) -> None:
        with calibration_service() as service:
            service.overrides["cdb_detnames/jungfrau"] = 200, body
            with pytest.raises(DecodeError, match=r"cdb_detnames/jungfrau: "):
                store(service).constants(CAM, EXPERIMENT, 7)

    def test_what_the_service_does_not_have(self, store: Any) -> None:
        with calibration_service() as service:
            with pytest.raises(InvalidConfigError, match=r"does not know the detector 'cam'"):
                store(service).constants(CAM, EXPERIMENT, 7)
            service.add_detector(CAM.unique, SHORT)
            with pytest.raises(InvalidConfigError, match=r"has no constants of 'cam' \(jung"):
                store(service).constants(CAM, EXPERIMENT, 7)
            document = service.add(EXPERIMENT, SHORT, "pedestals", PEDESTALS)
            del service.data[document["id_data"]]
            with pytest.raises(UnavailableError, match=r"gridfs/.* answers HTTP 404$"):
                store(service).constants(CAM, EXPERIMENT, 7)
            service.names["jungfrau"] = [{"long": CAM.unique, "short": "../x"}]
            with pytest.raises(InvalidConfigError, match=r"does not know the detector"):
                store(service).constants(CAM, EXPERIMENT, 7)

    def test_nobody_there(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        store = ServiceStore(f"http://127.0.0.1:{port}", tmp_path, 1.0)
        with pytest.raises(UnavailableError, match=rf"no answer from http://127.0.0.1:{port}/"):
            store.constants(CAM, EXPERIMENT, 7)

    def test_somebody_who_does_not_finish(self, tmp_path: Path) -> None:
        ended = threading.Event()
        with socket.create_server(("127.0.0.1", 0)) as server:

            def drip() -> None:
                peer, _ = server.accept()
                with peer:
                    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
                    try:
                        # Always within the time limit of one read.
                        while not ended.wait(0.05):
                            peer.sendall(b" ")
                    except OSError:
                        pass

            thread = threading.Thread(target=drip)
            thread.start()
            try:
                store = ServiceStore(f"http://127.0.0.1:{server.getsockname()[1]}", tmp_path, 0.3)
                with pytest.raises(UnavailableError, match=r"takes longer than 0 s$"):
                    store.constants(CAM, EXPERIMENT, 7)
            finally:
                ended.set()
                thread.join()

    def test_a_spoilt_cache_is_named(self, store: Any, tmp_path: Path) -> None:
        with calibration_service() as service:
            service.add_detector(CAM.unique, SHORT)
            document = service.add(EXPERIMENT, SHORT, "pedestals", PEDESTALS)
            store(service).constants(CAM, EXPERIMENT, 7)
            path = tmp_path / "cache" / f"{document['id_data']}.npy"
            path.write_bytes(path.read_bytes()[:-4])
            with pytest.raises(DecodeError, match=r"remove it$"):
                store(service).constants(CAM, EXPERIMENT, 7)
            np.save(path, PEDESTALS.astype(np.float64))
            with pytest.raises(DecodeError, match=r"float64 .*, expected float32 .*; remove it$"):
                store(service).constants(CAM, EXPERIMENT, 7)

    def test_a_cache_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with calibration_service() as service:
            service.add_detector(CAM.unique, SHORT)
            service.add(EXPERIMENT, SHORT, "pedestals", PEDESTALS)
            store = ServiceStore(service.url, tmp_path / "file" / "cache", 20.0)
            with pytest.raises(InvalidConfigError, match=r"^calibration.cache: cannot write to"):
                store.constants(CAM, EXPERIMENT, 7)


@pytest.mark.parametrize(
    ("text", "shape"), [("(3, 1, 512, 1024)", (3, 1, 512, 1024)), ("(5,)", (5,)), ("7", (7,))]
)
def test_shapes_are_parsed(text: str, shape: tuple[int, ...]) -> None:
    document = {"data_type": "ndarray", "data_dtype": "uint64", "data_shape": text}
    assert array_type(document, "x") == (np.dtype(np.uint64), shape)


def test_hostile_documents_raise_only_our_errors() -> None:
    values: list[Any] = [
        None, "", "ndarray", 5, [], {}, "(1,", "(-1,)", "(1e9,)", "9" * 5000, "\0", "float32", "O",
        "(" * 2000, "²",
    ]  # fmt: skip
    for kind in values:
        for dtype in values:
            for shape in values:
                document = {"data_type": kind, "data_dtype": dtype, "data_shape": shape}
                if (kind, dtype, shape) == ("ndarray", "float32", 5):
                    continue
                with pytest.raises(DecodeError):
                    array_type(document, "x")
    for run in values:
        for end in values:
            document = {"run": run, "run_end": end, "_id": run}
            valid_for([json.loads(json.dumps(document))], 5)


def test_the_usual_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "lclstream" / "calibration"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "lclstream" / "calibration"
