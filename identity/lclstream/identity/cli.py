"""The verbs of `lclstream identity`."""

import argparse
import sys
import textwrap
from pathlib import Path

CommandGroup = argparse._SubParsersAction  # noqa: SLF001 - argparse gives it no public name

EXAMPLE = """example: an authority, a service and a user that trust each other
  lclstream identity init authority --name 'Our Site'
  lclstream identity issue-service authority services/transfers --name transfers \\
      --host 127.0.0.1 --host dtn.example.org
  lclstream identity issue-user authority users/mona --name 'Mona Lisa' --uid mona
  lclstream identity show users/mona
"""


def add_commands(commands: "CommandGroup[argparse.ArgumentParser]") -> None:
    """Add `identity` with its verbs."""
    parser = commands.add_parser(
        "identity",
        help="make keys and certificates for services and people",
        description=textwrap.fill(
            "Make, show and revoke the certificates that say who is who. An authority is "
            "a folder with a signing key; every service and person gets a folder of its own with a "
            "key, a certificate, and the authorities that they trust."
        ),
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_init(verbs)
    _add_issue_service(verbs)
    _add_issue_user(verbs)
    _add_show(verbs)
    _add_revoke(verbs)


def _add_init(verbs: "CommandGroup[argparse.ArgumentParser]") -> None:
    verb = verbs.add_parser(
        "init",
        help="make an authority",
        description="Make an authority: a folder with a signing key and certificate, and an "
        "identity of its own. Whoever can read CA.key can be everybody: keep it safe.",
    )
    verb.add_argument("folder", type=Path, help="folder to make; must not hold an authority")
    verb.add_argument("--name", required=True, help="name of the authority, e.g. 'Our Site'")
    verb.add_argument("--host", action="append", default=[], help="name or address it serves on")
    verb.add_argument("--days", type=float, default=5 * 365, help="validity (default: %(default)s)")
    verb.add_argument(
        "--key-type",
        choices=["ed25519", "secp256r1", "secp384r1"],
        default="ed25519",
        help="kind of all keys; secp256r1 suits peers without Ed25519 (default: %(default)s)",
    )
    verb.set_defaults(run=_init)


def _add_issue_service(verbs: "CommandGroup[argparse.ArgumentParser]") -> None:
    verb = verbs.add_parser(
        "issue-service",
        help="make the identity of a service",
        description="Make a folder with key and certificate of a service, for example "
        "`transfers` or `jobs`. It may be server and client.",
    )
    _add_common(verb, "name of the service; others see it as cn:NAME")
    verb.add_argument(
        "--host",
        action="append",
        required=True,
        help="host name or address under which clients reach it; may be repeated",
    )
    verb.set_defaults(run=_issue_service)


def _add_issue_user(verbs: "CommandGroup[argparse.ArgumentParser]") -> None:
    verb = verbs.add_parser(
        "issue-user",
        help="make the identity of a person",
        description="Make a folder with key and certificate of a person. It can only be used "
        "by clients, never to pretend to be a server.",
    )
    _add_common(verb, "full name of the person")
    verb.add_argument("--uid", required=True, help="login; services see the person as uid:UID")
    verb.add_argument("--email", help="e-mail address to put into the certificate")
    verb.add_argument("--domain", help="domain of the person, e.g. example.org")
    verb.set_defaults(run=_issue_user)


def _add_common(verb: argparse.ArgumentParser, name_help: str) -> None:
    verb.add_argument("authority", type=Path, help="folder of the authority that signs")
    verb.add_argument("folder", type=Path, help="folder to make for the new identity")
    verb.add_argument("--name", required=True, help=name_help)
    verb.add_argument("--days", type=float, default=365, help="validity (default: %(default)s)")


def _add_show(verbs: "CommandGroup[argparse.ArgumentParser]") -> None:
    verb = verbs.add_parser(
        "show",
        help="print what a folder's certificates say",
        description="Print name, serial number, validity and use of the certificates in an "
        "identity folder or an authority's folder, as JSON.",
    )
    verb.add_argument("folder", type=Path, help="identity folder")
    verb.set_defaults(run=_show)


def _add_revoke(verbs: "CommandGroup[argparse.ArgumentParser]") -> None:
    verb = verbs.add_parser(
        "revoke",
        help="make services refuse a certificate from now on",
        description="Write a certificate into the authority's revoked.crl, and copy the list "
        "into the folders of services, which obey it without a restart.",
    )
    verb.add_argument("authority", type=Path, help="folder of the authority that signed it")
    verb.add_argument("serial", help="serial number in hexadecimal, as printed by show")
    verb.add_argument(
        "--publish", type=Path, action="append", default=[], help="folder of a service; repeatable"
    )
    verb.set_defaults(run=_revoke)


def _init(options: argparse.Namespace) -> int:
    from lclstream.identity.authority import Authority
    from lclstream.identity.keys import KeyType

    Authority.create(
        options.folder,
        options.name,
        hosts=options.host,
        days=options.days,
        key_type=KeyType(options.key_type),
    )
    return _show(options)


def _issue_service(options: argparse.Namespace) -> int:
    from lclstream.identity.authority import Authority

    authority = Authority.load(options.authority)
    authority.issue_service(options.folder, options.name, options.host, days=options.days)
    return _show(options)


def _issue_user(options: argparse.Namespace) -> int:
    from lclstream.identity.authority import Authority

    Authority.load(options.authority).issue_user(
        options.folder,
        options.name,
        options.uid,
        options.email,
        domain=options.domain,
        days=options.days,
    )
    return _show(options)


def _show(options: argparse.Namespace) -> int:
    import json

    from lclstream.identity.describe import describe_folder

    sys.stdout.write(json.dumps(describe_folder(options.folder), indent=2) + "\n")
    return 0


def _revoke(options: argparse.Namespace) -> int:
    from lclstream.core.errors import RequestError
    from lclstream.identity.authority import Authority

    try:
        serial = int(options.serial, 16)
    except ValueError:
        raise RequestError(f"expected a hexadecimal number, got {options.serial!r}") from None
    authority = Authority.load(options.authority)
    written = [authority.revoke(serial)]
    for folder in options.publish:
        authority.publish(folder)
        written.append(folder / "revoked.crl")
    sys.stdout.writelines(f"{path}\n" for path in written)
    return 0
