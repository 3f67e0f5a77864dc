"""Base of every option class: frozen, typed, typo-proof; the docstring under a field is its help text."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Options of one part, kept beside the code that obeys them. Units are in the field names.

    `rayjobs.cli.config` fills them from YAML and `--set a.b=c` and turns what pydantic refuses into
    ConfigError with the closest match.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
