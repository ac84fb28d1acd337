"""What psana2 is told before and while it opens its data, and what it changes on the way.

psana2 reads its settings from the environment when it is imported, and changes some of them for
some experiments without a word. Here they are set before the import, and every change is logged.
"""

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from lclstream.core.errors import InvalidConfigError, UnavailableError
from lclstream.streamer.config import Psana2EventSourceConfig
from lclstream.streamer.config.source_identifier import identifier_tokens

logger = logging.getLogger(__name__)

FAST_FEEDBACK = "/sdf/data/lcls/drpsrcf/ffb"
"""Where the files of a run that is just being taken lie, for `ffb`."""
MAX_RUNS = 10_000
REACH_TIMEOUT_S = 10.0
"""How long to wait for a connection to a service that psana2 would wait for without limit."""
# Of all settings of psana2 and of what it uses.
_PREFIXES = ("PS_", "LCLS_", "SIT_", "PSPLOT_", "KAFKA_", "CALIB_")
# Unless it is told, psana2 uses these.
_DEFAULTS = {"batch_size": 1000}


def arguments_of(identifier: str, config: Psana2EventSourceConfig) -> dict[str, Any]:
    """Return what `psana.DataSource` is called with.

    Args:
        identifier: `exp=NAME,run=NUMBER`, `files=PATH`, `shmem=NAME` or `drp=NAME` with further
            parts; `files` may be given several times, `run` be several numbers and ranges.
        config: options that have no part of their own.

    Raises:
        InvalidConfigError: parts are missing or contradict each other.
    """
    tokens: dict[str, list[str]] = {}
    for key, value in identifier_tokens(identifier):
        tokens.setdefault(key, []).append(value)
    kinds = [key for key in ("exp", "files", "shmem", "drp") if key in tokens]
    if len(kinds) != 1:
        found = " and ".join(kinds) or "none of them"
        raise InvalidConfigError(
            f"source_identifier: one of exp, files, shmem and drp must be given, got {found}"
        )
    _check_parts(kinds[0], tokens)
    what: dict[str, Any] = {}
    match kinds[0]:
        case "exp":
            what = {"exp": tokens["exp"][0], **_experiment(tokens)}
        case "files":
            what = {"files": tokens["files"]}
        case "shmem":
            what = {"shmem": tokens["shmem"][0]}
        case "drp":
            what = {"drp": drp_object(tokens["drp"][0])}
    if max_events := _max_events(tokens):
        what["max_events"] = max_events
    return {**what, **config.arguments()}


def _check_parts(kind: str, tokens: Mapping[str, list[str]]) -> None:
    only_exp = [key for key in ("run", "dir", "live", "ffb") if key in tokens]
    if only_exp and kind != "exp":
        raise InvalidConfigError(
            f"source_identifier: {' and '.join(only_exp)} can only be given with exp, not {kind}"
        )
    for key, values in tokens.items():
        if len(values) > 1 and key not in ("files", "run"):
            raise InvalidConfigError(f"source_identifier: {key} is given {len(values)} times")
        if key not in ("live", "ffb", "drp") and not all(values):
            raise InvalidConfigError(f"source_identifier: {key} has no value")


def _experiment(tokens: Mapping[str, list[str]]) -> dict[str, Any]:
    runs = list(dict.fromkeys(run for text in tokens.get("run", []) for run in _runs(text)))
    found: dict[str, Any] = {}
    if runs:
        found["run"] = runs[0] if len(runs) == 1 else runs
    if "dir" in tokens:
        found["dir"] = tokens["dir"][0]
    if "live" in tokens:
        found["live"] = True
    return found


def _runs(text: str) -> range:
    """Return the runs that a number or a range means."""
    first, _, last = text.partition("-")
    numbers = _number("run", first), _number("run", last or first)
    if not numbers[0] <= numbers[1] < numbers[0] + MAX_RUNS:
        raise InvalidConfigError(
            f"source_identifier: run must name 1 to {MAX_RUNS} runs, got {text!r}"
        )
    return range(numbers[0], numbers[1] + 1)


def _max_events(tokens: Mapping[str, list[str]]) -> int:
    return _number("max_events", tokens["max_events"][0]) if "max_events" in tokens else 0


def _number(key: str, value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise InvalidConfigError(f"source_identifier: {key} must be a whole number, got {value!r}")
    return int(value)


def drp_object(name: str) -> Any:
    """Return what the data acquisition gave this process to talk to it.

    Args:
        name: of the variable in the main module; empty = `drp_info`.

    Raises:
        InvalidConfigError: this process is not one of the data acquisition's.
    """
    name = name or "drp_info"
    found = getattr(sys.modules.get("__main__"), name, None)
    if found is None:
        raise InvalidConfigError(
            f"source_identifier: drp works only in a process that the data acquisition started; "
            f"there is no variable {name!r}"
        )
    return found


def prepare_environment(
    identifier: str, config: Psana2EventSourceConfig, size: int, *, is_distributed: bool
) -> None:
    """Set what psana2 reads when it is imported.

    Args:
        identifier: of the data; `ffb` is a matter of the environment.
        config: has the address of the calibration service.
        size: number of ranks.
        is_distributed: whether psana2 distributes the events among them.

    Raises:
        InvalidConfigError: psana2 was imported before, with another calibration service.
    """
    if any(key == "ffb" for key, _ in identifier_tokens(identifier)):
        set_variable("SIT_PSDM_DATA", FAST_FEEDBACK)
    if config.calib_url:
        address = config.calib_url.rstrip("/")
        constants = sys.modules.get("psana.pscalib.calib.CalibConstants")
        known = getattr(constants, "URL_ENV", address)
        if known != address:
            raise InvalidConfigError(
                f"event_source.calib_url: psana was already imported with {known}"
            )
        set_variable("LCLS_CALIB_HTTP", address)
    if not is_distributed:
        # Without MPI: nothing of it is needed, and its initialisation may fail or take long.
        set_default("PS_PARALLEL", "none")
    elif size > 1:
        # To share the places of pixels, ranks with events would wait for those that only serve.
        set_default("PS_GEO_SHARE", "0")


def set_variable(name: str, value: str) -> None:
    """Set an environment variable and say so."""
    before = os.environ.get(name)
    if before != value:
        logger.info("setting_changed", extra={"setting": name, "before": before, "after": value})
        os.environ[name] = value


def set_default(name: str, value: str) -> None:
    """Set an environment variable that nobody has set."""
    if name not in os.environ:
        set_variable(name, value)


@contextmanager
def changes_logged(arguments: Mapping[str, Any]) -> Iterator[Callable[[Any], None]]:
    """Log what psana2 changes in the environment and in its arguments.

    Yields:
        A function to be called with the data source when there is one.
    """
    before, hook = _settings(), sys.excepthook

    def look(source: Any) -> None:
        for name, default in _DEFAULTS.items():
            wanted = arguments.get(name, default)
            found = getattr(source, name, wanted)
            if found != wanted:
                _log_change(name, wanted, found)

    yield look
    after = _settings()
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            _log_change(name, before.get(name), after.get(name))
    if sys.excepthook is not hook:
        _log_change("sys.excepthook", "as it was", "ends all ranks")


def _settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES)}


def _log_change(name: str, before: Any, after: Any) -> None:
    extra = {"setting": name, "before": str(before), "after": str(after)}
    logger.warning("psana_changed_setting", extra=extra)


def tolerate_missing_logbook(base: Any, *, ask: bool) -> None:
    """Let psana2 look for files itself when the facility's logbook does not answer.

    psana2 asks it which files a run has, without a time limit, and ends when there is no network.

    Args:
        base: psana2's class `DataSourceBase`.
        ask: whether the logbook is asked at all.
    """
    name = "_get_file_info_from_db"
    original = getattr(base, name, None)
    # An earlier source may have been told otherwise.
    original = getattr(original, "original", original)
    if original is None:
        return

    def file_info(source: Any, run: int) -> Any:
        reason = unreachable(source._file_info_url(run)) if ask else "it is not asked"  # noqa: SLF001
        if not reason:
            return original(source, run)
        if source.live:
            raise UnavailableError(
                f"the files of a run under way are known to the logbook only: {reason}"
            )
        logger.info("logbook_not_asked", extra={"run": run, "reason": reason})
        return {}

    file_info.original = original  # type: ignore[attr-defined]
    setattr(base, name, file_info)


def unreachable(url: str) -> str:
    """Return why a service cannot be reached; empty when it can, or when a proxy leads there."""
    parts = urlsplit(url)
    if getproxies().get(parts.scheme) and not proxy_bypass(parts.hostname or ""):
        return ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), REACH_TIMEOUT_S).close()
    except OSError as error:
        return f"no connection to {parts.hostname}:{port}: {error}"
    return ""
