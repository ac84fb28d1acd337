"""The stand-in's page: what reached the logbook, for a visitor of the demonstration."""

import html
from collections.abc import Iterable, Iterator
from typing import Any

from lclstream.elog.models import unescape_name
from lclstream.elog.standin.experiment import Experiment
from lclstream.elog.standin.logbook import Logbook

STYLE = (
    "body{font:15px sans-serif;margin:2em auto;max-width:60em}"
    "table{border-collapse:collapse;margin:.5em 0 1.5em}"
    "td,th{border:1px solid #bbb;padding:.2em .6em;text-align:left;vertical-align:top}"
)


def page(logbook: Logbook) -> str:
    """Return the page; everything that came from outside is escaped."""
    body = "".join(part for each in logbook.experiments.values() for part in _experiment(each))
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>Elog stand-in</title>"
        f"<style>{STYLE}</style></head><body><h1>Elog stand-in</h1>"
        f"{body or '<p>No experiments.</p>'}</body></html>"
    )


def _experiment(experiment: Experiment) -> Iterator[str]:
    yield f"<h2>{html.escape(experiment.name)}</h2>"
    runs = (
        (run["num"], run["type"], run["begin_time"], run["end_time"] or "open", _params(run))
        for run in (each.document() for each in experiment.runs.values())
    )
    yield _table("Runs", ("run", "type", "begin", "end", "parameters"), runs)
    entries = (
        (
            entry["insert_time"],
            entry["author"],
            entry.get("run_num", ""),
            " ".join(entry.get("tags", ())),
            entry["content"],
        )
        for entry in reversed(experiment.entries)
    )
    yield _table("Entries", ("time", "author", "run", "tags", "text"), entries)
    counters = (
        (job, each.get("key", ""), each.get("value", ""))
        for job, listed in experiment.counters.items()
        for each in listed
    )
    yield _table("Counters", ("job", "counter", "value"), counters)


def _params(run: dict[str, Any]) -> str:
    return ", ".join(f"{unescape_name(name)}={value}" for name, value in run["params"].items())


def _table(title: str, heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    if not lines:
        return ""
    head = "".join(f"<th>{each}</th>" for each in heads)
    return f"<h3>{title}</h3><table><tr>{head}</tr>{lines}</table>"


def _cells(row: Iterable[object]) -> str:
    return "".join(f"<td>{html.escape(str(value))}</td>" for value in row)
