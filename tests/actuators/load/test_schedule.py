"""The schedule that gen_load sends by: repeatable to the byte, distributed as it says, following its rates.

Seeds are fixed and the clock plays no part: a comparison with a threshold repeats exactly, its error rate is 0.
"""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from actuators.load.build import FLAGS, SOURCES, engine_path, find_compiler

PLAN = "stream read GET / none\n"


def schedule(tmp_path: Path, steps: str, *, duration_s: float = 100.0, seed: int = 1) -> str:
    plan = tmp_path / "plan.txt"
    plan.write_text(PLAN + steps)
    return gen_load("--dump-schedule", f"--plan={plan}", f"--duration-s={duration_s}", f"--seed={seed}").stdout


def gen_load(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([engine_path(), *arguments], capture_output=True, text=True, timeout=60, check=False)


def due_s(text: str) -> np.ndarray:
    return np.array([int(line.split()[0]) for line in text.splitlines()]) / 1e9


def ks_distance(sample: np.ndarray, cdf: np.ndarray) -> float:
    """Largest distance between the empirical distribution of a sample and its theoretical values, in its order."""
    cdf, n = np.sort(cdf), len(sample)
    return float(max(np.max(np.arange(1, n + 1) / n - cdf), np.max(cdf - np.arange(n) / n)))


def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    for distribution in ("exponential", "normal", "fixed", "zipf", "gamma 13", "weibull 4"):
        step = f"step 0 50 {distribution}\n"
        first = schedule(tmp_path, step)
        assert first == schedule(tmp_path, step)
        assert first != schedule(tmp_path, step, seed=2)
        assert first.splitlines()[7].endswith(" read-7")


def test_streams_do_not_depend_on_each_other(tmp_path: Path) -> None:
    alone = schedule(tmp_path, "step 0 50 exponential\n")
    both = schedule(tmp_path, "step 0 50 exponential\nstream more GET / none\nstep 0 10 zipf\n")
    assert [line for line in both.splitlines() if "read-" in line] == alone.splitlines()


@pytest.mark.parametrize(("distribution", "cv", "tolerance"), [
    ("exponential", 1.0, 0.02), ("normal", 0.5, 0.01), ("fixed", 0.0, 1e-4), ("zipf", 5.4, 0.3),
    ("gamma 2", 2.0, 0.1), ("gamma 0.5", 0.5, 0.02), ("weibull 2", 2.0, 0.1), ("weibull 0.4", 0.4, 0.02),
])  # fmt: skip
def test_gaps_have_the_mean_and_spread_of_their_distribution(
    tmp_path: Path, distribution: str, cv: float, tolerance: float
) -> None:
    gaps = np.diff(due_s(schedule(tmp_path, f"step 0 1000 {distribution}\n")))
    assert gaps.mean() == pytest.approx(1e-3, rel=0.01 if cv <= 1 else 0.04)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, abs=tolerance)
    assert gaps.min() >= 0


@pytest.mark.parametrize("step", ["step 0 9 gamma", "step 0 9 weibull 0", "step 0 9 gamma 21", "step 0 9 gamma x"])
def test_gaps_that_need_a_variation_are_refused_without_one(tmp_path: Path, step: str) -> None:
    plan = tmp_path / "plan.txt"
    plan.write_text(f"{PLAN}{step}\n")
    done = gen_load("--dump-schedule", f"--plan={plan}", "--duration-s=1")
    assert done.returncode == 2
    assert "need a coefficient of variation from 0.05 to 20" in done.stderr


def test_bursts_of_gamma_gaps_are_as_dispersed_as_they_say(tmp_path: Path) -> None:
    """The variance of a long window's count is cv² times its mean."""
    due = due_s(schedule(tmp_path, "step 0 1000 gamma 3\n", duration_s=400))
    counts = np.histogram(due, np.arange(0, 400.1, 1.0))[0]
    assert counts.mean() == pytest.approx(1000, rel=0.03)
    assert counts.var() / counts.mean() == pytest.approx(9, rel=0.3)


def test_exponential_gaps_are_exponential(tmp_path: Path) -> None:
    gaps = np.diff(due_s(schedule(tmp_path, "step 0 2000 exponential\n", duration_s=20)))
    assert ks_distance(gaps, 1 - np.exp(-gaps * 2000)) < 0.01


def test_zipf_gaps_are_whole_multiples_with_a_square_law(tmp_path: Path) -> None:
    gaps = np.diff(due_s(schedule(tmp_path, "step 0 1000 zipf\n")))
    ranks = gaps / 1e-3 * (np.sum(1 / np.arange(1, 1001)) / np.sum(1 / np.arange(1, 1001) ** 2))
    assert np.abs(ranks - np.rint(ranks)).max() < 1e-3
    ones, twos = (np.rint(ranks) == 1).mean(), (np.rint(ranks) == 2).mean()
    assert ones == pytest.approx(0.608, abs=0.01)
    assert ones / twos == pytest.approx(4, rel=0.05)


def test_rates_follow_the_steps(tmp_path: Path) -> None:
    due = due_s(schedule(tmp_path, "step 0 100 fixed\nstep 10 0 fixed\nstep 15.5 400 fixed\n", duration_s=20))
    counts = [int(((due >= low) & (due < high)).sum()) for low, high in ((0, 10), (10, 15.5), (15.5, 20))]
    assert counts[0] in (999, 1000, 1001)
    assert counts[1] == 0
    assert counts[2] in (1799, 1800, 1801)


def test_many_short_steps_do_not_bias_the_rate(tmp_path: Path) -> None:
    steps = "".join(f"step {at} {100 + 50 * (at % 2)} zipf\n" for at in range(100))
    sizes = [len(due_s(schedule(tmp_path, steps, seed=seed))) for seed in range(1, 9)]
    assert np.mean(sizes) == pytest.approx(12500, rel=0.05)


def test_the_same_time_is_never_planned_twice_after_the_end(tmp_path: Path) -> None:
    due = due_s(schedule(tmp_path, "step 0 1000 exponential\n", duration_s=3))
    assert due.max() < 3
    assert (np.diff(due) >= 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--duration-s=-1"], "--duration-s is -1; it must be from 0.001 to 1e+09"),
        (["--window-s=1e-10"], "--window-s is 1e-10; it must be from 0.001 to 1e+09"),
        (["--duration-s=1e300"], "--duration-s is 1e300; it must be from 0.001"),
        (["--timeout-s=nan"], "--timeout-s is 'nan', not a number"),
        (["--max-connections=99999999999"], "it must be from 1 to 60000"),
        (
            [
                "--duration-s=1e6",
                "--min-burst-s=0.01",
                "--max-burst-s=0.01",
                "--min-backoff-s=0.01",
                "--max-backoff-s=0.01",
                "--print-plan",
            ],
            "has more than 1000000 steps",
        ),
        (["--min-rate-rps=0"], "--min-rate-rps is 0; it must be from 1e-06 to 1e+06"),
        (["--rate=3"], "unknown option '--rate=3'"),
        (["--let-cores-sleep"], "--let-cores-sleep is now --allow-cpu-idle"),
        (["--target=ftp://x"], "is not http://HOST:PORT"),
        (["--target=http://127.0.0.1:1"], "does not accept connections"),
        (["--target=http://nowhere.invalid:80"], "target host 'nowhere.invalid'"),
        (["--plan=/nowhere/plan.txt"], "plan file '/nowhere/plan.txt': No such file"),
        (["--seed"], "--seed needs a value"),
        (["--max-connections=many"], "'many', not a whole number"),
        (["--min-burst-s=9", "--max-burst-s=5"], "--min-burst-s is 9, more than --max-burst-s 5"),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(arguments: list[str], message: str) -> None:
    result = gen_load(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PLAN + "step 0 10 expo\n", "unknown distribution 'expo'"),
        (PLAN + "step 1 10 fixed\n", "steps begin at 0"),
        (PLAN + "step 0 -1 fixed\n", "rate -1"),
        (PLAN + PLAN, "listed twice"),
        ("stream a GET / file:/nowhere/body\n", "body file '/nowhere/body'"),
        ("stream a GET nothing none\n", "must begin with '/'"),
        ("hello\n", ":1: expected"),
        ("", "has no stream"),
    ],
)
def test_a_wrong_plan_file_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    plan = tmp_path / "plan.txt"
    plan.write_text(text)
    result = gen_load(f"--plan={plan}", "--dump-schedule")
    assert result.returncode == 2
    assert message in result.stderr


def test_the_printed_plan_can_be_read_back(tmp_path: Path) -> None:
    plan = gen_load("--print-plan", "--seed=5", "--duration-s=900").stdout
    path = tmp_path / "plan.txt"
    path.write_text(plan)
    assert gen_load(f"--plan={path}", "--print-plan").stdout == plan


def test_help_names_every_option_with_its_default() -> None:
    text = gen_load("--help").stdout
    for option in ("--target", "--min-burst-s", "--max-backoff-s", "--seed", "--duration-s"):
        assert option in text
    assert "(http://127.0.0.1:8080)" in text


def test_the_source_compiles_without_a_warning(tmp_path: Path) -> None:
    command = [
        find_compiler(),
        *FLAGS,
        "-Werror",
        "-o",
        str(tmp_path / "gen_load"),
        *map(str, SOURCES.glob("*.c")),
        "-lm",
    ]
    subprocess.run(command, check=True, timeout=120)
