"""Who may do what at a site: owners their own things, administrators everything."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from lclstream.core.errors import NotAuthorizedError
from lclstream.core.models import StrictModel

if TYPE_CHECKING:
    from lclstream.identity.caller import Caller

CallerName = Annotated[str, Field(pattern="^(uid|cn):.+$")]


class SiteRoles(StrictModel):
    """The people and services with rights beyond their own things."""

    admins: frozenset[CallerName] = frozenset()
    """Callers such as `uid:mona` or `cn:transfers` that may act on what others own."""
    groups: dict[str, frozenset[CallerName]] = Field(default_factory=dict)
    """Members by group; what belongs to `group:<name>` is open to every member."""

    def may(self, caller: "Caller", owner: str) -> bool:
        """Return whether the caller may read and change what `owner` owns."""
        if caller.name == owner or caller.name in self.admins:
            return True
        kind, _, group = owner.partition(":")
        return kind == "group" and caller.name in self.groups.get(group, frozenset())

    def require(self, caller: "Caller", owner: str, what: str = "this") -> None:
        """Raise `NotAuthorizedError` unless the caller may act on what `owner` owns."""
        if not self.may(caller, owner):
            raise NotAuthorizedError(f"{caller.name} may not access {what}")

    def is_admin(self, caller: "Caller") -> bool:
        """Return whether the caller administers the site."""
        return caller.name in self.admins
