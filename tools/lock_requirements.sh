#!/usr/bin/env bash
# Regenerate requirements/*.txt: all versions pinned, all files hashed, no index URL. Needs `uv` on PATH.
set -euo pipefail
cd "$(dirname "$0")/.."
lock() { # lock NAME PYTHON ARGUMENT...
  local name=$1 python=$2; shift 2
  uv pip compile --quiet --universal --python-version "$python" --generate-hashes --no-emit-index-url \
    --custom-compile-command "make requirements" -o "requirements/$name.txt" "$@"
}
lock operator 3.13 pyproject.toml --extra operator
lock node-runner 3.13 pyproject.toml --extra node
lock dev 3.11 pyproject.toml --extra operator --extra node --group dev
lock bench 3.13 --group bench
