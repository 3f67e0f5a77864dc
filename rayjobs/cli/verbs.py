"""The verbs of `deepsched`: a table, so that neither help nor a mistyped verb imports one of them."""

from __future__ import annotations

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("rayjobs.demo", "run the end-to-end demo: observe, learn and judge on a local NGINX"),
    "doctor": ("rayjobs.doctor", "check what this machine has and lacks, with remedies"),
    "observe": ("rayjobs.observe", "watch a testbed: deadlines and the Gaussian mixture"),
    "train": ("rayjobs.train", "train a policy, judge it and export its bundle"),
    "sweep": ("rayjobs.sweep", "search settings in parallel trials, confirm the best on live testbeds"),
    "evaluate": ("rayjobs.evaluate", "compare policies side by side: bundles, heuristics, NGINX, oracles, HAProxy"),
    "compare": ("rayjobs.compare", "show the evaluations of several runs side by side"),
    "reproduce": ("rayjobs.reproduce", "re-run a saved run and check that the results match"),
    "bench": ("rayjobs.bench.__main__", "measure what has a numeric bar and write runs/bench/NAME.json"),
    "steer": ("rayjobs.steer.__main__", "steer a live NGINX with a bundle, guarded and recorded"),
    "serve": ("rayjobs.serve.__main__", "serve a bundle over HTTP: weights, live page, metrics"),
    "export": ("rayjobs.export", "write a bundle's network as ONNX, checked against the original"),
    "weights": ("rayjobs.weights", "read, set or explore the weights of an NGINX, by reload or in memory"),
    "collect": ("rayjobs.collect", "record NGINX statistics as JSON lines, optionally under load"),
    "calibrate": ("rayjobs.calibrate", "fit the simulator to snapshots of a live system, with confidence intervals"),
    "load": ("rayjobs.load", "send a load plan and report every request from its intended send time"),
    "service": ("rayjobs.service", "run the stand-in social network until Ctrl-C"),
    "simulate": ("rayjobs.simulate", "compare balancing rules on a simulated scenario"),
    "scenarios": ("rayjobs.scenarios", "list the scenarios, or show load and speeds of one over time"),
    "park": ("rayjobs.park", "run Park's load balancing task: a learned scorer beside four heuristics"),
    "testbeds": ("rayjobs.testbeds", "list the testbeds that run on this machine or cluster"),
    "dashboards": ("rayjobs.dashboards", "write a Prometheus configuration and a Grafana dashboard"),
}
"""Name → (module that holds its `VERB`, one line for `deepsched --help`), in the order of the help text."""
