"""How NGINX is set up in the studies, for the environments and the rules that are compared with them."""

from __future__ import annotations

from envs.simulator.batch import SimulationOptions

PLAIN = SimulationOptions(retry_post=True)
"""Lost POSTs are sent to another server as well (docs/studies.md#how-the-studies-simulate)."""
SHARED_MEMORY = SimulationOptions(retry_post=True, workers_sharing_memory=2)
"""The two workers of each load balancer also share their counters (S9: 4 contexts)."""
