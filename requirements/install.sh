#!/bin/sh
# Makes .venv and installs what requirements/$1.txt pins ("run" or "dev"), by name, version and hash. Does nothing when it is up to date.
set -eu
cd "$(dirname "$0")/.."
root=$(pwd)
want=$1
lock=requirements/$want.txt
python=.venv/bin/python

fail() {
    echo "turnline: $*" >&2
    exit 1
}

new_enough() {
    command -v "$1" >/dev/null 2>&1 && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    for name in python3 python3.11 python3.12 python3.13 python3.14 python; do
        if new_enough "$name"; then
            [ "$name" = python3 ] || echo "turnline: python3 is $(python3 -V 2>&1 || echo missing); using $name." >&2
            echo "$name"
            return
        fi
    done
    fail "Python 3.11 or newer is needed, and python3 is $(python3 -V 2>&1 || echo missing). Install one; any python3.11 to python3.14 on the PATH is found."
}

# A .venv whose Python is gone or too old is made again.
if ! { new_enough "$root/$python" && "$python" -m pip --version >/dev/null 2>&1; }; then
    base=$(find_python)
    echo "turnline: making .venv with $("$base" -V 2>&1)."
    rm -rf .venv
    if ! "$base" -m venv .venv >.venv-failed.log 2>&1; then
        words=$(tail -n 3 .venv-failed.log)
        rm -rf .venv .venv-failed.log
        fail "$base cannot make a virtual environment ($words). On Debian and Ubuntu, install its package ${base}-venv and try again."
    fi
    rm -f .venv-failed.log
fi

# Each set is stamped with the lock it was installed from; "dev" holds everything of "run".
now=$(cksum <"$lock")
if [ "$(cat ".venv/.installed-$want" 2>/dev/null || true)" != "$now" ] && [ "$(cat .venv/.installed-dev-run 2>/dev/null || true)" != "$want $now" ]; then
    echo "turnline: installing what $lock pins (only when it has changed)."
    rm -f .venv/.installed-*
    "$python" -m pip install --quiet --quiet --disable-pip-version-check --no-input --require-hashes --no-deps -r "$lock" ||
        fail "the packages could not be installed. Is a package index within reach? pip's own words are above."
    echo "$now" >".venv/.installed-$want"
    [ "$want" = run ] || echo "run $(cksum <requirements/run.txt)" >.venv/.installed-dev-run
fi

# `turnline` runs from this directory: the top-level packages are an application's and are not installed.
cat >.venv/bin/turnline <<LAUNCHER
#!/bin/sh
PYTHONPATH='$root'\${PYTHONPATH:+:\$PYTHONPATH} exec '$root/.venv/bin/python' -m cli.main "\$@"
LAUNCHER
chmod +x .venv/bin/turnline
