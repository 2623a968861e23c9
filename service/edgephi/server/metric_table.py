"""
Metrics that are read when the page is asked for, as a table: one row a family, with the function that finds its value.

Owns the form of a row and the rule that what is not known has no series. Which rows there are stands in
``server_rows`` and ``device_rows``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

PREFIX = "edgephi_"

Reading = TypeVar("Reading")
Value = float | bool | None
Values = Mapping[tuple[str, ...], Value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """
    One metric, for the documents.

    Attributes:
        name: Full name, with the suffix of a counter and without those of a histogram.
        kind: ``counter``, ``gauge`` or ``histogram``.
        text: What it counts.
        labels: Names of its labels.
    """

    name: str
    kind: str
    text: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row(Generic[Reading]):
    """
    One family.

    Attributes:
        name: Without prefix, and without ``_total`` for a counter.
        text: What it counts, a sentence.
        value: Finds the value in a reading; None where it is not known. With ``labels`` it is a mapping from their
            values to numbers.
        labels: Names of labels beside those that every row has.
        is_counter: Whether it only grows.
    """

    name: str
    text: str
    value: Callable[[Reading], Value | Values]
    labels: tuple[str, ...] = ()
    is_counter: bool = False

    def family(self, common: tuple[str, ...]) -> Family:
        """Return its description, with the labels that every row of its table has."""
        name, kind = (f"{self.name}_total", "counter") if self.is_counter else (self.name, "gauge")
        return Family(name=PREFIX + name, kind=kind, text=self.text, labels=(*self.labels, *common))


class TableCollector(Collector, Generic[Reading]):
    """
    Reports rows from one reading, taken once a page. Lives as long as its registry.

    Args:
        rows: What is reported.
        read: Takes the reading; quick, any thread. None reports nothing.
        labels: Name and value of the labels that every series has.
    """

    def __init__(
        self,
        rows: Sequence[Row[Reading]],
        read: Callable[[], Reading | None],
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self._rows = tuple(rows)
        self._read = read
        self._labels = dict(labels or {})

    def describe(self) -> Iterator[Metric]:
        """Yield every family without a series, so that a registry finds names that are taken."""
        return (self._family(row) for row in self._rows)

    def collect(self) -> Iterator[Metric]:
        """Read once and yield every family, with a series for each value that is known."""
        reading = self._read()
        common = tuple(self._labels.values())
        for row in self._rows:
            family = self._family(row)
            value = None if reading is None else row.value(reading)
            values = value if isinstance(value, Mapping) else {(): value}
            for labels, number in values.items():
                if number is not None:
                    family.add_metric((*labels, *common), float(number))
            yield family

    def _family(self, row: Row[Reading]) -> CounterMetricFamily | GaugeMetricFamily:
        kind = CounterMetricFamily if row.is_counter else GaugeMetricFamily
        return kind(PREFIX + row.name, row.text, labels=(*row.labels, *self._labels))
