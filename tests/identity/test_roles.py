"""Owners, administrators and groups."""

import pytest

from lclstream.core.errors import InvalidConfigError, NotAuthorizedError
from lclstream.core.models import parse
from lclstream.identity.caller import Caller
from lclstream.identity.roles import SiteRoles

ROLES = parse(
    SiteRoles, {"admins": ["cn:transfers"], "groups": {"mfx": ["uid:mona", "uid:leo"]}}, "roles"
)


@pytest.mark.parametrize(
    ("name", "owner", "allowed"),
    [
        ("uid:mona", "uid:mona", True),
        ("uid:mona", "uid:leo", False),
        ("cn:transfers", "uid:leo", True),
        ("uid:transfers", "uid:leo", False),
        ("uid:leo", "group:mfx", True),
        ("uid:eve", "group:mfx", False),
        ("uid:leo", "group:cxi", False),
        ("cn:mona", "uid:mona", False),
    ],
)
def test_may(name: str, owner: str, allowed: bool) -> None:
    assert ROLES.may(Caller(name), owner) is allowed


def test_require_names_who_and_what() -> None:
    with pytest.raises(NotAuthorizedError, match=r"^uid:eve may not access transfer t-1$"):
        ROLES.require(Caller("uid:eve"), "uid:mona", "transfer t-1")


def test_admin_without_a_prefix_is_a_mistake() -> None:
    with pytest.raises(InvalidConfigError, match="admins"):
        parse(SiteRoles, {"admins": ["mona"]}, "roles")


@pytest.mark.parametrize(
    ("name", "job"),
    [
        ("cn:job:t-1:producer", ("t-1", "producer")),
        ("cn:job:a:b:buffer", ("a:b", "buffer")),
        ("cn:job:", None),
        ("cn:job:t-1", None),
        ("uid:job:t-1:buffer", None),
    ],
)
def test_job_of_a_caller(name: str, job: tuple[str, str] | None) -> None:
    assert Caller(name).job == job
