#!/bin/sh
# Create .venv and install the packages pinned in requirements/$1.txt ($1 is "run" or "dev"). Do nothing if it is up to date.
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
    fail "Python 3.11 or newer is required, but python3 is $(python3 -V 2>&1 || echo missing). Install it; python3.11 to python3.14 on the PATH are found."
}

# Create .venv again if its Python is gone or too old.
if ! { new_enough "$root/$python" && "$python" -m pip --version >/dev/null 2>&1; }; then
    base=$(find_python)
    echo "turnline: creating .venv with $("$base" -V 2>&1)."
    rm -rf .venv
    if ! "$base" -m venv .venv >.venv-failed.log 2>&1; then
        error=$(tail -n 3 .venv-failed.log)
        rm -rf .venv .venv-failed.log
        fail "$base cannot create a virtual environment ($error). On Debian and Ubuntu, install the package ${base}-venv and try again."
    fi
    rm -f .venv-failed.log
fi

# A stamp file records the checksum of the lock file that was installed. "dev" includes everything in "run".
now=$(cksum <"$lock")
if [ "$(cat ".venv/.installed-$want" 2>/dev/null || true)" != "$now" ] && [ "$(cat .venv/.installed-dev-run 2>/dev/null || true)" != "$want $now" ]; then
    echo "turnline: installing the packages pinned in $lock."
    rm -f .venv/.installed-*
    "$python" -m pip install --quiet --quiet --disable-pip-version-check --no-input --require-hashes --no-deps -r "$lock" ||
        fail "the packages could not be installed. Check that a package index is reachable; pip's error is above."
    echo "$now" >".venv/.installed-$want"
    [ "$want" = run ] || echo "run $(cksum <requirements/run.txt)" >.venv/.installed-dev-run
fi

# The launcher runs Turnline from this directory: its top-level packages belong to an application and are not installed.
cat >.venv/bin/turnline <<LAUNCHER
#!/bin/sh
PYTHONPATH='$root'\${PYTHONPATH:+:\$PYTHONPATH} exec '$root/.venv/bin/python' -m cli.main "\$@"
LAUNCHER
chmod +x .venv/bin/turnline
