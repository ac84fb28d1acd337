"""Prometheus' text format, which programs that watch services read."""

from collections.abc import Iterable, Iterator, Mapping

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def metric(
    name: str, kind: str, text: str, values: Iterable[tuple[Mapping[str, str], float]]
) -> Iterator[str]:
    """Yield the lines of one metric.

    Args:
        name: of the metric, with its prefix; that of a counter ends in `_total`.
        kind: `counter` or `gauge`.
        text: what it is, in a sentence.
        values: labels and value, of each time series.
    """
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in values:
        shown = ",".join(f'{key}="{escaped(each)}"' for key, each in labels.items())
        yield f"{name}{'{' + shown + '}' if shown else ''} {value}"


def escaped(text: str) -> str:
    """Return a text as it stands in quotes."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
