"""The verbs of `deepsched`: a table, so that neither help nor a mistyped verb imports one of them."""

from __future__ import annotations

from collections.abc import Iterator

from actuators.errors import ConfigError, closest

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("rayjobs.demo", "run the end-to-end demo: observe, learn and judge on a local NGINX"),
    "doctor": ("rayjobs.doctor", "check the requirements of this machine, or of the NGINX at --status-url"),
    "observe": ("rayjobs.observe", "watch a testbed; derive deadlines and fit the Gaussian mixture"),
    "encoder": ("rayjobs.encoder", "check, recalibrate or roll back the state encoder of a bundle"),
    "train": ("rayjobs.train", "train a policy, judge it and export its bundle"),
    "sweep": ("rayjobs.sweep", "search settings in parallel trials, confirm the best on live testbeds"),
    "evaluate": ("rayjobs.evaluate", "compare policies side by side: bundles, heuristics, NGINX, oracles, HAProxy"),
    "compare": ("rayjobs.compare", "show the evaluations of several runs side by side"),
    "reproduce": ("rayjobs.reproduce", "re-run a saved run and check that the results match"),
    "contract": ("rayjobs.contract.__main__", "check what every proxy should do: yours, or all that are installed"),
    "benchmark": ("rayjobs.benchmark.__main__", "score rules and bundles on fixed scenarios, seeds and budgets"),
    "fetch": ("rayjobs.fetch.__main__", "copy a submitted job's results from the cluster to this machine"),
    "bench": ("rayjobs.bench.__main__", "run benchmarks against their bars and write runs/bench/NAME.json"),
    "onboard": ("rayjobs.onboard.__main__", "watch your NGINX, predict the gain, write a bundle that can steer it"),
    "steer": ("rayjobs.steer", "steer a live NGINX with a bundle, guarded and recorded"),
    "serve": ("rayjobs.serve.__main__", "serve a bundle over HTTP: weights, live page, metrics"),
    "export": ("rayjobs.export", "write a bundle's network as ONNX, checked against the original"),
    "weights": ("rayjobs.weights", "read, set, explore or suggest the weights of an NGINX"),
    "admission": ("rayjobs.admission", "limit the requests in flight of an NGINX, by group and lateness"),
    "holding": ("rayjobs.holding", "hold requests in NGINX until a server has room, by deadline (late binding)"),
    "collect": ("rayjobs.collect", "record NGINX statistics as JSON lines, optionally under load"),
    "calibrate": ("rayjobs.calibrate", "fit the simulator to snapshots of a live system, with confidence intervals"),
    "load": ("rayjobs.load", "send a load plan and report every request from its intended send time"),
    "service": ("rayjobs.service", "run the stand-in social network until Ctrl-C"),
    "simulate": ("rayjobs.simulate", "compare balancing rules on a simulated scenario"),
    "scenarios": ("rayjobs.scenarios", "list the scenarios, or show one over time"),
    "park": ("rayjobs.park", "run Park's load balancing task: a learned scorer compared with four heuristics"),
    "testbeds": ("rayjobs.testbeds", "list the testbeds and controllers that run on this machine or cluster"),
    "dashboards": ("rayjobs.dashboards.__main__", "write Grafana dashboards, Prometheus' configuration and alerts"),
}
"""Verb → (the module that holds it, one line for `deepsched --help`), in the order of the help text."""

SUBCOMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "encoder": {
        "check": ("rayjobs.encoder:CHECK", "check the encoder against new snapshots; exit 3 when it does not fit"),
        "recalibrate": ("rayjobs.encoder:RECALIBRATE", "refit it, prove it and swap it in; exit 4 when not proven"),
        "rollback": ("rayjobs.encoder:ROLLBACK", "restore the encoder from before the last recalibration"),
    },
    "steer": {
        "run": ("rayjobs.steer.run:RUN", "steer an NGINX in shadow, canary or active mode until stopped"),
        "mode": ("rayjobs.steer.orders:MODE", "switch the running controller to shadow, canary or active"),
        "status": ("rayjobs.steer.status:STATUS", "show mode, weights in force, guards, alarms and the last changes"),
        "pause": ("rayjobs.steer.orders:PAUSE", "keep the weights as they are until `resume`"),
        "resume": ("rayjobs.steer.orders:RESUME", "end a pause or a revert"),
        "revert": (
            "rayjobs.steer.orders:REVERT",
            "restore the first weights until `resume`",
        ),
        "swap": ("rayjobs.steer.orders:SWAP", "change the bundle of the running controller"),
        "replay": ("rayjobs.steer.replay:REPLAY", "decide each record of an audit log again; exit 1 on a difference"),
        "recalibrate": (
            "rayjobs.steer.replay:RECALIBRATE",
            "refit a bundle's encoder to the audit log",
        ),
        "watchdog": ("rayjobs.steer.watchdog:WATCHDOG", "restore the first weights when the controller has failed"),
        "units": ("rayjobs.steer.units:UNITS", "write systemd units for a controller and its watchdog"),
    },
    "weights": {
        "get": ("rayjobs.weights:GET", "print the weights in force, a line per group and server"),
        "set": ("rayjobs.weights:SET", "change weights, or take servers out of rotation"),
        "explore": ("rayjobs.weights:EXPLORE", "apply all distinct weight ratios in turn, then restore the weights"),
        "suggest": ("rayjobs.weights:SUGGEST", "suggest weights for an NGINX without Lua and predict their effect"),
        "snippet": ("rayjobs.weights:SNIPPET", "write a configuration for balancing in memory, to include in NGINX"),
    },
    "admission": {
        "show": ("rayjobs.admission.in_force:SHOW", "show the rule in force, its limits, and what was refused"),
        "set": ("rayjobs.admission.in_force:SET", "put a rule in force; at first it only counts what it would refuse"),
        "off": ("rayjobs.admission.in_force:OFF", "let every request enter"),
        "tune": ("rayjobs.admission.tune:VERB", "search the numbers of a rule for a recorded system, simulated"),
    },
    "holding": {
        "show": ("rayjobs.holding.in_force:SHOW", "show whether requests are held, slots, and what was counted"),
        "set": (
            "rayjobs.holding.in_force:SET",
            "set slots and service times; at first it only counts what it would hold",
        ),
        "off": ("rayjobs.holding.in_force:OFF", "stop holding requests"),
        "learn": ("rayjobs.holding.learn:VERB", "learn from an NGINX what requests cost, by arguments and body"),
        "tune": ("rayjobs.holding.tune:VERB", "search order, θ, slots, refusing for a recorded system, simulated"),
    },
    "scenarios": {
        "list": ("rayjobs.scenarios:LIST", "list the scenarios"),
        "show": ("rayjobs.scenarios:SHOW", "show load and server speeds of one scenario over time"),
    },
}
"""Verb → subcommand → (MODULE:ATTRIBUTE, one line for `deepsched VERB --help`), in the order of the help text."""


def entry(name: str) -> tuple[str, str]:
    """Module and summary of a verb (`train`) or subcommand (`steer run`).

    Raises:
        ConfigError: unknown name; with the closest match.
    """
    verb, _, subcommand = name.partition(" ")
    if verb not in VERBS:
        raise ConfigError(f"unknown verb '{verb}'", remedy=closest(verb, VERBS))
    commands = SUBCOMMANDS.get(verb)
    if commands is None:
        return VERBS[verb]
    if subcommand not in commands:
        raise ConfigError(f"unknown subcommand '{subcommand}'", remedy=closest(subcommand, commands))
    return commands[subcommand]


def verb_names() -> Iterator[str]:
    """Everything that runs: verbs without subcommands, and subcommands as `steer run`."""
    for verb in VERBS:
        yield from (f"{verb} {subcommand}" for subcommand in SUBCOMMANDS[verb]) if verb in SUBCOMMANDS else (verb,)
