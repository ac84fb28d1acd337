"""Calibration of area detectors without psana, to the same bits.

What is read from a detector are numbers of its converters. Energies come from them by constants
that somebody measured: `constants` says what there is of one detector, `stores` and `service` say
where it comes from, `jungfrau` and `epix10ka` how the two kinds of detectors use it, `planes` does
the arithmetic, `geometry` and `images` put the panels where they are in space.
"""
