#!/usr/bin/env bash
# Makes .venv with the pinned packages, and installs the Debian packages that are missing when run as root.
# Called by `make setup`; safe to repeat and to run twice at once. Exit code 2: one line says what the user has to do.
# `setup.sh system` installs the Debian packages only (cluster.yaml runs that part with sudo);
# `setup.sh tests` (`bench`) adds what only tests (benches) need, and goes on without it when it may not;
# `setup.sh peers` adds other load balancers as Python packages.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly STAMP=.venv/.installed
readonly POLICY=/usr/sbin/policy-rc.d
readonly POLICY_MARK="written by deepsched setup"

fail() {
    echo "setup: $*" >&2
    exit 2
}

# The first Python that is new enough; `make PYTHON=/path/to/python3` puts another one first.
find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer is needed, found $("${PYTHON:-python3}" --version 2>&1 | head -1);" \
        "install one and give it with make PYTHON=/path/to/python3"
}

has_header() { echo '#include <stdlib.h>' | cc -x c -fsyntax-only - 2>/dev/null; }

has_nginx() { PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v nginx >/dev/null; }

# Only Debian's own NGINX can use Debian's module; for one built by hand `deepsched doctor` says what it lacks.
has_lua() {
    compgen -G '/usr/lib*/nginx/modules/ngx_http_lua_module.so' >/dev/null || { has_nginx && ! is_packaged_nginx; }
}

is_packaged_nginx() { dpkg-query -S "$(PATH="$PATH:/usr/sbin" command -v nginx)" >/dev/null 2>&1; }

missing_packages() {
    has_nginx || echo nginx
    has_lua || echo libnginx-mod-http-lua
    has_header || echo gcc libc6-dev
    "$1" -c 'import ensurepip, venv' 2>/dev/null || "$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'
}

# NGINX's package would start a server on port 80 of every interface, now and at each boot.
# Ours run on loopback with ports of their own, so that service is neither started nor enabled.
install_packages() {
    exec 8>/run/deepsched-apt.lock
    flock 8
    local nginx_is_new=no
    has_nginx || nginx_is_new=yes
    policy=
    if [ ! -e "$POLICY" ] || grep -q "$POLICY_MARK" "$POLICY"; then
        policy=$POLICY
        trap 'rm -f "$policy"' EXIT # also when interrupted
        printf '#!/bin/sh\n# %s\nexit 101\n' "$POLICY_MARK" >"$policy"
        chmod 755 "$policy"
    fi
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300)
    "${apt[@]}" update </dev/null || fail "apt-get update failed; see above"
    # --no-remove: an NGINX of the user's own must never make way for Debian's.
    "${apt[@]}" install -y --no-install-recommends --no-remove "$@" </dev/null || fail "apt-get install $* failed; see above"
    [ -z "$policy" ] || rm -f "$policy"
    trap - EXIT
    if [ "$nginx_is_new" = yes ] && command -v update-rc.d >/dev/null; then
        update-rc.d nginx disable >/dev/null
        # A policy of the machine's own may have let it start.
        invoke-rc.d nginx stop >/dev/null 2>&1 || true
        echo "setup: NGINX's system service stays off; the project starts its own on 127.0.0.1"
    fi
    flock -u 8
}

python=$(find_python)
part=${1:-all}
# `system` changes nothing here, has a lock of its own, and is run by root: no file of root's may stay.
if [ "$part" != system ]; then
    exec 9>.setup.lock
    flock 9
fi
if [ "$part" = all ] && [ -e "$STAMP" ] && [ ! pyproject.toml -nt "$STAMP" ] && [ ! rayjobs/setup.sh -nt "$STAMP" ]; then
    exit 0 # another set-up has just done it
fi

# A Debian package that only some work needs, and what it is for; without it that work says what is missing.
add_package() {
    if [ ! -x "/usr/bin/$1" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "setup: installing $1 $2"
        install_packages "$1"
    fi
}

case $part in
    # Without a browser its tests are skipped, with the reason; everything else is tested.
    tests) add_package chromium "for the browser tests" && exit 0 ;;
    bench) add_package wrk "to measure beside it" && exit 0 ;;
    peers)
        echo "setup: installing other load balancers (350 MB)"
        .venv/bin/python -m pip install -qq --disable-pip-version-check -e '.[peers]' </dev/null \
            || fail "pip could not install the extra 'peers'; see above"
        exit 0
        ;;
esac

mapfile -t packages < <(missing_packages "$python" | tr ' ' '\n')
if [ "${#packages[@]}" -gt 0 ]; then
    command -v apt-get >/dev/null || fail "missing: ${packages[*]} (Debian's names); install them with your package manager"
    [ "$(id -u)" = 0 ] || fail "missing: ${packages[*]}; run: sudo ./rayjobs/setup.sh system" \
        "(apt-get installs them; NGINX's system service stays off), then repeat"
    echo "setup: installing ${packages[*]}"
    install_packages "${packages[@]}"
fi

[ "$part" != system ] || exit 0

if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "setup: making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
fi

quiet=-qq
[ ! -t 1 ] || quiet=
echo "setup: installing the Python packages of pyproject.toml (some minutes the first time)"
# torch comes first and alone: pip then keeps its CPU build wherever an index or wheel folder of the user offers one.
torch=$(sed -nE 's/^ *"(torch==[^"]+)",$/\1/p' pyproject.toml)
.venv/bin/python -m pip install $quiet --disable-pip-version-check "$torch" </dev/null || fail "pip could not install $torch; see above"
.venv/bin/python -m pip install $quiet --disable-pip-version-check -e '.[train,dev,docs]' </dev/null || fail "pip could not install the packages; see above"
echo "setup: compiling the simulator (once)"
.venv/bin/python -c 'from actuators.contract.topology import social_network; from envs.simulator.testbed import warm_up; warm_up(social_network())' \
    || fail "the simulator does not compile; see above"
touch "$STAMP"
echo "setup: ready"
