#!/bin/sh
# Locks the dependencies of pyproject.toml by name, version and hash, for every platform and Python from 3.11 on.
# Run it after changing a dependency; it needs uv. The files it writes name no index.
set -eu
cd "$(dirname "$0")/.."
lock() { uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url --custom-compile-command requirements/compile.sh "$@"; }
lock pyproject.toml -o requirements/run.txt
lock pyproject.toml --group dev -c requirements/run.txt -o requirements/dev.txt
