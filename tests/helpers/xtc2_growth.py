"""A process that writes recorded files again, bit by bit, as the data acquisition does.

    python -m tests.helpers.xtc2_growth PLAN.json

The plan has `streams`: for each a list of [recorded file, final path], its chunks; `piece`, the
bytes that are written at once at most; `pause_s` after each; `seed`; and `copies`: whether a file
gets its final name by being copied, as between file systems, and not by being renamed. A file has
the suffix `.inprogress` until it is complete. Streams grow in turn at random, some faster. A line
is written to the output when a file is complete.
"""

import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def grow_stream(
    chunks: list[list[str]], plan: dict[str, Any], chance: random.Random
) -> Iterator[None]:
    """Write the chunks of one stream; yield after each piece."""
    finished: Path | None = None
    for recorded, final in chunks:
        raw = Path(recorded).read_bytes()
        unfinished = Path(final + ".inprogress")
        file = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        if finished is not None:
            # The next chunk begins before the last gets its name.
            complete(finished, plan)
        at = 0
        while at < len(raw):
            at += os.write(file, raw[at : at + chance.randint(1, plan["piece"])])
            yield
        os.close(file)
        finished = unfinished
    if finished is not None:
        yield
        complete(finished, plan)


def complete(unfinished: Path, plan: dict[str, Any]) -> None:
    final = unfinished.with_suffix("")
    if plan.get("copies"):
        beside = final.with_suffix(".copy")
        shutil.copyfile(unfinished, beside)
        beside.rename(final)
        unfinished.unlink()
    else:
        unfinished.rename(final)
    sys.stdout.write(f"{final.name}\n")
    sys.stdout.flush()


def main(plan: dict[str, Any]) -> None:
    chance = random.Random(plan["seed"])  # noqa: S311
    growing = [grow_stream(chunks, plan, chance) for chunks in plan["streams"]]
    while growing:
        # The first is the fastest.
        stream = growing[int(len(growing) * chance.random() ** 2)]
        if next(stream, "end") == "end":
            growing.remove(stream)
        time.sleep(plan["pause_s"])


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
