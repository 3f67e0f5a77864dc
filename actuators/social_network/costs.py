"""How much work a request of the social network is, where costs depend on the request: a law that was fixed before any
predictor was tried (docs/late-binding.md#request-cost).

A read costs by the posts that it asks for, a post by the users it mentions and its media; the rest of the work is the
service-time distribution's. Relative to all requests of a type as `KINDS` draws them, and as the load engine does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from actuators.contract.request_cost import RequestKind, SeenRequest

NOISE_CV = 0.616
"""Coefficient of variation of the rest: with that of reads, 0.67, all together have about 1."""
SPANS = {2: 0.25, 5: 0.2, 10: 0.2, 20: 0.15, 40: 0.12, 80: 0.08}
"""Posts that a read asks for → share of the reads."""
STARTS = (0, 30, 60, 90)
MENTIONS, URLS, MEDIA = range(1, 7), range(1, 7), range(1, 6)
_READ_BASE, _READ_EACH = 0.445, 0.555
_POST_BASE, _MENTION_EACH, _MEDIUM_EACH = 0.105, 0.05, 0.24
_MEAN_SPAN = sum(span * share for span, share in SPANS.items())
_TEXT_BYTES, _MENTION_BYTES, _URL_BYTES, _MEDIUM_BYTES = 350, 15, 72, 27


def read_work(span: int) -> float:
    """Of a read of so many posts."""
    return _READ_BASE + _READ_EACH * span / _MEAN_SPAN


def post_work(mentions: int, media: int) -> float:
    """Of a post."""
    return _POST_BASE + _MENTION_EACH * mentions + _MEDIUM_EACH * media


def _reads(path: str) -> tuple[RequestKind, ...]:
    return tuple(
        RequestKind(share / len(STARTS), read_work(span), SeenRequest(path, {"start": start, "stop": start + span}))
        for span, share in SPANS.items()
        for start in STARTS
    )


def _posts(path: str) -> tuple[RequestKind, ...]:
    share = 1.0 / (len(MENTIONS) * len(URLS) * len(MEDIA))
    kinds = []
    for mentions in MENTIONS:
        for urls in URLS:
            for media in MEDIA:
                size = _TEXT_BYTES + _MENTION_BYTES * mentions + _URL_BYTES * urls + _MEDIUM_BYTES * media
                kinds.append(RequestKind(share, post_work(mentions, media), SeenRequest(path, {}, size, "POST")))
    return tuple(kinds)


KINDS: Mapping[str, Sequence[RequestKind]] = {
    "compose": _posts("/wrk2-api/post/compose"),
    "home_read": _reads("/wrk2-api/home-timeline/read"),
    "user_read": _reads("/wrk2-api/user-timeline/read"),
}
"""Request type → its kinds; the mean work of each type is 1."""

for _kinds in KINDS.values():
    assert np.isclose(sum(kind.share * kind.work for kind in _kinds), 1.0)
