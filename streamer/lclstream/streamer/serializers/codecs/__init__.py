"""The codecs of HDF5 chunks, without the HDF5 library.

A chunk that one of them has packed is what the HDF5 filter of the same number makes, so every
reader that has the filter reads it. They work on addresses: nothing is copied on the way, and
other threads run meanwhile.

Resource handling: whoever calls `Piece.pack` keeps the memory at both addresses alive.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import HDF5BinarySerializerConfig


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter of a dataset, as HDF5 knows it."""

    code: int
    values: tuple[int, ...]
    """Its parameters (`cd_values`). Some filters add to them when the dataset is created."""


class Piece(Protocol):
    """Packs a part of every chunk of a dataset; one after the other the parts are the chunk."""

    bound: int
    """Bytes that the result may need."""

    def pack(self, source: int, into: int) -> int:
        """Compress.

        Args:
            source: address of the chunk.
            into: address of room for `bound` bytes.

        Returns:
            The size of the result in bytes.
        """
        ...


class Codec(Protocol):
    """One way to compress datasets."""

    def suits(self, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bool:
        """Return whether it can compress chunks of this form."""
        ...

    def filters(self, dtype: np.dtype[np.generic]) -> Sequence[Filter]:
        """Return the filters of a dataset, in the order of writing."""
        ...

    def pieces(
        self, chunk_bytes: int, filters: Sequence[Filter], parts: int = 1
    ) -> Sequence[Piece]:
        """Return what packs the chunks of a dataset.

        Args:
            chunk_bytes: size of each.
            filters: those of the dataset, with all that they have added.
            parts: into how many a chunk is to be split, so that several threads can work on it.
                A codec that cannot do that returns fewer.
        """
        ...


def open_codec(config: HDF5BinarySerializerConfig) -> Codec | None:
    """Return the codec that a configuration names, None for no compression.

    Raises:
        InvalidConfigError: its library is not installed.
    """
    name, level = config.compression, config.compression_level
    if name is None:
        return None
    try:
        return _codec(name, level)
    except (ImportError, OSError, AttributeError) as error:
        raise InvalidConfigError(f"compression {name!r} cannot be used: {error}") from None


def _codec(name: str, level: int) -> Codec:
    # Each is imported on demand, for each needs a library that others do without.
    if name in ("gzip", "gzip_with_shuffle"):
        from lclstream.streamer.serializers.codecs.deflate import Deflate

        return Deflate(level, shuffle=name == "gzip_with_shuffle")
    if name in ("bitshuffle_with_lz4", "bitshuffle_with_zstd"):
        from lclstream.streamer.serializers.codecs.bitshuffle import Bitshuffle

        return Bitshuffle(level if name == "bitshuffle_with_zstd" else None)
    if name in ("blosc2_with_lz4", "blosc2_with_zstd"):
        from lclstream.streamer.serializers.codecs.blosc2 import Blosc2

        return Blosc2(name.removeprefix("blosc2_with_"), level)
    if name == "zstd":
        from lclstream.streamer.serializers.codecs.zstandard import Zstandard

        return Zstandard(level)
    from lclstream.streamer.serializers.codecs.zfp import Zfp

    return Zfp()
