"""How the pixels of a Jungfrau are calibrated.

Bits 15 and 14 of a raw pixel say in which of three ranges of the gain it was measured: 00, 01 and
11. The combination 10 does not exist; a pixel that shows it becomes 0, as bad pixels do.

```
energy = (number - (pedestal + offset)) * (1 / gain * good)
```

psana computes the same. It differs where constants are incomplete: without pedestals it returns
the raw pixels, here that is an error; and when the constants know more panels than the data it
fails, here those of the data are used.
"""

import logging

import numpy as np

from lclstream.streamer.calibration.constants import Constants, Panel, inverse
from lclstream.streamer.calibration.planes import Planes, by_panel

logger = logging.getLogger(__name__)

KIND = "jungfrau"
RANGES = 3


def planes_of(constants: Constants, segments: tuple[int, ...], panel: Panel) -> Planes:
    """Return what calibrates the panels of the given segments.

    Args:
        constants: see the module `constants`.
        segments: numbers of the segments in the data.
        panel: rows and columns of one segment.

    Raises:
        InvalidConfigError: pedestals are missing, or constants are of another detector.
    """
    pedestals = constants.panels("pedestals", RANGES, segments, panel)
    offset, gain = constants.get("pixel_offset"), constants.get("pixel_gain")
    total = pedestals
    if offset is not None:
        total = pedestals + constants.fit("pixel_offset", offset, RANGES, segments, panel)
    if gain is None:
        logger.warning("calibration_without_gain", extra={"constants": constants.origin})
        factors = np.ones_like(pedestals)
    else:
        factors = inverse(constants.fit("pixel_gain", gain, RANGES, segments, panel), pedestals)
    good = constants.good(segments, panel)
    if good is not None:
        factors = factors * good
    return Planes(
        offsets=by_panel(total),
        factors=by_panel(factors),
        bits=0b11,
        codes=(0b00, 0b01, 0b11),
    )
