"""The stand-in's logbook: experiments, and which one each station works on."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from lclstream.core.errors import BackendError, NotFoundError
from lclstream.elog.standin.documents import (
    Doc,
    experiment_time,
    now,
    object_id,
    stored_time,
)
from lclstream.elog.standin.experiment import Experiment, Publish, RefusedError

_REQUIRED = ("instrument", "start_time", "end_time", "leader_account")


class Logbook:
    """All experiments, in memory."""

    def __init__(
        self, publish: Publish, *, locations: Iterable[str] = ("S3DF",), string_runs: bool = False
    ) -> None:
        """Begin empty.

        Args:
            publish: takes each message, at once.
            locations: where files can be and jobs can run.
            string_runs: whether run numbers are strings, as at CryoEM.
        """
        self._publish = publish
        self._locations = tuple(locations)
        self._string_runs = string_runs
        self._active: dict[tuple[str, int], str] = {}
        self.experiments: dict[str, Experiment] = {}

    def experiment(self, name: str) -> Experiment:
        """Return an experiment.

        Raises:
            NotFoundError: there is none; the real logbook answers 404 here.
        """
        if name not in self.experiments:
            raise NotFoundError(f"no experiment {name!r}")
        return self.experiments[name]

    def register_experiment(self, name: str, given: Mapping[str, Any]) -> Doc:
        """Make an experiment, and with it a first shift."""
        if not name or name in self.experiments:
            raise RefusedError(f"experiment {name!r} exists")
        missing = [field for field in _REQUIRED if not given.get(field)]
        if missing:
            raise RefusedError(f"missing {', '.join(missing)}")
        fields = ("description", "contact_info", "posix_group")
        info: Doc = {
            "name": name,
            "instrument": given["instrument"],
            "description": given.get("description", ""),
            "start_time": _experiment_time(given["start_time"]),
            "end_time": _experiment_time(given["end_time"]),
            "leader_account": given["leader_account"],
            **{field: given.get(field, "") for field in fields},
        }
        experiment = Experiment(
            info, self._publish, locations=self._locations, string_runs=self._string_runs
        )
        self.experiments[name] = experiment
        experiment.publish("experiments", "Create", dict(info))
        moment = now()
        shift = {
            "name": "Default",
            "begin_time": stored_time(moment),
            "end_time": None,
            "leader": info["leader_account"],
            "description": "Default shift",
            "params": {},
            "_id": object_id(moment),
        }
        experiment.publish("shifts", "Create", shift)
        return info

    def switch_experiment(self, name: str, instrument: str, station: Any, user: str) -> Doc:
        """Make an experiment the active one of a station."""
        if name not in self.experiments:
            raise RefusedError(f"no experiment {name!r}")
        try:
            number = int(station)
        except (TypeError, ValueError):
            raise RefusedError(f"not a station: {station!r}") from None
        value: Doc = {
            "instrument": instrument,
            "station": number,
            "experiment_name": name,
            "userid": user,
        }
        previous = self._active.get((instrument, number))
        if previous is not None:
            value["previous_experiment_name"] = previous
        self._active[instrument, number] = name
        self._publish("experiment_switch", {"experiment_name": name, "value": value})
        return value

    def active_experiment(self, instrument: str, station: int) -> Doc:
        """Return the experiment of a station.

        Raises:
            BackendError: there is none; the real logbook answers 500 here.
        """
        name = self._active.get((instrument, station))
        if name is None:
            raise BackendError(f"no active experiment at {instrument} station {station}")
        return self.experiments[name].info


def _experiment_time(text: Any) -> str:
    try:
        return experiment_time(datetime.fromisoformat(str(text)))
    except ValueError:
        raise RefusedError(f"not a time: {text!r}") from None
