#!/usr/bin/env bash
# Set up, then lint, type-check and run the tests, side by side on the machine's cores.
#
#   bash launch/test.sh              all but the few tests marked "long"
#   bash launch/test.sh --quick      nor those marked "slow", which take some seconds or more
#   bash launch/test.sh --all        everything, as continuous integration does
#   bash launch/test.sh [--quick | --all] [pytest arguments]
#
# What is left out is counted in the last lines.
#
# For example: tests/launch -x, -k resume, --durations=20; -n 0 runs one test after the other, as
# --pdb needs.
set -euo pipefail
cd "$(dirname "$0")/.."

# A worker per core, eight at most; tests/conftest.py says what they share.
arguments=(-n "$(env -u OMP_NUM_THREADS nproc)" --maxprocesses 8 --dist loadscope --no-loadscope-reorder)
case "${1:-}" in
    -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit ;;
    --quick) arguments+=(-m "not slow"); shift ;;
    --all) shift ;;
    *) arguments+=(-m "not long") ;;
esac

source launch/setup.sh test

ruff format --check .
ruff check .
mypy
# More threads than cores slow all of them down.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
python -m pytest "${arguments[@]}" "$@"
