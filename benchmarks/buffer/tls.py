"""TLS on both sides of the buffer beside two OpenSSL ends that talk to each other.

A relay decrypts and encrypts everything once more. Where producer, relay and consumer share few
processors the ratio of throughputs is bound by them, so processor time per GB stands beside it:
two ends that talk directly encrypt and decrypt once, as the relay does.
"""

import datetime
import ipaddress
from pathlib import Path

from benchmarks.buffer.cases import FAST, MIB, fast, quick_ends
from benchmarks.buffer.cells import Case, Load, Plan, measure
from benchmarks.buffer.rows import (
    CPU_PER_GB,
    ENDS_CPU_PER_GB,
    PEAK_RSS,
    THROUGHPUT,
    Goal,
    Row,
    compared,
    plain,
    row,
)
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

DIRECT = "OpenSSL direct"
LIFE = datetime.timedelta(days=1)


def tls(plan: Plan) -> list[Row]:
    """Messages of 1 MiB, TLS 1.3 with certificates on both sides."""
    name = "TLS, 1 MiB, 1 -> 1"
    folder = make_credentials(plan.folder / "credentials")
    secure = quick_ends(plan, "sp", "--tls", str(folder))
    load = Load(size_bytes=MIB)
    relay = fast("--tls", str(folder))
    outcomes = measure(
        [
            Case(name=DIRECT, load=load, ends=secure),
            Case(name=FAST, load=load, relay=relay, ends=secure),
        ],
        plan,
    )
    relayed, direct = outcomes[FAST], outcomes[DIRECT]
    return [
        compared(name, outcomes, THROUGHPUT, FAST, DIRECT, Goal("ratio", ">=", 0.8)),
        row(
            f"{name}: {FAST}: relay CPU against CPU of the ends of {DIRECT}",
            "s/GB",
            [] if relayed.broken else [sample.cpu_s_per_gb for sample in relayed.samples],
            baselines=[sample.ends_cpu_s_per_gb for sample in direct.samples],
            peer=DIRECT,
            note=relayed.broken,
        ),
        *plain(name, outcomes, (THROUGHPUT, CPU_PER_GB, ENDS_CPU_PER_GB, PEAK_RSS)),
    ]


def make_credentials(folder: Path) -> Path:
    """Return a folder with a certificate for this machine, its key, and who signed it."""
    folder.mkdir(exist_ok=True)
    authority_key, key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    authority = _certificate("authority", authority_key, "authority", authority_key, is_ca=True)
    certificate = _certificate("127.0.0.1", key, "authority", authority_key, is_ca=False)
    (folder / "ca.crt").write_bytes(authority.public_bytes(Encoding.PEM))
    (folder / "id.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "id.key").unlink(missing_ok=True)
    (folder / "id.key").touch(0o600)
    (folder / "id.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return folder


def _certificate(
    subject: str, key: Ed25519PrivateKey, issuer: str, signer: Ed25519PrivateKey, *, is_ca: bool
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - LIFE)
        .not_valid_after(now + LIFE)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(signer, None)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
