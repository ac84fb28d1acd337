"""Finds out what a `source_identifier` names, and lists what is in it."""

from collections.abc import Iterator
from pathlib import Path

from lclstream.streamer.config.source_identifier import identifier_files

HDF5_HEAD = b"\x89HDF\r\n\x1a\n"
HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf", ".cxi", ".nxs", ".nx", ".nexus")
ARRAY_SUFFIXES = (".npy", ".npz")


def describe(source_identifier: str) -> Iterator[str]:
    """Yield the lines of a listing of files, folders or the beginning of a stream.

    Each kind is imported only when it is needed.

    Raises:
        InvalidConfigError: a file or folder is not there, or cannot be read.
        DecodeError: it is damaged.
        UnavailableError: nothing came from a stream.
    """
    if "://" in source_identifier:
        from lclstream.streamer.sources.simplon_info import describe_stream

        return describe_stream(source_identifier)
    paths = [Path(each).expanduser() for each in identifier_files(source_identifier)]
    head = next((_head(path) for path in paths if path.is_file()), b"")
    names = {path.suffix.lower() for path in paths}
    if head == HDF5_HEAD or (not head and names & set(HDF5_SUFFIXES)):
        from lclstream.streamer.sources.hdf5 import describe as describe_hdf5

        return describe_hdf5(source_identifier)
    if paths and names <= set(ARRAY_SUFFIXES):
        from lclstream.streamer.sources.folder import describe_files

        return describe_files(paths)
    if paths and all(path.is_dir() and not any(path.glob("*.xtc2*")) for path in paths):
        from lclstream.streamer.sources.folder import describe as describe_folder

        return describe_folder(source_identifier)
    return _messages(paths) or _xtc2(source_identifier)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(HDF5_HEAD))


def _messages(paths: list[Path]) -> Iterator[str] | None:
    files = [path for path in paths if path.is_file()]
    if not files or files != paths:
        return None
    from lclstream.streamer.sources.simplon_info import describe_files, is_message

    return describe_files(paths) if is_message(_head(paths[0])) else None


def _xtc2(source_identifier: str) -> Iterator[str]:
    from lclstream.streamer.sources.xtc2_info import describe

    return iter(describe(source_identifier))
