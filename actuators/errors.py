"""The errors that a user can cause or correct. Each says what happened, where, and what to do.

The command line prints one line and exits with status 2; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from actuators.credentials import without_credentials

_LONGEST = 800


class DeepSchedError(Exception):
    """Base class of all of them. Credentials of URLs are taken out of all texts.

    Args:
        what: what happened, without a full stop.
        where: file, field, URL or process it happened in.
        remedy: what the user can do about it.
        evidence: last log lines or a response excerpt, already cut to a few lines.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "", evidence: str = "") -> None:
        self.what, self.where = without_credentials(_shortened(what)), without_credentials(_shortened(where))
        self.remedy, self.evidence = without_credentials(remedy), without_credentials(evidence)
        super().__init__(self.what, self.where, self.remedy, self.evidence)

    def __str__(self) -> str:
        line = self.what
        if self.where:
            line += f" ({self.where})"
        if self.remedy:
            line += f"; {self.remedy}"
        if self.evidence:
            line += f" [{self.evidence}]"
        return line

    def __reduce__(self) -> tuple[object, ...]:
        # Ray pickles exceptions to pass them between processes; the default __reduce__ drops keyword-only arguments.
        return _rebuild, (type(self), self.what, self.where, self.remedy, self.evidence)


class ConfigError(DeepSchedError):
    """An option, file or value from the user is wrong. A retry cannot help."""


class MissingToolError(DeepSchedError):
    """A program, module or package that is needed is not installed. Install it and retry."""


class ProcessError(DeepSchedError):
    """A child process did not start, died or did not become ready. A restart may help."""


class StatusError(DeepSchedError):
    """NGINX's statistics could not be read or are not vts-shaped. A retry may help."""


class ActuationError(DeepSchedError):
    """A control was not applied; the old one is still in force. A retry may help."""


class LoadError(DeepSchedError):
    """The load engine could not run its plan, or died. A retry may help."""


class ServiceError(DeepSchedError):
    """A stand-in server does not answer as it should. A restart may help."""


class TestbedError(DeepSchedError):
    """A testbed is broken as a whole; close it and build a new one."""


class DataError(DeepSchedError):
    """Recorded data are missing, torn or too few for what was asked. Record more."""


class BundleError(DeepSchedError):
    """A policy bundle is incomplete, or made for another format or topology."""


class ConflictError(DeepSchedError):
    """Another process changed a shared state first; this change was not made. Look at it, then retry."""


class CapacityError(DeepSchedError):
    """The cluster or machine lacks resources that are needed. Add them or use fewer."""


def closest(name: str, candidates: Iterable[str]) -> str:
    """A remedy for a mistyped name: the closest match, or the list of allowed names."""
    names = sorted(candidates)
    match = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean '{match[0]}'?" if match else f"expected one of: {', '.join(names)}"


def _shortened(text: str) -> str:
    """One line, without the middle of what is too long to be read, as a value of a million characters in a file."""
    text = " ".join(text.splitlines())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 4 :]}"


def _rebuild(cls: type[DeepSchedError], what: str, where: str, remedy: str, evidence: str) -> DeepSchedError:
    return cls(what, where=where, remedy=remedy, evidence=evidence)
