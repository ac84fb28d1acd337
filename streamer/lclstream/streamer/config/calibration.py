"""Where calibration constants come from, for sources that calibrate without psana."""

from pydantic import Field

from lclstream.core.models import StrictModel


class CalibrationConfig(StrictModel):
    """The constants that turn raw pixels into energies: `raw.calib` and `raw.image`."""

    constants: str = Field(min_length=1)
    """A file (`.npz`, `.h5`), a folder, or the address of a calibration service, such as
    `https://pswww.slac.stanford.edu/ws`."""
    run: int | None = Field(default=None, ge=0)
    """Take the constants that are valid for this run instead of the run that is read."""
    cache: str = ""
    """Folder for what a service sent, so that it is asked once; empty =
    `$XDG_CACHE_HOME/lclstream/calibration`."""
    timeout_s: float = Field(default=30.0, gt=0)
    """How long a service may take to answer; its data may take as much again per 100 MB."""
