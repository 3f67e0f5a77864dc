"""YAML as people have it: one line with the place, never a traceback, never much time or memory."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from actuators.errors import ConfigError
from actuators.yaml_files import parse_yaml, read_mapping

LAUGHS = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
REFUSED = {
    "duration_s: {{ duration }}": "line 1: a key is not a text; is it a template that was not filled in?",
    "a: 1\n{{ b }}: 2": "line 2: a key is not a text",
    "? [a]\n: 1": "line 1: a key is not a text",
    "seed: {% if x %} 1": "line 1: ",
    "a: 1\nb: 2\na: 3": "'a' is given twice, in line 1 and in line 3",
    "a: {b: 1,\n  b: 2}": "'b' is given twice, in line 1 and in line 2",
    "- {a: 1, a: 2}": "'a' is given twice, in line 1 and in line 1",
    "1: 2": "line 1: the key 1 is not a text; put it in quotes",
    "on: 2": "line 1: the key on is not a text",
    "null: 2": "line 1: the key null is not a text",
    "a: &a [*a]": "line 1: a value that holds itself",
    "a: &a {<<: *a}": "line 1: a value that holds itself",
    LAUGHS: "more than 100000 values, repeated ones included",
    "[" * 5000: "more than 100 levels",
    "a: " + "[" * 150 + "]" * 150: "line 1: more than 100 levels",
    "a: !Ref b": "line 1: unknown tag '!Ref'",
    "a: !!python/object/apply:os.system [ls]": "line 1: unknown tag",
    "a: !!set {b, c}": "line 1: unknown tag",
    "a: " + "9" * 5000: "is not a number",
    "a: 1\nb: !!float x": "line 2: 'x' is not a number",
    "a: 1\n\tb: 2": "line 2: ",
    "a: \x00": "special characters are not allowed",
    "a: *b": "line 1: found undefined alias",
    "a: b: c": "line 1: mapping values are not allowed here",
    "a: <<: b": "line 1: ",
    "<<: 3": "line 1: expected a mapping",
    "---\na: 1\n---\nb: 2": "line 3: but found another document",
    "a: 'b": "line 1: found unexpected end of stream",
    "a: !!int ''": "a value that does not fit its tag",
    "a: !!bool x": "a value that does not fit its tag",
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_plain_data_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_yaml(text)
    assert REFUSED[text] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_what_people_write_is_read() -> None:
    text = (
        "x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\nz: {<<: [*x, {c: 4}]}\nday: 2026-02-30\nsteps: [20:50, 0:10, 1:30.5]\n"
    )
    assert parse_yaml(text) == {
        "x": {"a": 1, "b": 2}, "y": {"a": 1, "b": 3}, "z": {"a": 1, "b": 2, "c": 4}, "day": "2026-02-30",
        "steps": ["20:50", "0:10", "1:30.5"],
    }  # fmt: skip
    assert parse_yaml("") is parse_yaml("# nothing") is parse_yaml("~") is None
    assert parse_yaml("{a: on, b: 1e-3, c: 0x10, d: .inf}") == {"a": True, "b": "1e-3", "c": 16, "d": float("inf")}


def test_a_file_of_another_encoding_or_size(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\n")
    assert read_mapping(path, "config file") == {"a": 1}
    for content, said in {
        "a: ü".encode("latin-1"): "it is not UTF-8 text",
        "a: 1".encode("utf-16"): "it is not UTF-8 text",
        b"#" * 2**21: "a config file of more than 1048576 bytes",
        b"- 1": "a config file must be a mapping of names to values",
    }.items():
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=said) as caught:
            read_mapping(path, "config file")
        assert caught.value.where == str(path)
    with pytest.raises(ConfigError, match="more than 1048576 bytes"):
        read_mapping(Path("/dev/zero"), "config file")
    with pytest.raises(IsADirectoryError):
        read_mapping(tmp_path, "config file")


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp")))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
)


@given(PLAIN)
def test_what_yaml_writes_is_read_back(value: object) -> None:
    assert parse_yaml(yaml.safe_dump(value, allow_unicode=True)) == value


@given(st.text(alphabet="ab:-[]{}&*!<,'\"|>#%? \n\t1.~", max_size=40))
def test_any_text_is_a_value_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse_yaml(text)
