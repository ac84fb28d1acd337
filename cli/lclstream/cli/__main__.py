"""`python -m lclstream.cli`: the `lclstream` command of this interpreter."""

import sys

from lclstream.cli.main import main

sys.exit(main())
