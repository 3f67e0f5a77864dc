"""Which extra of pyproject.toml brings a package, for installations that lack it. Imports nothing heavy."""

from __future__ import annotations

import importlib.util

from actuators.errors import MissingToolError

MODULES: dict[str, dict[str, str]] = {
    "serve": {"fastapi": "fastapi", "starlette": "fastapi", "uvicorn": "uvicorn"},
    "train": {
        "torch": "torch", "ray": "ray", "gymnasium": "gymnasium", "sklearn": "scikit-learn", "numba": "numba",
        "pandas": "pandas", "pyarrow": "pyarrow", "plotly": "plotly", "jinja2": "jinja2",
        "tensorboard": "tensorboard", "uvloop": "uvloop", "httptools": "httptools", "hdrh": "hdrhistogram",
        "optuna": "optuna", "PIL": "pillow",
    },
}  # fmt: skip
"""Extra → module → the package that holds it."""


def missing_extra(error: ModuleNotFoundError) -> MissingToolError | None:
    """What to install, when the missing module is one that this installation may lack; None for a bug."""
    module = (error.name or "").partition(".")[0]
    for extra, modules in MODULES.items():
        if module in modules and importlib.util.find_spec(module) is None:
            remedy = f"pip install 'deep-scheduling[{extra}]', or in a checkout: make setup"
            return MissingToolError(f"{modules[module]} is not installed", where="small installation", remedy=remedy)
    return None
