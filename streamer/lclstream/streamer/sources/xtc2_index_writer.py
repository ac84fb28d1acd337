"""Make the index of a stream that has none: its small-data file, as psana's smdwriter makes it.

```
write_index([folder / "mfx101332224-r0007-s000-c000.xtc2"])
```
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.sources.xtc2_dgram import Dgram
from lclstream.streamer.sources.xtc2_file import Xtc2File
from lclstream.streamer.sources.xtc2_files import UNFINISHED
from lclstream.streamer.sources.xtc2_format import (
    DGRAM_HEADER,
    Field,
    FieldType,
    Names,
    NamesTable,
    Service,
)
from lclstream.streamer.sources.xtc2_index import index_path
from lclstream.streamer.sources.xtc2_writer import (
    Parts,
    encode_dgram,
    encode_names,
    encode_shapes_data,
)

SMDINFO = Names(
    names_id=0x20000,
    detector="smdinfo",
    detector_type="offset",
    algorithm="offsetAlg",
    fields=(
        Field(name="intOffset", type=FieldType.U8),
        Field(name="intDgramSize", type=FieldType.U8),
    ),
)


def write_index(chunks: Sequence[Path]) -> Path:
    """Write the small-data file of a stream beside its first chunk and return its path.

    It appears under its name when it is complete; one that was there is replaced.

    Raises:
        InvalidConfigError: there are no chunks.
        DecodeError: a file is damaged.
        NotFoundError: a file cannot be read.
    """
    if not chunks:
        raise InvalidConfigError("an index needs at least one file")
    path = index_path(chunks[0])
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_name(path.name + UNFINISHED)
    with unfinished.open("wb") as file:
        for parts in _entries(chunks):
            file.writelines(parts)
    return unfinished.rename(path)


def _entries(chunks: Sequence[Path]) -> Iterator[Parts]:
    names: NamesTable = {}
    for chunk in chunks:
        file = Xtc2File(chunk, names)
        for dgram in file:
            yield _entry(dgram)
        names = file.names


def _entry(dgram: Dgram) -> Parts:
    """Return what the index has of a dgram: all of a transition, the place of an event."""
    start, end = dgram.offset, dgram.end
    env = dgram.env & ~(0xF << 24)
    if dgram.service is Service.L1ACCEPT:
        place = {"intOffset": start, "intDgramSize": end - start}
        parts = encode_shapes_data(SMDINFO, place)
    elif dgram.service is Service.END_RUN:
        parts = []
    else:
        parts = [bytes(dgram.window.buffer[start + DGRAM_HEADER.size : end])]
        if dgram.service is Service.CONFIGURE:
            parts += encode_names(SMDINFO)
    return encode_dgram(dgram.service, dgram.timestamp, parts, env)
