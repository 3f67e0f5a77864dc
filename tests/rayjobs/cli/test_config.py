"""Options from files, assignments and flags: precedence, round trip, and refusals in one line."""

from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from actuators.errors import ConfigError
from actuators.options import Options
from rayjobs.cli.config import dump_yaml, load_options


class LoadOptions(Options):
    """Of the load."""

    rate_rps: float = Field(200.0, gt=0)
    """Planned rate."""
    distribution: Literal["exponential", "fixed"] = "exponential"
    """Of the gaps."""
    bounds: tuple[float, float] = (1.0, 2.0)
    """Lower and upper."""


class TestbedOptions(Options):
    """Of the testbed."""

    servers: int = Field(3, ge=1)
    """How many."""
    load: LoadOptions = LoadOptions()
    """Of the load."""


class JobOptions(Options):
    """A job with two levels of nesting."""

    seed: int = 1
    """Seed."""
    interval_s: float = Field(1.0, gt=0)
    """Control interval."""
    out: Path | None = None
    """Folder."""
    methods: tuple[str, ...] = ("equal",)
    """Methods."""
    limits: dict[str, float] = Field({})
    """By name."""
    quick: bool = False
    """Short."""
    testbed: TestbedOptions = TestbedOptions()
    """The testbed."""
    shadow: LoadOptions | None = None
    """A second load."""


def write(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text)
    return path


def refusal(**sources: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_options(JobOptions, **sources)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_when_nothing_is_given() -> None:
    assert load_options(JobOptions) == JobOptions()


def test_flags_win_over_assignments_over_file(tmp_path: Path) -> None:
    file = write(tmp_path, "seed: 2\ninterval_s: 2\ntestbed: {servers: 5, load: {rate_rps: 10}}\n")
    options = load_options(
        JobOptions, file=file, assignments=["seed=3", "interval_s=3", "testbed.load.rate_rps=30"], flags={"seed": "4"}
    )
    assert (options.seed, options.interval_s) == (4, 3.0)
    assert options.testbed == TestbedOptions(servers=5, load=LoadOptions(rate_rps=30))


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("out=/tmp/x", "out", Path("/tmp/x")),
        ("out=none", "out", None),
        ("methods=equal,least_conn", "methods", ("equal", "least_conn")),
        ("methods=[]", "methods", ()),
        ("limits={p99: 1e-3}", "limits", {"p99": 1e-3}),
        ("quick=yes", "quick", True),
        ("shadow={rate_rps: 7}", "shadow", LoadOptions(rate_rps=7)),
        ("shadow.rate_rps=7", "shadow", LoadOptions(rate_rps=7)),
    ],
)
def test_assignments_reach_every_kind_of_value(assignment: str, path: str, value: object) -> None:
    assert getattr(load_options(JobOptions, assignments=[assignment]), path) == value


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("sed=2", "unknown option 'sed' (--set sed=2); did you mean 'seed'?"),
        ("testbed.load.rate_rsp=2", "did you mean 'testbed.load.rate_rps'?"),
        ("rate_rps=2", "did you mean 'testbed.load.rate_rps'?"),
        ("testbed.zzz=2", "expected one of: testbed.load, testbed.servers"),
        ("seed", "'seed' is not an assignment"),
        ("seed=often", "option 'seed' is 'often', must be a valid integer"),
        ("testbed.servers=0", "option 'testbed.servers' is '0', must be greater than or equal to 1"),
        ("testbed.load.distribution=exponental", "did you mean 'exponential'?"),
        ("testbed=3", "option 'testbed' is"),
        ("testbed.load.bounds=1", "option 'testbed.load.bounds.1' is missing"),
    ],
)
def test_a_wrong_assignment_names_the_full_path(assignment: str, said: str) -> None:
    assert said in refusal(assignments=[assignment])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sead: 2", "unknown option 'sead'"),
        ("testbed: {load: {rate: 2}}", "did you mean 'testbed.load.rate_rps'?"),
        ("seed: 1\nseed: 2", "'seed' is given twice, in line 1 and in line 2"),
        ("- 1", "must be a mapping"),
        ("1: 2", "line 1: the key 1 is not a text; put it in quotes"),
        ("seed: [", "not valid YAML"),
        ("interval_s: soon", "option 'interval_s' is 'soon'"),
        ('out: "a\\0b"', "must not contain a NUL character"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    line = refusal(file=write(tmp_path, text))
    assert said in line
    assert "job.yaml" in line


def test_a_missing_file_gets_the_closest_name(tmp_path: Path) -> None:
    write(tmp_path, "")
    assert "did you mean 'job.yaml'?" in refusal(file=tmp_path / "jobs.yaml")
    assert "cannot read the config file" in refusal(file=tmp_path)


def test_an_empty_file_means_defaults(tmp_path: Path) -> None:
    assert load_options(JobOptions, file=write(tmp_path, "# nothing\n")) == JobOptions()


def test_several_problems_are_counted() -> None:
    assert "(and 1 more)" in refusal(assignments=["seed=x", "interval_s=-1"])


@given(
    seed=st.integers(-(10**12), 10**12),
    interval_s=st.floats(1e-3, 1e9),
    out=st.none() | st.sampled_from(["runs", "/tmp/ein ordner/ü", "no", "1e3", "null"]).map(Path),
    methods=st.lists(st.sampled_from(["equal", "on", "off", "1.0", "~", "a: b"])).map(tuple),
    limits=st.dictionaries(st.sampled_from(["p50", "no", "1"]), st.floats(-1e12, 1e12)),
    rate_rps=st.floats(1e-6, 1e6),
)
def test_dumped_options_load_back_equal(
    tmp_path_factory: pytest.TempPathFactory, rate_rps: float, **values: Any
) -> None:
    options = JobOptions(**values, testbed=TestbedOptions(load=LoadOptions(rate_rps=rate_rps)))
    file = write(tmp_path_factory.getbasetemp(), dump_yaml(options))
    assert load_options(JobOptions, file=file) == options
