"""`python -m lclstream.streamer`: the same as `lclstream streamer run`, for launchers.

The command `lclstreamer` is this too, with the options that job scripts of LCLS give it.
"""

import argparse
import sys
from pathlib import Path

from lclstream.core.errors import InvalidConfigError, LclstreamError
from lclstream.streamer.cli import RUN_DESCRIPTION, add_run_options

EXIT_FAILED = 1
EXIT_MISCONFIGURED = 2


def main() -> int:
    """Stream as one rank and return the exit code."""
    name = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(
        prog="lclstreamer" if name == "lclstreamer" else "python -m lclstream.streamer",
        description=RUN_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_run_options(parser)
    options = parser.parse_args()
    try:
        return int(options.run(options))
    except LclstreamError as error:
        print(f"lclstream: {error}", file=sys.stderr)
        return EXIT_MISCONFIGURED if isinstance(error, InvalidConfigError) else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
