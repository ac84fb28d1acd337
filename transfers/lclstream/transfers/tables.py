"""The tables of the service's database, and how it is opened."""

import os
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Engine,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
)
from sqlalchemy.engine import make_url

metadata = MetaData()

service = Table("service", metadata, Column("instance", String(40), primary_key=True))

transfers = Table(
    "transfers",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("owner", String(200), nullable=False),
    Column("idempotency_key", String(500)),
    Column("created", Float, nullable=False),
    Column("is_over", Boolean, nullable=False, index=True),
    Column("request", Text, nullable=False),
    Column("state", Text, nullable=False),
    UniqueConstraint("owner", "idempotency_key"),
    # An id is never given twice, not even after the newest row was deleted.
    sqlite_autoincrement=True,
)
starts = Table(
    "starts",
    metadata,
    Column("transfer", Integer, primary_key=True),
    Column("role", String(20), primary_key=True),
    Column("name", String(100), primary_key=True),
    Column("body", Text, nullable=False),
)
history = Table(
    "history",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("transfer", Integer, nullable=False, index=True),
    Column("time", Float, nullable=False),
    Column("version", Integer, nullable=False),
    Column("phase", String(20), nullable=False),
    Column("cause", Text, nullable=False),
)
log = Table(
    "log",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("transfer", Integer, nullable=False, index=True),
    Column("time", Float, nullable=False),
    Column("role", String(20), nullable=False),
    Column("state", String(20), nullable=False),
    Column("info", Text, nullable=False),
    Column("jobndx", Integer, nullable=False),
)
actions = Table(
    "actions",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("transfer", Integer, nullable=False, index=True),
    Column("kind", String(20), nullable=False),
    Column("key", String(200), nullable=False),
    Column("is_done", Boolean, nullable=False, index=True),
)
reports = Table(
    "reports",
    metadata,
    Column("transfer", Integer, primary_key=True),
    Column("hop", String(20), primary_key=True),
    Column("peer", String(200), primary_key=True),
    Column("body", Text, nullable=False),
)
jobs = Table(
    "jobs",
    metadata,
    Column("transfer", Integer, primary_key=True),
    Column("key", String(200), primary_key=True),
    Column("jobid", String(50), nullable=False, index=True),
)


def open_database(database: str) -> Engine:
    """Open a database by path or URL and make the tables that it lacks."""
    if "://" not in database:
        path = Path(database)
        # Made before SQLite makes it, so that its mode is right from the start.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        database = f"sqlite:///{path}"
    engine = create_engine(database)
    if make_url(database).get_backend_name() == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
    metadata.create_all(engine)
    return engine


def _set_up_sqlite(connection: Any, record: object) -> None:
    for setting in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {setting}")
