"""The ids of `gymnasium.make` and `make_vec`, registered by `import envs` before or after `import gymnasium`.

Importing gymnasium takes longer than `deepsched --help` may, and an NGINX host does not have it: `import envs` does not
import it. Gymnasium looks for no entry points since 1.0.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

GYMNASIUM = "gymnasium"
_BALANCING = "envs.registered.balancing"
IDS = {
    "DeepScheduling/Social-v0": (f"{_BALANCING}:social_env", f"{_BALANCING}:social_vector"),
    "DeepScheduling/Scenario-v0": (f"{_BALANCING}:scenario_env", f"{_BALANCING}:scenario_vector"),
    "DeepScheduling/Calibrated-v0": (f"{_BALANCING}:calibrated_env", f"{_BALANCING}:calibrated_vector"),
    "DeepScheduling/Park-v0": ("envs.registered.park:ParkEnv", None),
}
"""Id → what makes the environment, and what makes many at once."""


def register() -> None:
    """Registers the ids that are not registered."""
    import gymnasium  # noqa: PLC0415 - see above

    for name, (single, many) in IDS.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point=single, vector_entry_point=many)


def register_with_gymnasium() -> None:
    """Registers now when gymnasium is imported already, else as soon as it is."""
    if GYMNASIUM in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport(MetaPathFinder):
    """Finds gymnasium as the other finders do, until it is executed, after which it registers."""

    _asking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != GYMNASIUM or self._asking:
            return None
        self._asking = True
        try:
            spec = find_spec(fullname)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader, self)
        return spec


class _Registering(Loader):
    """The module's own loader, and then `register`."""

    def __init__(self, loader: Loader, finder: _AfterImport) -> None:
        self._loader, self._finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = self._loader
        # A mere look for gymnasium has not removed it.
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        self._loader.exec_module(module)
        register()
