"""From news about a run to the DAG runs that it asks for; pure."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote

from lclstream.elog.definitions import WorkflowDefinition
from lclstream.elog.history import News
from lclstream.elog.models import Trigger, rfc3339

_FORBIDDEN = re.compile(r"[^A-Za-z0-9_.~+-]")
LONGEST_PART = 40
"""Of each part of an identity, in characters; Airflow keeps 250 for the whole."""
_HASH_DIGITS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DagTrigger:
    """One DAG run that has to exist."""

    dag: str
    dag_run_id: str
    """The identity: the same news always asks for the same id."""
    happened_at: datetime
    max_age_s: float | None
    """The definition's own limit; None when it has none."""
    conf: dict[str, Any] = field(hash=False)


def run_id(news: News, definition: str) -> str:
    """Return `arp:{experiment}:r{run}:{TRIGGER}:{definition}`, with the job's id when MANUAL."""
    parts = [news.experiment, f"r{news.run}", news.fact.trigger.value, definition]
    if news.fact.trigger is Trigger.MANUAL:
        # Each press of the button is a wish of its own.
        parts.append(news.fact.name)
    return ":".join(["arp", *map(safe_part, parts)])


def safe_part(text: str) -> str:
    """Return a text in the characters that Airflow allows; what had to change stays distinct."""
    safe = _FORBIDDEN.sub("_", text)[:LONGEST_PART]
    if safe == text:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{safe}-{digest[:_HASH_DIGITS]}"


def waits_for(definition: WorkflowDefinition, news: News) -> bool:
    """Return whether a definition fires on news; MANUAL is matched by the caller."""
    fact = news.fact
    if definition.trigger is not fact.trigger or fact.trigger is Trigger.MANUAL:
        return False
    if not definition.concerns(news.experiment):
        return False
    if fact.trigger is Trigger.RUN_PARAM_IS_VALUE:
        return (fact.name, fact.value) == (definition.run_param_name, definition.run_param_value)
    # The name of a fact about files is the location; about the run itself it is empty.
    return not fact.name or fact.name == definition.location


def triggers(
    news: News, definitions: Iterable[WorkflowDefinition], counters_url: str | None = None
) -> list[DagTrigger]:
    """Return the DAG runs that news asks for, in the order of the definitions."""
    return [build(news, each, counters_url) for each in definitions if waits_for(each, news)]


def build(
    news: News, definition: WorkflowDefinition, counters_url: str | None = None
) -> DagTrigger:
    """Return the DAG run of one definition.

    Args:
        news: what became true.
        definition: what waits for it, or what a person started.
        counters_url: where the run posts its counters; see `fill`.
    """
    position = news.position
    identity = run_id(news, definition.name)
    conf: dict[str, Any] = {
        "experiment": news.experiment,
        "run": news.run,
        "trigger": news.fact.trigger.value,
        "definition": definition.name,
        "begin_time": rfc3339(news.begin_time) if news.begin_time else None,
        "kafka": {
            "topic": position.topic,
            "partition": position.partition,
            "offset": position.offset,
            "timestamp": rfc3339(position.recorded_at),
        },
        "parameters": definition.parameters,
        "elog_job": news.job.id if news.job else None,
        "counters_url": fill(counters_url, news, identity) if counters_url else None,
    }
    return DagTrigger(
        dag=definition.dag,
        dag_run_id=identity,
        happened_at=news.happened_at,
        max_age_s=definition.max_age_s,
        conf=conf,
    )


def fill(template: str, news: News, identity: str) -> str:
    """Return a URL with `{experiment}`, `{run}` and `{event}` filled in, quoted."""
    return template.format(
        experiment=quote(news.experiment, safe=""),
        run=quote(str(news.run), safe=""),
        event=quote(identity, safe=""),
    )
