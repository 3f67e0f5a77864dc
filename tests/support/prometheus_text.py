"""Counters and histograms of a Prometheus page, to compare two scrapes."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]
"""Name and labels → value."""


def series(text: str) -> Series:
    """What may not go down."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if family.type in ("counter", "histogram") and not sample.name.endswith("_created")
    }


def total(found: Series, name: str) -> float:
    """Sum over all labels."""
    return sum(value for (key, _), value in found.items() if key == name)
