"""One floating-point arithmetic for all tests, on every x86-64 machine with AVX2, and a probe that tells another one.

Libraries choose their kernels by the processor: with AVX-512, or on another vendor's processor, sums are added up in
another order, and equal seeds give numbers that differ in the last digits, or trainings that drift apart. The
variables are read when numpy and torch are imported, so `pin` has to come before that.

What no variable chooses: numba compiles without fast-math and fuses no multiplication with an addition, so its results
are those of IEEE 754 on every processor; glibc's exp, log and pow take one path on all processors with FMA.
"""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import Any

PINNED = {
    "OMP_NUM_THREADS": "1",  # two threads halve the sums of a gradient
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "COMPATIBLE",  # its AVX2 path exists on Intel's processors only
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
}


def pin() -> None:
    """Sets the variables for this process and what it starts, where the processor has AVX2 and FMA."""
    if {"avx2", "fma"} <= set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split()):
        os.environ.update(PINNED)
    else:
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def probe() -> dict[str, str]:
    """A digest per library of some of its results; where all are equal, numbers can be compared to the bit."""
    import numpy as np
    import torch

    generator = np.random.default_rng(0)
    values, matrix = generator.uniform(0.1, 9.0, 1000), generator.normal(size=(60, 30))
    single = values.astype(np.float32)
    random_state = torch.get_rng_state()
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(30, 64), torch.nn.Tanh(), torch.nn.Linear(64, 9))
    torch.set_rng_state(random_state)
    rows = torch.from_numpy(np.tile(matrix, (5, 1)).astype(np.float32))
    (layers(rows) ** 2).mean().backward()
    gradients = [parameter.grad.numpy() for parameter in layers.parameters() if parameter.grad is not None]
    sums = values.reshape(10, -1).sum(axis=1)
    return {
        "libm": digest([math.exp(v) * math.log(v) * v**1.3 for v in values.tolist()]),
        "numpy": digest(np.exp(-values), np.log(values), np.exp(-single), np.log(single), sums),
        "blas": digest(matrix @ matrix.T, np.linalg.cholesky(matrix.T @ matrix)),
        "torch": digest(torch.exp(rows).numpy(), layers(rows).detach().numpy(), *gradients),
    }


def digest(*arrays: Any) -> str:
    """Of the arrays' bytes."""
    import numpy as np

    hashed = hashlib.sha256()
    for array in arrays:
        hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()[:16]
