"""What a controller needs, opened from its options: the NGINX, the bundle, and whom to ask."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from actuators.errors import ConfigError
from rayjobs.advisers import ServeAdviser, http_post
from rayjobs.steer_site import Site, embedded_site, foreign_site
from tuning.advice import Advises
from tuning.adviser import Adviser
from tuning.bundle import load_bundle
from tuning.limiting import down_in
from tuning.trust import check_bundle

if TYPE_CHECKING:
    from rayjobs.steer import SteerOptions

DEADLINE_SHARE = 0.1
"""Part of the control interval in which Serve must have answered."""


@contextlib.contextmanager
def open_site(options: SteerOptions, model: Adviser) -> Iterator[Site]:
    """The NGINX that the options name, or an embedded testbed. Raises ConfigError for options that do not fit."""
    topology = model.topology
    if options.nginx_conf is None and not options.control_url:
        if options.status_url:
            remedy = "give --nginx-conf, or --control-url for weights in memory"
            raise ConfigError("--status-url without a way to set weights", where="steer", remedy=remedy)
        duration_s = 60 + (options.duration_s or 24 * 3600)
        work_dir = options.folder.absolute() / "testbed"
        with embedded_site(options.live, options.scenario, work_dir, options.seed, duration_s) as site:
            yield site
        return
    status_url = options.status_url or options.control_url.replace("/control", "/status")
    if not status_url:
        raise ConfigError("no statistics", where="steer", remedy="say where vts is served: --status-url")
    actuator = options.reload
    if options.nginx_conf is not None:
        names = tuple(group.name for group in topology.groups)
        foreign = actuator.reload.model_copy(
            update={"config": options.nginx_conf, "status_url": status_url, "groups": names}
        )
        actuator = actuator.model_copy(update={"reload": foreign, "control_url": ""})
    else:
        actuator = actuator.model_copy(update={"control_url": options.control_url, "token_file": options.token_file})
    with foreign_site(topology, actuator, status_url, options.reading) as site:
        yield site


def ask_serve(options: SteerOptions, site: Site, own: Adviser, stack: contextlib.ExitStack) -> Advises:
    """Serve when there is one to ask, in front of the own copy of the bundle. Raises ConfigError."""
    deadline_s = DEADLINE_SHARE * options.interval_s
    if options.serve_app:
        from rayjobs.serve_handle import handle_post

        post = handle_post(options.serve_app, 10 * deadline_s)
    elif options.serve_url:
        token = options.serve_token_file.read_text().strip() if options.serve_token_file else ""
        post = http_post(options.serve_url, token, 10 * deadline_s)
    else:
        return own
    asked = ServeAdviser(post, own, site.topology, deadline_s)
    stack.callback(asked.close)
    return asked


def load_adviser(folder: Path, site: Site | None = None, workers: float = 1.0) -> Adviser:
    """A bundle after every check, for the site's servers. Raises BundleError, or ConfigError when it does not fit."""
    check_bundle(folder)
    adviser = Adviser(load_bundle(folder, site.topology if site else None), workers)
    if site is not None and adviser.bundle.problem.options.action.estimator:
        _check_takes_times(site, folder)
    return adviser


def _check_takes_times(site: Site, folder: Path) -> None:
    if site.method() is None:
        raise ConfigError(
            "the bundle sets service times, for which NGINX must balance in memory", where=str(folder),
            remedy="include our snippet (deepsched weights snippet) and give its --control-url",
        )  # fmt: skip
    if down_in(site.control()).any():
        raise ConfigError(
            "a server is out of rotation, which service times cannot say", where=str(folder),
            remedy="put it back, or take it out of the configuration",
        )  # fmt: skip
