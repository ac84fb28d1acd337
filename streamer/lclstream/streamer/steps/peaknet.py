"""Images as the PeakNet neural network takes them."""

import logging

import numpy as np

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config import Parameters
from lclstream.streamer.config.peaknet import ORIGINAL_SHAPE, PeaknetPreprocessingConfig
from lclstream.streamer.events import Event
from lclstream.streamer.steps.mapping import Numbers, array_of, misfit
from lclstream.streamer.steps.rooms import Room, Rooms
from lclstream.streamer.values import Ragged, Reading, Values

logger = logging.getLogger(__name__)

Spans = tuple[slice, slice]

# Images and sizes for which memory is kept.
MOST_SIZES = 32


class PeaknetPreprocessing:
    """Pads images with zeros to one size, normalises them, and gives them channels.

    An image (rows, columns) has one channel; each panel of a stack (panels, rows, columns) is
    one. Everything else passes unchanged.
    """

    def __init__(self, config: PeaknetPreprocessingConfig, parameters: Parameters) -> None:
        del parameters
        self._config = config
        self._named = None if config.images is None else frozenset(config.images)
        self._axes = (2, 3) if config.stacks == "pad" else (2,)
        self._padded: dict[tuple[str, tuple[int, ...]], Room] = {}
        self._rooms = Rooms()
        self._images: tuple[str, ...] | None = None

    def apply(self, event: Event, values: Values) -> Values:
        """Return the values, images padded and with channels.

        Raises:
            InvalidConfigError: what is named as an image is none, one is larger than allowed, or
                its normalised pixels are NaN.
        """
        after = dict(values)
        images = [label for label, value in values.items() if self._is_image(label, value)]
        self._tell(images)
        for label in images:
            value = values[label]
            if value is None:
                continue
            image = array_of(self._config, label, value)
            if self._config.original_shape:
                channels = image.shape[0] if image.ndim == 3 else 1
                shape = np.array([channels, *image.shape[-2:]], np.int32)
                after[label + ORIGINAL_SHAPE] = shape
            after[label] = self._prepared(label, image, event)
        return after

    def _is_image(self, label: str, value: Reading | None) -> bool:
        if self._named is None:
            return isinstance(value, np.ndarray) and value.ndim in self._axes
        if label not in self._named or value is None:
            return False
        image = array_of(self._config, label, value)
        if image.ndim not in self._axes:
            raise misfit(self._config, label, f"has shape {image.shape}, and is not an image")
        return True

    def _tell(self, images: list[str]) -> None:
        """Say once which values were taken for images, where nobody named them."""
        if self._images is None and self._named is None:
            self._images = tuple(images)
            logger.info("images_recognised", extra={"values": list(images)})

    def _prepared(self, label: str, image: Numbers, event: Event) -> Reading:
        config = self._config
        padded, inside = self._pad(label, image)
        has_channels = image.ndim == 3 or config.add_channel_dim
        if config.apply_normalization:
            padded = self._normalised(label, padded, inside, event)
        if image.ndim == 2 and config.add_channel_dim:
            padded = np.broadcast_to(padded, (config.num_channels, *padded.shape))
        if config.merge_batch_and_channel and has_channels:
            # As many readings of one channel each: batched, they lie one after the other.
            return Ragged(padded[:, None])
        return padded

    def _pad(self, label: str, image: Numbers) -> tuple[Numbers, Spans]:
        """Return the image among zeros, and where it lies."""
        config = self._config
        rows, columns = image.shape[-2:]
        if rows > config.target_height or columns > config.target_width:
            image = self._fitted(label, image)
            rows, columns = image.shape[-2:]
        height, width = max(rows, config.target_height), max(columns, config.target_width)
        centred = config.pad_style == "center"
        top, left = ((height - rows) // 2, (width - columns) // 2) if centred else (0, 0)
        inside = (slice(top, top + rows), slice(left, left + columns))
        if (rows, columns) == (height, width):
            return image, inside
        # Zeros stay zeros where images of one size lie in one place.
        key = (label, image.shape)
        room = self._padded.get(key)
        if room is None:
            if len(self._padded) >= MOST_SIZES:
                self._padded.clear()
            room = self._padded[key] = Room(initial=0)
        padded = room.take((*image.shape[:-2], height, width), image.dtype)
        padded[(..., *inside)] = image
        return padded, inside

    def _fitted(self, label: str, image: Numbers) -> Numbers:
        """Return what is left of an image that is larger than the target."""
        config = self._config
        if config.larger == "error":
            text = f"has shape {image.shape}, larger than {config.target_height} rows and "
            raise misfit(config, label, f"{text}{config.target_width} columns")
        if config.larger == "keep":
            return image
        rows = _middle(image.shape[-2], config.target_height, config.pad_style)
        columns = _middle(image.shape[-1], config.target_width, config.pad_style)
        return image[..., rows, columns]

    def _normalised(self, label: str, padded: Numbers, inside: Spans, event: Event) -> Numbers:
        """Return the image less its mean, divided by its standard deviation."""
        config = self._config
        counted = padded if config.norm_padding else padded[(..., *inside)]
        with np.errstate(all="ignore"):
            # The same calls in the same order give the same bits as the first of its kind.
            result: Numbers = padded - np.mean(counted)
            if config.norm_scale_variance:
                result = result / np.sqrt(np.var(counted) + config.norm_eps)
        if config.norm_check_nan and np.isnan(result).any():
            raise InvalidConfigError(
                f"{config.type}: {label!r} of event {event.index} is NaN after normalisation; mask "
                "such pixels before, or write norm_check_nan: false"
            )
        if config.norm_padding:
            return result
        among_zeros: Numbers = np.zeros_like(result)
        among_zeros[(..., *inside)] = result[(..., *inside)]
        return among_zeros


def _middle(size: int, target: int, pad_style: str) -> slice:
    """Return the part of an axis that stays: the middle, or the begin."""
    if size <= target:
        return slice(None)
    first = (size - target) // 2 if pad_style == "center" else 0
    return slice(first, first + target)
