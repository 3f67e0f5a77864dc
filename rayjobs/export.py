"""`deepsched export`: a bundle's network as ONNX for other runtimes, compared with the original before it is kept."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from actuators.errors import BundleError, MissingToolError
from actuators.files import replacing
from actuators.options import Options, Retired
from rayjobs.cli.console import console_out
from rayjobs.cli.main import Verb, run_verb

TOLERANCE = 1e-5
"""Largest accepted difference of an output; float32 sums depend on their order."""


class ExportOptions(Options):
    """Which bundle, to which file."""

    moved: ClassVar = {"format": Retired("the file is always ONNX", default="onnx")}

    bundle: Path
    """Folder of the trained policy."""
    out: Path | None = None
    """The ONNX file (rows of any number of servers in, actions out); policy.onnx beside the bundle when not given."""
    checks: int = Field(100, ge=1)
    """Random inputs on which both networks must agree."""


def run(options: ExportOptions) -> int:
    """Writes the file and prints its largest difference from the original."""
    out = options.out or options.bundle.absolute().parent / "policy.onnx"
    difference = export_onnx(options.bundle, out, options.checks)
    console_out().print(
        f"written: {out}; largest difference over {options.checks} inputs: {difference:.1e}", markup=False
    )
    return 0


def export_onnx(folder: Path, out: Path, checks: int = 100) -> float:
    """Writes the network's act: float32 ``rows [servers, row_size]`` → ``action [groups * servers]``.

    Returns the largest difference from torch over random inputs of 2 to 12 servers.

    Raises:
        BundleError: not a bundle, a policy over ratio vectors, or outputs that differ.
        MissingToolError: onnx or onnxruntime is not installed.
    """
    import torch

    from tuning.policy.bundle import check_bundle, load_bundle
    from tuning.policy.model import learning_net

    bundle = load_bundle(check_bundle(folder))
    runtime = _runtime()
    if bundle.net.ratios:
        raise BundleError("a policy over ratio vectors is for one number of servers", where=str(folder))
    net = learning_net(bundle.net, bundle.problem, bundle.model)
    row_size = bundle.problem.row_size
    rows = torch.zeros((bundle.problem.topology.shape[1], row_size))
    with replacing(out) as temporary:
        torch.onnx.export(
            _Act(net).eval(), (rows,), temporary, input_names=["rows"], output_names=["action"],
            dynamic_shapes=({0: torch.export.Dim("servers", min=2, max=10_000)},), external_data=False, verbose=False,
        )  # fmt: skip
        session = runtime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        difference = _difference(net, session, row_size, checks)
        if not difference <= TOLERANCE:
            raise BundleError(f"the exported network differs by {difference:.1e}", where=str(out))
    return difference


def _Act(net: Any) -> Any:  # noqa: N802 - makes a module of a class that needs torch
    """Only what acts: the network without its value."""
    from torch import nn

    class Act(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, rows: Any) -> Any:
            return self.net(rows)[0]

    return Act()


def _difference(net: Any, session: Any, row_size: int, checks: int) -> float:
    import torch

    generator = np.random.default_rng(0)
    largest = 0.0
    for _ in range(checks):
        servers = int(generator.integers(2, 13))
        rows = generator.uniform(-10, 10, (servers, row_size)).astype(np.float32)
        with torch.inference_mode():
            wanted = net(torch.from_numpy(rows))[0].numpy()
        exported = session.run(["action"], {"rows": rows})[0]
        largest = max(largest, float(np.abs(exported - wanted).max()))
    return largest


def _runtime() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # type: ignore[import-untyped]
        import onnxscript  # noqa: F401
    except ImportError as error:
        remedy = "pip install onnx onnxscript onnxruntime"
        raise MissingToolError(f"{error.name} is not installed", where="export", remedy=remedy) from error
    return onnxruntime


VERB = Verb(
    "export", "deepsched export runs/demo/bundle --out policy.onnx", ExportOptions, run, ("bundle",), shares=True
)

if __name__ == "__main__":
    sys.exit(run_verb(VERB))
