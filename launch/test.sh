#!/usr/bin/env bash
# Set up, then lint, type-check and run the whole test suite: bash launch/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh test

ruff format --check .
ruff check .
mypy
python -m pytest "$@"
