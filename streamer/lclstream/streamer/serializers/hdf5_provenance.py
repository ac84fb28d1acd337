"""Where the messages of a rank come from, as attributes of the group `/lclstream`."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import h5py
import numpy as np

from lclstream.streamer.batching import Form
from lclstream.streamer.config import Parameters
from lclstream.streamer.rank import Place

FORMAT_VERSION = 1


def canonical_json(parameters: Parameters) -> str:
    """Return the part of a configuration that decides what the messages hold.

    Two configurations with the same text give the same data; where these go is not in it. Keys
    are in alphabetical order, defaults are written out.
    """
    content = parameters.model_dump(mode="json", exclude={"data_handlers"})
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class Provenance:
    """The attributes of the messages of one rank."""

    def __init__(self, parameters: Parameters, place: Place) -> None:
        configuration = canonical_json(parameters)
        self._common: dict[str, object] = {
            "format": np.uint32(FORMAT_VERSION),
            "rank": np.uint32(place.rank),
            "ranks": np.uint32(place.size),
            "source_identifier": parameters.source_identifier,
            "configuration": configuration,
            "configuration_sha256": hashlib.sha256(configuration.encode()).hexdigest(),
            "versions": json.dumps(versions()),
        }

    def attributes(self, form: Form) -> Mapping[str, object]:
        """Return those of the messages of one form."""
        return {**self._common, "experiment": form.experiment, "run": np.uint64(form.run)}


def versions() -> dict[str, str]:
    """Return the versions of what writes the messages."""
    try:
        own = version("lclstream")
    except PackageNotFoundError:
        # Run from its folders, without having been installed.
        own = ""
    return {
        "lclstream": own,
        "numpy": np.__version__,
        "h5py": h5py.version.version,
        "hdf5": h5py.version.hdf5_version,
    }
