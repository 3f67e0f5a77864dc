"""Former name of `rayjobs.serve.ray_app`, kept for one release: deployed YAML files name `rayjobs.serve_ray:build`."""

from rayjobs.serve.ray_app import build

__all__ = ["build"]
