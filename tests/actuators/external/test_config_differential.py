"""Random configurations, as the real NGINX reads them and as we do."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from actuators.errors import ConfigError
from actuators.external.config_control import changed_files
from actuators.external.config_editor import ServerEdit
from actuators.external.config_lexer import directives
from actuators.external.config_reader import read_config
from actuators.http_client import http_session
from actuators.processes.process import ManagedProcess
from actuators.processes.system import free_port
from tests.support.configurations import MODULES, RandomConfig, accepted, files_of

pytestmark = pytest.mark.nginx


@pytest.mark.parametrize("seed", range(40))
def test_files_groups_and_weights_are_those_of_nginx(short_dir: Path, seed: int) -> None:
    made = RandomConfig(short_dir, seed)
    main = made.write()
    read = files_of(main)
    config = read_config(main)
    included = {str(file) for files in config.includers.values() for each in files.values() for file in each}
    assert {str(main), *included} == set(read)
    seen = {name: [(each.server, each.weight, each.down) for each in config.group(name)] for name in config.groups}
    assert seen == made.groups
    _edit(short_dir, main, seed)
    assert accepted(main)


def _edit(folder: Path, main: Path, seed: int) -> None:
    """Other weights for some lines; all other bytes stay."""
    chance = random.Random(seed)
    config = read_config(main)
    lines = [line for line in config.servers if chance.random() < 0.7]
    # NGINX needs a server that is not down, so flags are only removed here.
    edits = [ServerEdit(line, chance.randint(1, 100), line.down and chance.random() < 0.5) for line in lines]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for path, change in changed_files(edits).items():
        path.write_bytes(change.new)
    wanted = {(edit.line.group, edit.line.server): (edit.weight, edit.down) for edit in edits}
    for old, new in zip(config.servers, read_config(main).servers, strict=True):
        assert (new.group, new.server) == (old.group, old.server)
        assert (new.weight, new.down) == wanted.get((old.group, old.server), (old.weight, old.down))
    for path, text in before.items():
        assert _bare(path.read_bytes()) == _bare(text)


def _bare(text: bytes) -> bytes:
    return re.sub(rb"""[ \t]*["']?(\bdown\b|weight=\d+)["']?""", b"", text)


PIECES = (
    "[[", "]]", "[==[", "]==]", "--", "--[[", "--[=[", "]=]", '"', "'", "\\", "{", "}", "\n", " ", "x", "[", "]", "-",
    "=", ";", "#",
)  # fmt: skip


def test_lua_blocks_end_where_they_end_for_nginx(short_dir: Path) -> None:
    """A host that is no upstream is refused by NGINX: so it tells whether it has seen the upstream behind the block."""
    chance, main, verdicts = random.Random(7), short_dir / "nginx.conf", []
    for _ in range(250):
        code = "".join(chance.choice(PIECES) for _ in range(chance.randint(1, 12)))
        main.write_text(
            f"{MODULES}events {{}}\nhttp {{ server {{ location / {{ content_by_lua_block {{{code}}}\n}} }}\n"
            "upstream behind.invalid { server 127.0.0.1:1; }\n"
            "server { location / { proxy_pass http://behind.invalid; } } }\n"
        )
        try:
            ours = list(read_config(main).groups) == ["behind.invalid"]
        except ConfigError:
            ours = False
        verdicts.append(accepted(main))
        assert ours == verdicts[-1], code
    assert 20 < sum(verdicts) < 230


WORDS = (
    "a",
    "\\",
    '"',
    "'",
    "}",
    "#",
    "\\t",
    "\\n",
    "\\\\",
    "\\'",
    '\\"',
    "\\ ",
    "\\;",
    "\\{",
    "é",
    "(",
    ")",
    "=",
    "\\a",
)


def test_words_are_those_of_nginx(short_dir: Path) -> None:
    chance, port = random.Random(3), free_port("127.0.0.1")
    texts = ["".join(chance.choice(WORDS) for _ in range(chance.randint(1, 5))) for _ in range(300)]
    texts = [chance.choice((text, f'"{text}"', f"'{text}'")) for text in texts]
    main = short_dir / "nginx.conf"
    valid = [text for text in texts if _one_word(text)]
    assert len(valid) > 100
    main.write_text(
        f"daemon off; pid {short_dir}/nginx.pid; error_log {short_dir}/error.log; events {{}} http {{ access_log off;\n"
        f"client_body_temp_path {short_dir}/t1; proxy_temp_path {short_dir}/t2; fastcgi_temp_path {short_dir}/t3;\n"
        f"uwsgi_temp_path {short_dir}/t4; scgi_temp_path {short_dir}/t5; server {{ listen 127.0.0.1:{port};\n"
        + "".join(f"location = /{index} {{ return 200 {text};}}\n" for index, text in enumerate(valid))
        + "}}\n"
    )
    ours = [each.arguments[1] for each in directives(main.read_bytes(), "nginx.conf") if each.name == "return"]
    command = ["/usr/sbin/nginx", "-e", str(short_dir / "error.log"), "-c", str(main)]
    with (
        ManagedProcess(command, name="nginx", log_path=short_dir / "error.log") as process,
        http_session(10.0) as session,
    ):
        process.wait_ready(lambda: (short_dir / "nginx.pid").exists() and (short_dir / "nginx.pid").read_text() != "")
        theirs = [session.get(f"http://127.0.0.1:{port}/{index}").content.decode() for index in range(len(valid))]
    assert ours == theirs


def _one_word(text: str) -> bool:
    try:
        found = list(directives(f"return 200 {text};".encode(), "text"))
    except ConfigError:
        return False
    return len(found) == 1 and len(found[0].words) == 3


@pytest.mark.parametrize("separator", [" ", "\t", "\r\n", "\x0b", "\x0c", " # c\n", "\xa0"])
def test_a_directive_is_read_alike_behind_a_comment(separator: str) -> None:
    """Directives without quotes and comments are read by another expression, which must split at the same places."""
    text = f"server{separator}a:1{separator}weight=2 b}}c d'e;".encode()
    alone, *rest = directives(text, "text")
    commented, *more = directives(b"#\n" + text, "text")
    assert (rest, more) == ([], [])
    assert [word.text for word in alone.words] == [word.text for word in commented.words]
    shift = [(word.start + 2, word.end + 2) for word in alone.words]
    assert shift == [(word.start, word.end) for word in commented.words]
    assert (alone.line + 1, alone.end + 2) == (commented.line, commented.end)
