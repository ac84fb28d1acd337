"""Geometry texts and images of panels."""

from typing import Any

import numpy as np
import pytest
from tests.helpers.area_detectors import FOUR_EPIX, JUNGFRAU_PANEL, TWO_JUNGFRAUS

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.calibration.geometry import ONE_JUNGFRAU, parse, pixel_coordinates
from lclstream.streamer.calibration.images import ImageAssembler

EPIX_PANEL = (352, 384)


def frame_of(panels: int, panel: tuple[int, int]) -> Any:
    """Return numbers that tell every pixel from the others."""
    count = panels * panel[0] * panel[1]
    return np.arange(1, count + 1, dtype=np.float32).reshape(panels, *panel)


def test_one_panel_is_turned_by_a_quarter() -> None:
    image = ImageAssembler(ONE_JUNGFRAU, (0,), JUNGFRAU_PANEL, "here")
    assert image.shape == (514, 1030)
    frame = frame_of(1, JUNGFRAU_PANEL)
    found = image(frame)
    # Its eight chips, with two lines between them.
    assert found[0, 0] in (frame[0, 0, 0], frame[0, 511, 0], frame[0, 0, -1], frame[0, -1, -1])
    assert set(np.unique(found)) == {0.0, *np.unique(frame)}
    assert np.count_nonzero(found) == frame.size


def test_every_pixel_is_where_its_coordinates_are() -> None:
    x, y, pixel_um = pixel_coordinates(parse(FOUR_EPIX))
    assert (x.shape, pixel_um) == ((4, *EPIX_PANEL), 100)
    image = ImageAssembler(FOUR_EPIX, (0, 1, 2, 3), EPIX_PANEL, "here")
    frame = frame_of(4, EPIX_PANEL)
    found = image(frame)
    rows = ((x - x.min()) / pixel_um + 0.5).astype(int)
    columns = ((y - y.min()) / pixel_um + 0.5).astype(int)
    assert found.shape == (rows.max() + 1, columns.max() + 1)
    # Where two fall into one place the later counts.
    plain = np.zeros(found.shape, np.float32)
    np.maximum.at(plain, (rows, columns), frame)
    filled = found != plain
    assert np.array_equal(found[~filled], plain[~filled])
    # The others had none, amid four that have one.
    assert 0 < filled.sum() < 2000
    assert (plain[filled] == 0).all()
    for row, column in np.argwhere(filled):
        around = plain[[row - 1, row + 1, row, row], [column, column, column - 1, column + 1]]
        assert found[row, column] == around.min() > 0


def test_the_image_of_some_panels_is_as_large_as_that_of_all() -> None:
    whole = ImageAssembler(TWO_JUNGFRAUS, (0, 1), JUNGFRAU_PANEL, "here")
    part = ImageAssembler(TWO_JUNGFRAUS, (1,), JUNGFRAU_PANEL, "here")
    assert whole.shape == part.shape
    frame = frame_of(2, JUNGFRAU_PANEL)
    one = part(frame[1:])
    there = one != 0
    assert np.array_equal(one[there], whole(frame)[there])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing is outermost"),
        ("# only a remark", "nothing is outermost"),
        ("IP 0 CAM", "line 1: expected 13 columns, got 3"),
        ("IP 0 CAM x 0 0 0 0 0 0 0 0 0", "line 1: invalid literal for int"),
        ("IP 0 CAM 0 0 0 0 0 0 0 0 0 nan", "line 1: a number is not finite"),
        ("IP 0 CAM 0 0 0 0 0 0 0 0 0 0", "'CAM' is no kind of panel that is known"),
        ("CAM 0 CAM 0 0 0 0 0 0 0 0 0 0", "CAM 0 is its own parent"),
        ("A 0 B 0 0 0 0 0 0 0 0 0 0\nB 0 A 0 0 0 0 0 0 0 0 0 0", "nothing is outermost"),
        ("IP 0 B 0 0 0 0 0 0 0 0 0 0\nIP 0 B 0 0 0 0 0 0 0 0 0 0", "described twice"),
        ("IP 0 EPIX10KA:V1 0 0 0 0 0 0 0 0 0 0", r"panels \(1, 352, 384\), which do not fit"),
        (
            "IP 0 JUNGFRAU:V2 0 0 0 0 0 0 0 0 0 0\nIP 0 JUNGFRAU:V2 1 1e9 1e9 0 0 0 0 0 0 0",
            "is too large",
        ),
        (
            "IP 0 JUNGFRAU:V2 0 0 0 0 0 0 0 0 0 0\nIP 0 EPIX10KA:V1 1 0 0 0 0 0 0 0 0 0",
            "have different shapes",
        ),
    ],
)
def test_texts_that_make_no_sense_are_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidConfigError, match=rf"^here: .*{message}"):
        ImageAssembler(text, (0,), JUNGFRAU_PANEL, "here")


def test_too_few_panels_are_refused() -> None:
    message = r"which do not fit segments \[0, 2\] of \(512, 1024\)$"
    with pytest.raises(InvalidConfigError, match=message):
        ImageAssembler(TWO_JUNGFRAUS, (0, 2), JUNGFRAU_PANEL, "here")


def test_spoilt_texts_raise_only_our_errors() -> None:
    random = np.random.default_rng(5)
    words = ["IP", "CAM", "EPIX10KA:V1", "0", "1", "-5", "1e308", "inf", "x", "#", "\n", "\0", "ü"]
    for _ in range(500):
        lines = FOUR_EPIX.split(" ")
        for place in random.integers(0, len(lines), random.integers(1, 8)):
            lines[place] = words[random.integers(len(words))]
        try:
            node = parse(" ".join(lines), "here")
        except InvalidConfigError:
            continue
        assert node.children
