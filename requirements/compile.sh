#!/bin/sh
# Pin the dependencies of pyproject.toml by version and hash, for every platform and Python 3.11 or newer.
# Run this after changing a dependency (`make lock`). It needs uv. The files it writes do not name a package index.
set -eu
cd "$(dirname "$0")/.."
lock() { uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url --custom-compile-command requirements/compile.sh "$@"; }
lock pyproject.toml -o requirements/run.txt
lock pyproject.toml --group dev -c requirements/run.txt -o requirements/dev.txt
