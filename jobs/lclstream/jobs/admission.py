"""What a job may ask for at a site: checks before a job is made."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from lclstream.core.errors import InvalidConfigError, NotAuthorizedError, NotFoundError
from lclstream.jobs.beneath import Beneath
from lclstream.jobs.models import JobSpec

HOST = re.compile(r"[A-Za-z0-9._:-]+")
DEFAULT_PORTS = {"https": 443, "http": 80}


def check_callback(url: str, allowed: Iterable[str]) -> None:
    """Refuse a callback URL whose host is not on the list.

    Args:
        url: where the callbacks of a job shall go.
        allowed: `host`, `host:port`, `*.domain` (https only), or one of them after `http://`.

    Raises:
        InvalidConfigError: it is not a URL.
        NotAuthorizedError: it leads somewhere else.
    """
    try:
        # Read as the client that will send it does: two readers could see two hosts.
        parts = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise InvalidConfigError(f"callback: {url!r} is not a URL: {error}") from None
    host = parts.raw_host.decode("ascii")
    if parts.scheme not in DEFAULT_PORTS or not HOST.fullmatch(host) or parts.userinfo:
        raise InvalidConfigError(f"callback: {url!r} is not a URL that begins with https://HOST")
    rules = sorted(allowed)
    port = parts.port or DEFAULT_PORTS[parts.scheme]
    if not any(_fits(rule, parts.scheme, host, port) for rule in rules):
        listed = ", ".join(rules) or "none"
        raise NotAuthorizedError(f"callback: {url!r} is not at an allowed host; allowed: {listed}")


def _fits(rule: str, scheme: str, host: str, port: int) -> bool:
    named, _, rest = rule.rpartition("://")
    if (named or "https") != scheme:
        return False
    try:
        # An IPv6 address has colons of its own, so it must stand in brackets.
        parts = urlsplit(f"//{rest}")
        rule_port = parts.port
    except ValueError:
        return False
    wanted = (parts.hostname or "").lower()
    fits = host.endswith(wanted[1:]) if wanted.startswith("*.") else host == wanted
    return fits and rule_port in {None, port}


def check_roots(roots: Sequence[Path], kept: Mapping[str, Path]) -> None:
    """Refuse roots for the directories of jobs that share a folder with what callers may not see.

    Args:
        roots: folders below which callers may choose.
        kept: folders of the service itself, by what they are.

    Raises:
        InvalidConfigError: names all that overlap.
    """
    problems = [
        f"directories: {str(root)!r} and the {what} {str(folder)!r} overlap, callers would see it"
        for root in roots
        for what, folder in kept.items()
        if _is_below(root, folder) or _is_below(folder, root)
    ]
    if problems:
        raise InvalidConfigError.counted("configuration", problems)


def _is_below(one: Path, other: Path) -> bool:
    return one.resolve().is_relative_to(other.resolve())


def root_of(directory: str, roots: Sequence[Path]) -> tuple[Path, str]:
    """Return the root that a directory lies below, and its name relative to it.

    Raises:
        NotAuthorizedError: it lies below none of them.
    """
    for root in roots:
        # Compared as text: `..` and links are refused when it is opened.
        plain = os.path.normpath(directory)
        if plain == directory.rstrip("/") and Path(plain).is_relative_to(root):
            return root, str(Path(plain).relative_to(root))
    listed = ", ".join(str(root) for root in roots) or "none"
    raise NotAuthorizedError(f"directory {directory!r} is not below an allowed one: {listed}")


def check_directory(directory: str, roots: Sequence[Path]) -> None:
    """Refuse a directory outside the roots, one reached through links, and a missing one.

    Raises:
        NotAuthorizedError: it is not below a root.
        InvalidConfigError: it is not a folder.
    """
    root, name = root_of(directory, roots)
    try:
        with Beneath(root) as files:
            is_folder = files.is_folder(name)
    except NotFoundError:
        is_folder = False
    if not is_folder:
        raise InvalidConfigError(f"directory: {directory!r} is not an existing folder")


def check_spec(spec: JobSpec, callback_hosts: Iterable[str], roots: Sequence[Path]) -> None:
    """Refuse what no job of a remote caller may ask for."""
    if spec.callback is not None:
        check_callback(spec.callback, callback_hosts)
    if spec.directory is not None:
        check_directory(spec.directory, roots)
