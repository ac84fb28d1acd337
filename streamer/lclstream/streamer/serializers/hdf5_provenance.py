"""Where the messages of a rank come from, as attributes of the group `/lclstream`."""

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import h5py
import numpy as np

from lclstream.streamer.batching import Form
from lclstream.streamer.config import Parameters
from lclstream.streamer.config.canonical import canonical_json, configuration_hash
from lclstream.streamer.rank import Place

FORMAT_VERSION = 1


class Provenance:
    """The attributes of the messages of one rank."""

    def __init__(self, parameters: Parameters, place: Place) -> None:
        self._common: dict[str, object] = {
            "format": np.uint32(FORMAT_VERSION),
            "rank": np.uint32(place.rank),
            "ranks": np.uint32(place.size),
            "source_identifier": parameters.source_identifier,
            "configuration": canonical_json(parameters),
            "configuration_sha256": configuration_hash(parameters),
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
