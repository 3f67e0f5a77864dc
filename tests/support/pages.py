"""What the HTML pages hold, read without a browser."""

from __future__ import annotations

import json
import re
from typing import Any

_FIGURE = re.compile(
    r'<div class="figure" id="([^"]*)"[^>]*><script type="application/json">(.*?)</script></div>', re.S
)


def page_figures(page: str) -> list[dict[str, Any]]:
    """Name, traces and layout of every figure, in the order of the page."""
    return [{"name": name, **json.loads(content)} for name, content in _FIGURE.findall(page)]
