"""Links of README and docs lead somewhere, and what the code cites in docs/ stands there."""

import os
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PAGES = sorted((ROOT / "docs").rglob("*.md"))
TOP_LEVEL = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^]]+\]: (\S+)$", re.MULTILINE)
CITED = re.compile(r"\bdocs/[\w./-]+\.md(?:#[\w-]+)?")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def prose(path: Path) -> str:
    """The page without its code, in which nothing is a link or a heading."""
    return CODE.sub("", path.read_text(encoding="utf-8"))


def slugs(path: Path) -> list[str]:
    """Anchors of the page's headings, as GitHub and mkdocs both derive them from plain words."""
    # Code in a heading counts: only fenced blocks go.
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+?)\s*$", text, re.MULTILINE)
    return [re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings]


@cache
def anchors(path: Path) -> frozenset[str]:
    return frozenset(slugs(path))


def problem(source: Path, link: str) -> str | None:
    """What is wrong with a relative link of a page; None when it leads somewhere."""
    target, _, anchor = link.partition("#")
    path = (source.parent / target).resolve() if target else source
    if not path.exists():
        return f"{link}: no such file"
    if anchor and anchor not in anchors(path):
        return f"{link}: no such heading"
    return None


def links(path: Path) -> list[str]:
    """The relative links of a page, pictures included."""
    found = ["".join(groups) for groups in LINK.findall(prose(path))]
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def citations() -> dict[str, list[str]]:
    """`docs/PAGE.md#anchor` → the tracked files outside docs/ that cite it."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    found: dict[str, list[str]] = {}
    for name in tracked:
        path = ROOT / name
        if name.startswith("docs/") or not path.is_file() or path.is_symlink():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for cited in CITED.findall(text):
            found.setdefault(cited, []).append(name)
    return found


@pytest.mark.parametrize("path", [*TOP_LEVEL, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    assert [found for link in links(path) if (found := problem(path, link))] == []


def test_what_the_code_cites_stands_in_docs() -> None:
    wrong = {
        found: where
        for cited, where in citations().items()
        if not cited.startswith("docs/PAGE.md") and (found := problem(ROOT / "README.md", cited))
    }
    assert not wrong


def test_code_cites_no_source_that_a_reader_cannot_open() -> None:
    closed = re.compile(
        r"\bissue \d|\b(study|(?<!your-)nginx|ray|design)\.md|\bP\d\.\d|\bshared/\w+\.md|shared study", re.IGNORECASE
    )
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for package in ("actuators", "envs", "tuning", "rayjobs")
        for path in (ROOT / package).rglob("*")
        if path.suffix in {".py", ".lua", ".c", ".h", ".yaml", ".sh", ".js", ".css", ".html", ".json"}
        for line in path.read_text(encoding="utf-8").splitlines()
        if closed.search(line)
    ]
    assert not found


def test_headings_of_a_page_are_unique_so_that_anchors_stay() -> None:
    for path in PAGES:
        twice = [slug for slug, count in Counter(slugs(path)).items() if count > 1]
        assert not twice, f"{path.name}: {twice}"


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One two\n\n```sh\n# no heading\n```\n[a](#one-two) [b](#no-heading) [c](other.md) `[d](e.md)`\n")
    assert links(page) == ["#one-two", "#no-heading", "other.md"]
    assert [problem(page, link) for link in links(page)] == [
        None, "#no-heading: no such heading", "other.md: no such file",
    ]  # fmt: skip


@pytest.mark.thorough
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """As `make docs`: links, headings and the public API that the reference names; 15 s of computing."""
    command = [str(Path(sys.executable).with_name("mkdocs")), "build", "--strict", "--quiet"]
    command += ["-f", "docs/mkdocs/mkdocs.yml", "--site-dir", str(tmp_path / "site")]
    # MkDocs announces its next version; that is not a warning about the documentation.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert (tmp_path / "site" / "index.html").exists()
