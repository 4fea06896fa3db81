# Sourced by demo.sh and test.sh: an active virtual environment, or .venv, with the package in it.
# Usage: source launch/setup.sh [EXTRA]   (EXTRA: an optional dependency group, such as "test")

extra=${1:-}
if [ -z "${VIRTUAL_ENV:-}" ]; then
    [ -x .venv/bin/python ] || python3 -m venv .venv
    source .venv/bin/activate
fi
# Install once per version of pyproject.toml and set of extras.
stamp="$VIRTUAL_ENV/.installed-${extra:-base}"
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    echo "installing the package into $VIRTUAL_ENV (once)"
    python -m pip install --quiet --editable ".${extra:+[$extra]}"
    touch "$stamp"
fi
