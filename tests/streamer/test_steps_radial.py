"""Where pixels are, and averages around the beam."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.streamer.stepping import applied, array, event, frame, step_of

from lclstream.core.errors import InvalidConfigError
from lclstream.streamer.config.diffraction_steps import GeometryConfig
from lclstream.streamer.steps.crystfel_geometry import parse_geometry, read_geometry
from lclstream.streamer.steps.geometry import Geometry
from lclstream.streamer.steps.radial import HC_EV_ANGSTROM

Frame = np.ndarray[Any, Any]


def profile(image: Frame, **options: Any) -> tuple[Frame, Frame]:
    given = {"x": image} | options.pop("values", {})
    after = applied(step_of("RadialProfile", **{"input": "x", **options}), given)
    counts = array(after["radial_profile_pixels"])
    assert counts.dtype == np.uint32
    return array(after["radial_profile"]), counts


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    center=st.tuples(st.floats(-20, 60), st.floats(-20, 60)),
    dtype=st.sampled_from(["u2", "i4", "f4", "f8"]),
)
@settings(deadline=None, max_examples=40)
def test_means_and_sums_of_rings(
    rows: int, columns: int, center: tuple[float, float], dtype: str
) -> None:
    image, mask = frame(rows, columns, dtype=dtype), frame(rows, columns, seed=3) % 4
    if image.dtype.kind == "f":
        image[0, 0] = np.nan
    radius = np.hypot(np.arange(rows)[:, None] - center[0], np.arange(columns) - center[1])
    good = (mask != 0) & np.isfinite(image) & (radius >= 5) & (radius < 25)
    ring = np.floor((radius[good] - 5) * (8 / 20)).astype(int)
    number = np.bincount(ring, minlength=8)
    total = np.bincount(ring, image[good].astype(np.float64), minlength=8)
    options = {
        "geometry": {"center": center}, "bins": 8, "minimum": 5, "maximum": 25,
        "mask": {"value": "m"}, "values": {"m": mask},
    }  # fmt: skip
    found, counts = profile(image, **options)
    assert counts.tolist() == number.tolist()
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(found, total / number)
    summed, _ = profile(image, **options, method="sum")
    np.testing.assert_array_equal(summed, np.where(number > 0, total, np.nan))


def test_rings_of_q_follow_the_wavelength() -> None:
    """A powder ring of one lattice spacing stays in its bin whatever the wavelength."""
    spacing, distance_mm, pixel_um = 4.0, 100.0, 100.0
    q_ring = 2 * np.pi / spacing
    rows, columns = np.ogrid[-300:300, -300:300]
    radius = np.hypot(rows, columns)
    geometry = {"center": [300, 300]}
    options = {
        "geometry": geometry, "unit": "q", "bins": 100, "maximum": 3.0, "distance_mm": distance_mm,
        "pixel_um": pixel_um,
    }  # fmt: skip
    by_wavelength = step_of("RadialProfile", input="x", wavelength="w", **options)
    by_energy = step_of("RadialProfile", input="x", photon_energy="w", **options)
    for wavelength in (1.0, 1.3, 1.3, 0.8):
        theta = np.arcsin(q_ring * wavelength / (4 * np.pi))
        wanted = distance_mm * 1000 / pixel_um * np.tan(2 * theta)
        image = np.exp(-0.5 * ((radius - wanted) / 2) ** 2).astype(np.float32)
        energy = np.array(HC_EV_ANGSTROM / wavelength)
        curves = [
            array(applied(step, {"x": image, "w": value})["radial_profile"])
            for step, value in (
                (by_wavelength, np.array([wavelength])),
                (by_energy, energy),
                (
                    step_of("RadialProfile", input="x", wavelength_angstrom=wavelength, **options),
                    None,
                ),
            )
        ]
        assert int(np.nanargmax(curves[0])) == int(q_ring * 100 / 3.0)
        np.testing.assert_allclose(curves[1], curves[0], rtol=1e-9)
        np.testing.assert_array_equal(curves[2], curves[0])


def test_profiles_are_missing_where_the_wavelength_is() -> None:
    step = step_of(
        "RadialProfile", input="x", geometry={"center": [0, 0]}, maximum=3, unit="q",
        distance_mm=1, pixel_um=1, wavelength="w",
    )  # fmt: skip
    for wavelength in (None, np.array(0.0), np.array(np.nan), np.array(-1)):
        after = applied(step, {"x": frame(4, 4), "w": wavelength})
        assert after["radial_profile"] is after["radial_profile_pixels"] is None
    with pytest.raises(InvalidConfigError, match="not one number"):
        step.apply(event(), {"x": frame(4, 4), "w": np.ones(2)})


def test_pixels_of_stacks_and_coordinates(tmp_path: Path) -> None:
    corners = [(0.0, 0.0), (50.0, -10.0)]
    geometry = GeometryConfig(center=(20.0, 30.0), panel_corners=corners)
    found = Geometry(geometry, "step").pixels("x", (2, 40, 60)).radius
    rows, columns = np.ogrid[:40, :60]
    for panel, (top, left) in enumerate(corners):
        wanted = np.hypot(rows + top - 20, columns + left - 30)
        assert np.array_equal(found[panel], wanted)
    x, y = np.random.default_rng(1).normal(0, 50, (2, 2, 40, 60))
    np.savez(tmp_path / "c.npz", x=x, y=y)
    listed = Geometry(GeometryConfig(coordinates=str(tmp_path / "c.npz")), "step")
    assert np.array_equal(listed.pixels("x", (2, 40, 60)).radius, np.hypot(x, y))
    with pytest.raises(InvalidConfigError, match=r"has shape \(40, 60\), but its coordinates"):
        listed.pixels("x", (40, 60))
    np.savez(tmp_path / "bad.npz", x=x, y=y[0])
    with pytest.raises(InvalidConfigError, match="x has shape"):
        Geometry(GeometryConfig(coordinates=str(tmp_path / "bad.npz")), "step")
    np.savez(tmp_path / "none.npz", y=y)
    with pytest.raises(InvalidConfigError, match="it has no 'x'"):
        Geometry(GeometryConfig(coordinates=str(tmp_path / "none.npz")), "step")


# Geometry files of CrystFEL

TWO_PANELS = """
; a comment
clen = 0.1
res = 13333.3  ; pixels per metre
p0/min_fs = 0
p0/max_fs = 3
p0/min_ss = 0
p0/max_ss = 1
p0/corner_x = -4.5
p0/corner_y = 1e1
p0/fs = x
p0/ss = -y
rigid_group_q0 = p0
fs = +0.0y -1.0x +0.5z
p1/min_fs = 4
p1/max_fs = 7
p1/min_ss = 0
p1/max_ss = 1
p1/corner_x = 2
p1/corner_y = 0
p1/ss = y
badspot/panel = p0
badspot/min_fs = 1
badspot/max_fs = 2
badspot/min_ss = 0
badspot/max_ss = 0
badcorner/min_x = 1
badcorner/max_x = 1.9
badcorner/min_y = 0
badcorner/max_y = 9
"""


def test_panels_of_a_geometry_file(tmp_path: Path) -> None:
    path = tmp_path / "two.geom"
    path.write_text(TWO_PANELS)
    first, second = read_geometry(path)
    assert (first.name, first.shape, first.corner) == ("p0", (2, 4), (-4.5, 10.0))
    assert (first.fs, first.ss) == ((1.0, 0.0), (0.0, -1.0))
    assert (second.fs, second.ss) == ((-1.0, 0.0), (0.0, 1.0))
    found = Geometry(GeometryConfig(crystfel=str(path)), "step").pixels("x", (2, 8))
    assert found.panel_shape == (2, 4)
    assert found.radius[1, 0] == np.hypot(-4.5 + 0.5, 10 - 1.5)
    assert found.radius[1, 5] == np.hypot(2 - 1.5, 1.5)
    assert np.isnan(found.radius).tolist() == [
        [False, True, True, False, True, False, False, False],
        [False, False, False, False, True, False, False, False],
    ]
    with pytest.raises(InvalidConfigError, match=r"in which there is no panel 'p1'"):
        Geometry(GeometryConfig(crystfel=str(path)), "step").pixels("x", (2, 7))


def test_panels_of_a_stack() -> None:
    """The one number among the dimensions is that of the panel; a leading one is the event's."""
    text = "\n".join(
        f"p{n}/{key} = {value}"
        for n in range(2)
        for key, value in {
            "dim0": "%", "dim1": n, "dim2": "ss", "dim3": "fs", "min_fs": 0, "max_fs": 2,
            "min_ss": 0, "max_ss": 1, "corner_x": 10 * n, "corner_y": 0, "fs": "x", "ss": "y",
        }.items()
    )  # fmt: skip
    assert [panel.index for panel in parse_geometry(text)] == [0, 1]
    flat = text.replace("p1/dim1 = 1", "p1/dim1 = 0")
    assert [panel.index for panel in parse_geometry(flat)] == [0, 0]


MISTAKES = [
    ("", "describes no panels"),
    ("p0/min_fs 0", "line 1: expected KEY = VALUE"),
    ("p0/min_fs = 0", "panel 'p0' lacks max_fs"),
    (TWO_PANELS.replace("p0/max_fs = 3", "p0/max_fs = -3"), "p0 has impossible limits of fs"),
    (TWO_PANELS.replace("p0/max_fs = 3", "p0/max_fs = 1e9"), "p0 has impossible limits of fs"),
    (TWO_PANELS.replace("p0/max_fs = 3", "p0/max_fs = many"), "p0/max_fs: expected a number"),
    (TWO_PANELS.replace("-4.5", "nan"), "p0/corner_x: expected a number, got 'nan'"),
    (TWO_PANELS.replace("= -y", "= 3 apples"), "p0/ss: expected a vector such as 1.0x -0.5y"),
    (TWO_PANELS.replace("= -y", "= -1e999y"), "p0/ss: expected a number, got '-1e999'"),
    (TWO_PANELS.replace("badspot/max_fs = 2", ""), "badspot needs limits of fs and ss"),
]


def test_mistakes_in_geometry_files_are_named(tmp_path: Path) -> None:
    for text, wanted in MISTAKES:
        with pytest.raises(InvalidConfigError) as caught:
            parse_geometry(text, "two.geom")
        assert wanted in str(caught.value)
        assert "two.geom" in str(caught.value)
    with pytest.raises(InvalidConfigError, match="cannot be read"):
        read_geometry(tmp_path / "none.geom")
    (tmp_path / "binary.geom").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidConfigError, match="cannot be read"):
        read_geometry(tmp_path / "binary.geom")


@given(text=st.text(max_size=200), place=st.integers(0, len(TWO_PANELS)))
@settings(deadline=None, max_examples=200)
def test_any_text_is_panels_or_an_error(text: str, place: int) -> None:
    for each in (text, TWO_PANELS[:place] + text + TWO_PANELS[place:]):
        try:
            panels = parse_geometry(each)
        except InvalidConfigError:
            continue
        assert panels
