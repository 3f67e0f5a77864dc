"""No reader of files and documents ends in a traceback: its seeds and changes of them are read, or refused in a line.

`make fuzz` goes on where this ends.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.support.readers import READERS, attempt

SPLICES = (
    b"{{ x }}", b"1e400", b".inf", b"nan", b"-1", b"null", b"[]", b"{}", b"\x00", b"\xff", b"\"\\ud800\"", b"'", b": ",
    b"9" * 5000, b"[" * 3000, b"&a [*a]", b"*a", b"!!python/name:os.system ", b"\n---\n", b"\t", b"true", b"1" * 40,
)  # fmt: skip


def changed(seed: bytes, count: int, generator: random.Random) -> Iterator[bytes]:
    """The seed with something cut out, doubled or put in, at random places."""
    for _ in range(count):
        data = seed
        for _ in range(generator.randint(1, 3)):
            at = generator.randrange(len(data) + 1)
            until = min(at + generator.choice((0, 1, 1, 4, 30)), len(data))
            piece = generator.choice((b"", b"", data[at:until] * 2, *SPLICES))
            data = data[:at] + piece + data[until:]
        yield data


def attempts(name: str, each: int) -> int:
    """How many seeds and changes of them are read or refused as they should be."""
    reader, generator = READERS[name], random.Random(name)
    tried = 0
    for seed in reader.seeds():
        for data in (seed, *changed(seed, each, generator)):
            attempt(reader, data)
            tried += 1
    return tried


@pytest.mark.parametrize("name", READERS)
def test_what_is_read_is_read_or_refused(name: str) -> None:
    assert attempts(name, 6) >= 7


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_thousand_changes_of_each_seed(name: str) -> None:
    assert attempts(name, 1000) > 1000
