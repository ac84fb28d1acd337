"""What is in HDF5 files, as text for people."""

from collections.abc import Mapping

import h5py

from lclstream.streamer.sources.hdf5_column import reading
from lclstream.streamer.sources.hdf5_layout import child_of


def listing(file: h5py.File, names: Mapping[str, str]) -> list[str]:
    """Return a line for each dataset, and for each name that data sources may use.

    Args:
        file: open.
        names: name -> path.

    Raises:
        DecodeError: it is damaged.
    """
    lines: list[str] = []
    with reading(f"the datasets of {file.filename}"):
        _list(file, lines)
    width = max(map(len, names), default=0)
    return lines + [f"  {name:{width}}  = {place}" for name, place in names.items()]


def _list(file: h5py.File, lines: list[str]) -> None:
    file.visititems(lambda name, item: lines.extend(_line(name, item)))
    file.visititems_links(lambda name, link: lines.extend(_linked(file, name, link)))


def _line(name: str, item: h5py.Dataset | h5py.Group) -> list[str]:
    if not isinstance(item, h5py.Dataset):
        return []
    shape = " x ".join(map(str, item.shape or ())) or "one value"
    return [f"  /{name}: {item.dtype}, {shape}"]


def _linked(file: h5py.File, name: str, link: object) -> list[str]:
    """Return the line of an external link; of one that leads nowhere too."""
    if not isinstance(link, h5py.ExternalLink):
        return []
    item = child_of(file, name)
    if isinstance(item, h5py.Dataset):
        return [f"{_line(name, item)[0]}, in {link.filename}"]
    return [f"  /{name}: in {link.filename}" + ("" if item is not None else ", which is not there")]
