"""Counts of a replica under Ray Serve: kept by Ray, read back for all replicas (docs/ray-facts.md#metrics).

Each replica counts with `ray.serve.metrics`, and Ray's agent of its node adds them up. A scrape of `/metrics` meets any
one of the replicas, so its own counts would jump between two scrapes; it reads the agents of all nodes instead.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import ray
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString
from ray import serve
from ray.serve.metrics import Counter, Gauge, Histogram

from actuators.errors import ProcessError
from actuators.http_client import http_session
from rayjobs.serve.metric_names import COUNTERS, HISTOGRAMS, NOVELTY, NOVELTY_TEXT, PREFIX
from rayjobs.serve.telemetry import event

READ_TIMEOUT_S = 3.0
"""Longest wait for the agent of a node."""
READ_AT_ONCE = 16
"""Agents that are read at the same time."""
NODE = "node"
"""Label of the counts of one node's replicas: a node that leaves, or does not answer, ends its own series, and no
counter goes down."""
_OF_RAY = f"ray_{PREFIX}"


class RayCounts:
    """Implements `telemetry.Counts` in a replica of Ray Serve.

    Ray's agents learn of a count within Ray's report interval (10 s by default).
    """

    def __init__(self) -> None:
        self._labels = {name: label for name, (_, label) in COUNTERS.items()}
        self._counters = {
            name: Counter(PREFIX + name, text, tag_keys=(label,)) for name, (text, label) in COUNTERS.items()
        }
        self._histograms = {
            name: Histogram(PREFIX + name, text, boundaries=list(bounds)) for name, (text, bounds) in HISTOGRAMS.items()
        }
        self._gauges = {NOVELTY: Gauge(PREFIX + NOVELTY, NOVELTY_TEXT)}
        self._application = serve.get_replica_context().app_name

    def add(self, name: str, label: str) -> None:
        self._counters[name].inc(1.0, {self._labels[name]: label})

    def observe(self, name: str, value: float) -> None:
        self._histograms[name].observe(value, {})

    def set(self, name: str, value: float) -> None:
        self._gauges[name].set(value, {})

    def collect(self) -> Iterable[Metric]:
        """Counts of all replicas, those that have ended too, summed per node.

        Raises ProcessError when no node's agent answers.
        """
        return families(_pages(), self._application)


def families(pages: Mapping[str, str], application: str) -> Iterator[Metric]:
    """Node → text of its agent, as the metrics of one application; without a node there is none.

    The sum of a histogram is what Ray's agent says, made of the middles of buckets (ray 2.60).
    """
    sums, novelty = _sums(pages, application)
    for name, (text, label) in COUNTERS.items():
        counter = CounterMetricFamily(PREFIX + name, text, labels=(label, NODE))
        for (node, sample_name, value), total in sorted(sums.items()):
            if sample_name == f"{name}_total":
                counter.add_metric([value, node], total)
        yield counter
    for name, (text, bounds) in HISTOGRAMS.items():
        histogram = HistogramMetricFamily(PREFIX + name, text, labels=(NODE,))
        limits = [floatToGoString(bound) for bound in (*map(float, bounds), float("inf"))]
        for node in pages:
            if (node, f"{name}_count", "") in sums:
                buckets = [(limit, sums.get((node, f"{name}_bucket", limit), 0.0)) for limit in limits]
                histogram.add_metric([node], buckets, sums[node, f"{name}_sum", ""])
        yield histogram
    if novelty:
        yield GaugeMetricFamily(PREFIX + NOVELTY, NOVELTY_TEXT, value=max(novelty))


def _sums(pages: Mapping[str, str], application: str) -> tuple[dict[tuple[str, str, str], float], list[float]]:
    """Sums over the replicas by node, sample and value of its label; the novelty of each replica."""
    sums: dict[tuple[str, str, str], float] = defaultdict(float)
    novelty: list[float] = []
    for node, page in pages.items():
        for sample in _samples(page, application):
            name = sample.name.removeprefix(_OF_RAY)
            if name == NOVELTY:
                novelty.append(sample.value)
                continue
            label = COUNTERS.get(name.removesuffix("_total"), ("", "le"))[1]
            sums[node, name, sample.labels.get(label, "")] += sample.value
    return sums, novelty


def _samples(page: str, application: str) -> Iterator[Sample]:
    """Our samples of a page, which has hundreds of Ray's own."""
    ours = "\n".join(line for line in page.splitlines() if line.startswith(_OF_RAY)) + "\n"
    for family in text_string_to_metric_families(ours):
        for sample in family.samples:
            if sample.labels.get("application") == application:
                limit = sample.labels.get("le")
                labels = sample.labels if limit is None else {**sample.labels, "le": floatToGoString(float(limit))}
                yield sample._replace(labels=labels)


def _pages() -> dict[str, str]:
    """Node → text of its agent, of those that answer. Raises ProcessError when none does."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    with ThreadPoolExecutor(READ_AT_ONCE) as readers:
        texts = list(readers.map(_page, nodes))
    pages = {node["NodeManagerAddress"]: text for node, text in zip(nodes, texts, strict=True) if text is not None}
    if not pages:
        remedy = "Ray's agents export them; start Ray with its default parts (ray[default])"
        raise ProcessError(f"none of {len(nodes)} nodes exports metrics", where="/metrics", remedy=remedy)
    return pages


def _page(node: Mapping[str, object]) -> str | None:
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    try:
        with http_session(READ_TIMEOUT_S) as session:
            answer = session.get(url)
            answer.raise_for_status()
            return answer.text
    except OSError as error:  # requests.RequestException is one
        event("metrics of a node not read", logging.WARNING, url=url, detail=str(error))
        return None
