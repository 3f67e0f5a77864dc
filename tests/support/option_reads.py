"""Which options the code of a run reads: every read of a field at the place where its value is used.

Not counted: reads by pydantic (validating, dumping), by the command line (parsing, saving), by validators of the option
classes, by conditions of options, and by functions that only announce how long something will take.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FrameType, TracebackType
from typing import Any, Self

from actuators.options import Options, idle_options, is_within
from rayjobs.cli.config import fields_of
from tests.support.paths import ROOT

_PARSING = ("pydantic", "actuators.options", "rayjobs.cli.config", "tests.support.option_reads")
_ANNOUNCING = {"_stages", "stages"}


class OptionReads:
    """Records while it is entered; `options` is the copy to run with.

    An instance that the run makes of these options (`extended`, `changed`, `resolved`, `model_copy`) counts as
    them, and a value that it adds (a seed in `JudgeOptions`) must be read as well.
    """

    def __init__(self, options: Options) -> None:
        self.options = _fresh(options)
        self.read: set[str] = set()
        self._paths: dict[int, tuple[Options, str]] = {}
        self._added: set[str] = set()
        self._handed: set[str] = set()
        self._own = _validators(type(options))
        self._before: list[tuple[type[Options], str, Any]] = []
        self._follow(self.options, "")

    def unread(self) -> list[str]:
        """Options in force, and values added to them, that nothing has read, but for those that were handed over."""
        idle = [each.path for each in idle_options(self.options)]
        in_force = [
            field.path
            for field in fields_of(type(self.options))
            if not any(is_within(field.path, path) for path in [*idle, *self._handed])
        ]
        return sorted({*in_force, *self._added} - self.read)

    def hand_over(self, options: Options, test: str) -> None:
        """These options went to a part that is stubbed here; the test `FILE::NAME` shows that the part reads them."""
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(), f"{test} does not exist"
        _, path = self._paths[id(options)]
        self._handed.add(path.removesuffix("."))

    def follow(self, options: Options, path: str) -> None:
        """These options were made of those at the path by other means, and count as them."""
        self._follow(options, f"{path}." if path else "")

    def __enter__(self) -> Self:
        self._replace(Options, "__getattribute__", self._recording)
        for owner, name in ((Options, "extended"), (Options, "changed"), (Options, "model_copy")):
            self._replace(owner, name, self._following)
        self._replace(type(self.options), "resolved", self._following)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._before:
            owner, name, before = self._before.pop()
            if before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)

    def _replace(self, owner: type[Options], name: str, wrapper: Callable[[Any], Any]) -> None:
        self._before.append((owner, name, vars(owner).get(name)))
        setattr(owner, name, wrapper(getattr(owner, name)))

    def _recording(self, original: Callable[[Options, str], Any]) -> Callable[[Options, str], Any]:
        def read(options: Options, name: str) -> Any:
            value = original(options, name)
            if id(options) in self._paths and name in original(options, "__class__").model_fields:
                frame = sys._getframe(1)  # noqa: SLF001 - documented, for such uses
                if self._counts(frame):
                    self.read.add(self._paths[id(options)][1] + name)
            return value

        return read

    def _following(self, original: Callable[..., Options]) -> Callable[..., Options]:
        def make(options: Options, *arguments: Any, **more: Any) -> Options:
            made = original(options, *arguments, **more)
            if id(options) in self._paths:
                prefix = self._paths[id(options)][1]
                self._follow(made, prefix)
                self._added |= {prefix + name for name in more.keys() & type(made).model_fields.keys()}
            return made

        return make

    def _counts(self, frame: FrameType) -> bool:
        module = frame.f_globals.get("__name__", "")
        own = frame.f_code in self._own or frame.f_code.co_name in _ANNOUNCING
        return not own and not any(module == name or module.startswith(f"{name}.") for name in _PARSING)

    def _follow(self, options: Options, prefix: str) -> None:
        self._paths.setdefault(id(options), (options, prefix))
        for name in type(options).model_fields:
            value = vars(options)[name]
            if isinstance(value, Options):
                self._follow(value, f"{prefix}{name}.")


def _fresh(options: Options) -> Any:
    """A copy that shares no nested options with a class's defaults or within itself."""
    values = {
        name: _fresh(value) if isinstance(value, Options) else value
        for name, value in ((name, getattr(options, name)) for name in type(options).model_fields)
    }
    copy = type(options)(**values)
    copy.model_fields_set.intersection_update(options.model_fields_set)
    return copy


def _validators(kind: type[Options]) -> set[CodeType]:
    """The code of all validators of the class and of the classes nested in it, and of its conditions."""
    classes = {kind, *(type(default) for default in _defaults(kind))}
    found: set[CodeType] = set()
    for each in classes:
        for decorators in (
            each.__pydantic_decorators__.model_validators,
            each.__pydantic_decorators__.field_validators,
        ):
            found |= {inspect.unwrap(getattr(one.func, "__func__", one.func)).__code__ for one in decorators.values()}
    return found


def _defaults(kind: type[Options]) -> Iterator[Options]:
    for info in kind.model_fields.values():
        default = info.get_default(call_default_factory=True)
        if isinstance(default, Options):
            yield default
            yield from _defaults(type(default))
