"""How Ray Serve runs the served policy: replicas, autoscaling, health; from the options of `deepsched serve`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actuators.errors import ConfigError

if TYPE_CHECKING:
    from rayjobs.serve import ServeOptions

SERVES_TARGET = 2.0
"""Requests at once per replica that Serve itself aims at."""


def check_scale(options: ServeOptions) -> None:
    """Raises ConfigError for numbers that contradict each other."""
    if options.max_replicas is not None and options.max_replicas < options.replicas:
        raise ConfigError(
            f"at most {options.max_replicas} replicas, but at least {options.replicas}", where="--max-replicas",
            remedy=f"give {options.replicas} or more",
        )  # fmt: skip
    if options.batch_size > options.max_ongoing_requests:
        raise ConfigError(
            f"a batch of {options.batch_size}, but a replica takes {options.max_ongoing_requests} requests at once",
            where="--batch-size", remedy="raise --max-ongoing-requests",
        )  # fmt: skip


def deployment(options: ServeOptions) -> dict[str, Any]:
    """Options of the one deployment, as Serve's YAML and `@serve.deployment` take them."""
    scale: dict[str, Any] = {"num_replicas": options.replicas}
    if options.max_replicas is not None:
        target = options.target_ongoing_requests or max(float(options.batch_size), SERVES_TARGET)
        scale = {
            "autoscaling_config": {
                "min_replicas": options.replicas,
                "max_replicas": options.max_replicas,
                "target_ongoing_requests": target,
            }
        }
    return {
        **scale,
        "max_ongoing_requests": options.max_ongoing_requests,
        "health_check_period_s": 2,
        "health_check_timeout_s": 5,
        "graceful_shutdown_timeout_s": 5,
        "ray_actor_options": {"num_cpus": options.cpus},
    }
