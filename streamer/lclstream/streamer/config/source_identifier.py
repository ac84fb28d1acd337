"""The text of `source_identifier`: comma-separated `key=value` parts, or plain paths."""

PSANA2_TOKENS = ("exp", "run", "files", "dir", "drp", "max_events", "live", "ffb", "shmem")


def identifier_tokens(identifier: str) -> list[tuple[str, str]]:
    """Return the parts of a psana2 source string as (key, value); a bare word has value ``."""
    parts = [part.strip() for part in identifier.split(",") if part.strip()]
    return [
        (key.strip(), value.strip()) for key, _, value in (part.partition("=") for part in parts)
    ]


def identifier_files(identifier: str) -> list[str]:
    """Return the paths that `a.h5,b.h5`, `files=a.h5,files=b.h5` or a mix of both names."""
    parts = [part.strip() for part in identifier.split(",")]
    return [path for path in (part.removeprefix("files=").strip() for part in parts) if path]
