"""Images as the PeakNet neural network takes them: what both versions of its preprocessing know."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from lclstream.core.models import StrictModel
from lclstream.streamer.config.known import Knowledge, Known
from lclstream.streamer.config.registry import Finding
from lclstream.streamer.config.steps import Labels, Place, ValueStep

ORIGINAL_SHAPE = "_original_shape"
"""Behind the name of an image: its channels, rows and columns before it was padded."""

# Who writes one of these means the version that treats stacks and sends the original shape.
OF_SECOND_VERSION = frozenset(
    ("apply_normalization", "norm_eps", "norm_check_nan", "norm_scale_variance",
     "merge_batch_and_channel")
)  # fmt: skip


class PeaknetOptions(StrictModel):
    """What is done to the images, by the names of both versions of the preprocessing."""

    target_height: int = Field(gt=0)
    """Rows of the padded image."""
    target_width: int = Field(gt=0)
    """Columns of the padded image."""
    pad_style: Literal["center", "bottom-right"] = "center"
    """Where the zeros go: around the image, or below it and to its right."""
    add_channel_dim: bool = True
    """Give images (rows, columns) an axis of channels in front."""
    num_channels: int = Field(default=1, gt=0)
    """How often an image (rows, columns) is repeated along the axis of channels, where it gets
    one."""
    apply_normalization: bool = False
    """Subtract the mean of each event's image; integers become float64."""
    norm_scale_variance: bool = True
    """With normalisation: divide by the standard deviation, too."""
    norm_eps: float = Field(default=1e-5, ge=0, allow_inf_nan=False)
    """With normalisation: added to the variance before the root is taken."""
    norm_check_nan: bool = True
    """With normalisation: fail when the result holds NaN."""
    norm_padding: bool = True
    """With normalisation: whether the zeros of the padding count in mean and variance, and
    change with the image. Without, they stay zeros."""
    merge_batch_and_channel: bool = False
    """Send every channel as an image of its own: (events x channels, 1, rows, columns)."""
    images: Labels | None = None
    """The values that are images. Without it: every value with two axes, and with three where
    stacks are padded."""
    stacks: Literal["pass", "pad"] = "pass"
    """What happens to values of (panels, rows, columns): they pass unchanged, or each panel is
    padded and is a channel. As upstream, the default is `pad` where `apply_normalization`,
    `merge_batch_and_channel`, `norm_eps`, `norm_check_nan` or `norm_scale_variance` is written."""
    original_shape: bool = False
    """Add `<image>_original_shape` to the values: int32 [channels, rows, columns] before
    padding. The default is true where that of `stacks` is `pad`."""
    larger: Literal["keep", "crop", "error"] = "keep"
    """What happens to images that are larger than the target: they keep their size, lose what
    sticks out on the sides where zeros would go, or the run fails."""

    @model_validator(mode="before")
    @classmethod
    def _version(cls, data: Any) -> Any:
        """Write down what the defaults of the second version are, for those who read it again."""
        if isinstance(data, Mapping) and OF_SECOND_VERSION.intersection(data):
            return {"stacks": "pad", "original_shape": True, **data}
        return data

    @model_validator(mode="after")
    def _channels_to_merge(self) -> "PeaknetOptions":
        if self.merge_batch_and_channel and not self.add_channel_dim:
            raise ValueError("merge_batch_and_channel needs add_channel_dim: true")
        return self


class PeaknetPreprocessingConfig(ValueStep, PeaknetOptions):
    """Pad images for the PeakNet neural network, add channels, normalise."""

    implementation: ClassVar = "lclstream.streamer.steps.peaknet:PeaknetPreprocessing"
    type: Literal["PeaknetPreprocessing"] = "PeaknetPreprocessing"

    def reads(self) -> Iterator[tuple[Place, str]]:
        """Yield the images, where they are named."""
        return ((("images", i), label) for i, label in enumerate(self.images or ()))

    def makes(self) -> Iterator[tuple[Place, str]]:
        """Yield the original shapes of the images, where these are named."""
        if self.original_shape:
            for i, label in enumerate(self.images or ()):
                yield ("images", i), label + ORIGINAL_SHAPE

    def labels_after(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Return the values, and the original shape of each that may be an image."""
        return tuple(self.known_after({label: Known() for label in labels}))

    def known_after(self, known: Knowledge) -> dict[str, Known]:
        """Return what is known about the values behind it."""
        images = [label for label in known if self._may_be_image(label, known[label])]
        shapes = [label + ORIGINAL_SHAPE for label in images if self.original_shape]
        changed = {label: Known() if label in images else known[label] for label in known}
        new = {label: Known("int32", (3,), is_ragged=False) for label in shapes}
        return changed | {label: new[label] for label in new if label not in known}

    def misfits(self, known: Knowledge) -> Iterator[Finding]:
        """Yield why something is no image, or too large."""
        for i, label in enumerate(self.images or ()):
            value, allowed = known[label], (2, 3) if self.stacks == "pad" else (2,)
            if value.is_text or value.is_ragged or value.ndim not in (None, *allowed):
                yield ("images", i), f"is not an image of {_either(allowed)} axes", label
            elif value.shape and self.larger == "error" and self._is_larger(value.shape):
                shape = "x".join(map(str, value.shape))
                yield ("images", i), f"is larger ({shape}) than the target", label

    def _may_be_image(self, label: str, known: Known) -> bool:
        if self.images is not None:
            return label in self.images
        return known.may_be_image and (self.stacks == "pad" or known.ndim != 3)

    def _is_larger(self, shape: tuple[int, ...]) -> bool:
        return shape[-2] > self.target_height or shape[-1] > self.target_width


def _either(numbers: tuple[int, ...]) -> str:
    return " or ".join(map(str, numbers))
