"""NGINX configurations: what the NGINX of this machine says of them, and random ones whose content is known."""

from __future__ import annotations

import random
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.waiting import PATIENCE_S

MODULES = (
    "load_module /usr/lib/nginx/modules/ndk_http_module.so;\n"
    "load_module /usr/lib/nginx/modules/ngx_http_lua_module.so;\n"
)


def _test(main: Path, flag: str) -> subprocess.CompletedProcess[str]:
    own = f"pid {main.parent}/test.pid; error_log stderr;"
    command = ["/usr/sbin/nginx", flag, "-q", "-e", "stderr", "-g", own, "-c", str(main)]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PATIENCE_S, check=False)


def accepted(main: Path) -> bool:
    return _test(main, "-t").returncode == 0


def refusal(main: Path) -> str:
    """Why NGINX refuses it; empty when it does not."""
    result = _test(main, "-t")
    return "" if result.returncode == 0 else result.stderr


def files_of(main: Path) -> list[str]:
    """The files that NGINX reads, each once."""
    result = _test(main, "-T")
    assert result.returncode == 0, result.stderr
    mark = "# configuration file "
    return [line.removeprefix(mark)[:-1] for line in result.stdout.splitlines() if line.startswith(mark)]


@dataclass
class RandomConfig:
    """A random valid configuration below `folder`.

    Attributes:
        groups: upstream → servers in order: address, weight, down.
    """

    folder: Path
    seed: int
    groups: dict[str, list[tuple[str, int, bool]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._files = 0

    def write(self) -> Path:
        """The main file; the others are beside it."""
        (self.folder / "conf.d").mkdir()
        body = "".join(self._http_part() for _ in range(self._random.randint(3, 8)))
        # Files that a pattern finds are read in the order of their names, after what stands before the pattern.
        for name in sorted({self._random.choice("abZ-_ä") + str(n) for n in range(self._random.randint(0, 3))}):
            (self.folder / "conf.d" / f"{name}.conf").write_text(self._http_part() + self._upstream())
            (self.folder / "conf.d" / f".{name}.conf").write_text("nonsense {")
        body += self._pick(
            "include conf.d/*.conf;", 'include "conf.d/[!.]*.conf" ;', f"include {self.folder}/conf.d/*.conf;"
        )
        body += self._http_part() + self._upstream()
        main = self.folder / "nginx.conf"
        main.write_text(f"{MODULES}{self._blank()}events{{}}{self._comment()}http{self._blank()}{{{body}}}\n")
        return main

    def _pick(self, *choices: str) -> str:
        return self._random.choice(choices)

    def _blank(self) -> str:
        return self._pick(" ", "\n", "\t ", "\r\n", " # it's { a \" comment;\n", "  ")

    def _comment(self) -> str:
        return self._pick("", "", "#}\n", "# upstream no { server 9.9.9.9; }\n", "#'\r\n", "# \\\n")

    def _quoted(self, word: str) -> str:
        if "'" in word or '"' in word or "\\" in word:
            return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
        plain = not set(word) & set(" ;{}#")
        return self._pick(*([word, word, word] if plain else []), f'"{word}"', f"'{word}'")

    def _http_part(self) -> str:
        kinds = (self._upstream, self._upstream, self._included, self._lua, self._location, self._table)
        return self._comment() + self._random.choice(kinds)() + self._pick("", "\n", " ", "\r\n")

    def _table(self) -> str:
        number = self._random.randrange(10**9)
        return self._pick(
            f"map $uri $m{number} {{ default '{{'; ~^/a}}b $host; '}}' \";\"; }}",
            f'log_format f{number} \'{{"a": "$uri", \' \'"}}": "${{uri}}"}}\';',
            f'geo $g{number} {{ default 0; 10.0.0.0/8 "a;{{"; }}',
            f"split_clients $uri $s{number} {{ 50% include; * '}}'; }}",
        )

    def _included(self) -> str:
        self._files += 1
        name = f"part {self._files}.inc"
        (self.folder / name).write_text(self._http_part())
        return f'include "{name}";'

    def _lua(self) -> str:
        number = self._random.randrange(10**9)
        code = self._pick(
            "local a = [[ it's } ]]", 'local b = "} \\" {"', "--[[ don't { ]] local c = 1", "-- } isn't \n",
            "local d = { { }, [1] = { '}' } }", "local e = a and a[b[1]] --[==[ ]] } ]==]", "local f = [==[ ]=] { ]==]",
            "local g = 1 - -1 --\n", "local h = '\\\\' .. \"'\"",
        )  # fmt: skip
        opening = self._pick("{", " {", "\n{", " # { it's\n {")
        block = f"content_by_lua_block{opening} {code} }}"
        return f"server {{ server_name s{number}; location / {{ {block} }} }}"

    def _location(self) -> str:
        number = self._random.randrange(10**9)
        value = self._pick(
            "'server 1.1.1.1;'", '"}"', "a}b", "a\\;b", "a\\ b", "$uri", "${uri}x", "a#b", "\\#", "a'b\"c"
        )
        return (
            f"server {{ server_name l{number}; location ~ '^/a{{2}}$' {{ return 200{self._blank()}{value}; }}"
            f' if ($uri ~ "}}") {{ return 204; }} rewrite ^/(.*)}}$ /$1; }}'
        )

    def _upstream(self) -> str:
        name = self._pick("u", "1", "a.b-", "x y", "ü", "{;", 'q"', "#") + str(len(self.groups))
        servers: list[tuple[str, int, bool]] = []
        self.groups[name] = servers
        parts = [self._server(servers, first=index == 0) for index in range(self._random.randint(1, 4))]
        if self._random.random() < 0.3:
            self._files += 1
            include = self.folder / f"servers{self._files}.inc"
            include.write_text(self._comment() + self._server(servers, first=False))
            parts.append(f"include{self._blank()}{include.name};")
        parts.insert(0, self._pick("", "least_conn;", "zone z" + str(len(self.groups)) + " 64k;"))
        keepalive = self._pick("", "keepalive 4;")
        return f"upstream{self._blank()}{self._quoted(name)}{self._blank()}{{{''.join(parts)}{keepalive}}}"

    def _server(self, servers: list[tuple[str, int, bool]], *, first: bool) -> str:
        number = len(servers) + 1
        address = self._pick(
            f"127.0.0.{number}:8080", f"127.0.1.{number}", f"[::{number}]:81", f"unix:/tmp/a@{number}:x",
            f"localhost:{number}", f"unix:/tmp/b {number}",
        )  # fmt: skip
        weights = [self._random.randint(1, 300) for _ in range(self._random.choice((0, 1, 1, 2)))]
        down = not first and self._random.random() < 0.2
        words = [self._quoted(f"weight={weight}") for weight in weights]
        words += ["down"] * down + [self._pick("", "max_fails=2", self._quoted("fail_timeout=3s"))]
        servers.append((address, weights[-1] if weights else 1, down))
        middle = "".join(self._blank() + word for word in [self._quoted(address), *filter(None, words)])
        return f"{self._comment()}server{middle}{self._pick('', ' ', self._blank())};"
