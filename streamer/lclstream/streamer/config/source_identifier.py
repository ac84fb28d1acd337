"""The text of `source_identifier`: comma-separated `key=value` parts, or plain paths."""

import re

_RUNS = re.compile(r"[0-9]+(-[0-9]+)?")
PSANA2_TOKENS = ("exp", "run", "files", "dir", "drp", "max_events", "live", "ffb", "shmem")


def identifier_tokens(identifier: str) -> list[tuple[str, str]]:
    """Return the parts of a psana2 source string as (key, value); a bare word has value ``.

    Of `run=5,7,10-12` every number or range is a part `run` by itself.
    """
    tokens: list[tuple[str, str]] = []
    for part in filter(None, (each.strip() for each in identifier.split(","))):
        key, _, value = (each.strip() for each in part.partition("="))
        is_run = bool(tokens) and tokens[-1][0] == "run" and is_runs(part)
        tokens.append(("run", part) if is_run else (key, value))
    return tokens


def is_runs(text: str) -> bool:
    """Return whether a text is the number of a run, or a range such as `10-12`."""
    return bool(_RUNS.fullmatch(text))


def identifier_files(identifier: str) -> list[str]:
    """Return the paths that `a.h5,b.h5`, `files=a.h5,files=b.h5` or a mix of both names."""
    parts = [part.strip() for part in identifier.split(",")]
    return [path for path in (part.removeprefix("files=").strip() for part in parts) if path]
