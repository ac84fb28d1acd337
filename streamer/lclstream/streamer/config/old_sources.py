"""Data sources of earlier versions, each with what reads the same today."""

from collections.abc import Callable, Mapping
from typing import Any

Model = dict[Any, Any]

# Options that say how a detector is asked; the field says it now.
_ASKED = ("calibration", "psana_function")


def _interface(
    generation: int, field: Callable[[Mapping[Any, Any]], Any], **options: Any
) -> Callable[[Mapping[Any, Any]], Model]:
    """Return what makes the interface to a detector of a model of old.

    Args:
        generation: of psana.
        field: of the model, the path below the detector; None for no path at all.
        options: of the interface.
    """

    def convert(old: Mapping[Any, Any]) -> Model:
        kept = {key: value for key, value in old.items() if key not in _ASKED}
        path = field(old)
        fields = {} if path is None else {"psana_fields": path}
        return kept | {"type": f"Psana{generation}DetectorInterface"} | fields | options

    return convert


def _calibrated(yes: str, no: str) -> Callable[[Mapping[Any, Any]], str]:
    return lambda old: yes if old.get("calibration", True) else no


def _of_variable(old: Mapping[Any, Any]) -> str | None:
    # A process variable may have a short name, in which no colon tells what it is.
    return None if ":" in str(old.get("psana_name", "")) else ""


def _function(default: str) -> Callable[[Mapping[Any, Any]], str]:
    return lambda old: f"raw.{old.get('psana_function', default)}"


def _always(path: str) -> Callable[[Mapping[Any, Any]], str]:
    return lambda old: path


def _random_number(old: Mapping[Any, Any]) -> Model:
    return dict(old) | {
        "type": "GenericRandomNumpyArray", "array_shape": [], "array_dtype": "float64"
    }  # fmt: skip


def _beam_monitor(old: Mapping[Any, Any]) -> Model:
    kept = {key: value for key, value in old.items() if key != "psana_function"}
    return kept | {"type": "Psana1BbmonDetectorTotalIntensity"}


OLD_SOURCES: Mapping[str, Callable[[Mapping[Any, Any]], Model]] = {
    "GenericRandomTimestamp": lambda old: dict(old) | {"type": "Psana2Timestamp"},
    "GenericRandomWavelength": _random_number,
    "Psana1AreaDetector": _interface(1, _calibrated("calib", "raw")),
    "Psana1AssembledAreaDetector": _interface(1, _always("image")),
    "Psana1BbmonDetector": _beam_monitor,
    "Psana1PV": _interface(1, _of_variable),
    "Psana1UsdUsbDetectorCount": _interface(1, _always("get.encoder_count"), dtype="int64"),
    "Psana2AreaDetector": _interface(2, _calibrated("raw.calib", "raw.raw")),
    "Psana2AssembledAreaDetector": _interface(2, _always("raw.image")),
    "Psana2Camera": _interface(2, _always("raw.raw")),
    "Psana2DetectorValues": _interface(2, lambda old: old.get("psana_fields"), dtype="str"),
    "Psana2EBeam": lambda old: _interface(2, _function("ebeamL3Energy"))(
        {"psana_name": "ebeam", **old}
    ),
    "Psana2Gmd": _interface(2, _function("milliJoulesPerPulse")),
    "Psana2HsdDetector": _interface(2, _function("peaks")),
    "Psana2PV": _interface(2, _of_variable),
}


def as_of_today(old: Mapping[Any, Any]) -> tuple[Model, str] | None:
    """Return what reads the same as a data source of an earlier version, and a notice.

    None when it is not one of them.
    """
    name = old.get("type")
    convert = OLD_SOURCES.get(name) if isinstance(name, str) else None
    if convert is None:
        return None
    now = convert(old)
    changes = [f"{key} {now[key]!r}" for key in now if now[key] != old.get(key) and key != "type"]
    detail = f" with {', '.join(changes)}" if changes else ""
    return now, f"{name} is read as {now['type']}{detail}"
