# Sourced by the scripts beside it. Everything they make lies under .env/ in the tree.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ROOT=$PWD
ENVS=$ROOT/.env
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
SUPPORTED="3.10 3.11 3.12 3.13 3.14 3.15"

die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }
say() { printf '\n== %s\n' "$*"; }

# What a build needs, said before pip fails with a page of text.
check_machine() {
    [ "$(uname -s)" = Linux ] || die "fastsock is for Linux"
    command -v "$1" >/dev/null || die "no $1 here: install python3, or set PYTHON"
    "$1" - <<'PY' || die "$1 cannot build fastsock: see above"
import os, sys, sysconfig
wrong = []
if sys.version_info < (3, 10):
    wrong.append("Python 3.10 or newer is needed, this is %d.%d" % sys.version_info[:2])
if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
    wrong.append("Python.h is missing (Debian: python3-dev)")
try:
    import ensurepip, venv
except ImportError:
    wrong.append("the venv module is missing (Debian: python3-venv)")
print("\n".join(wrong), end="\n" if wrong else "", file=sys.stderr)
sys.exit(bool(wrong))
PY
    command -v "${CC:-gcc}" >/dev/null || die "no C compiler: install gcc, or set CC"
}

# tag PYTHON -> cp311
tag() { "$1" -c 'import sys; print("cp%d%d" % sys.version_info[:2])'; }

# make_env NAME PYTHON: a virtual environment with nothing in it but pip; its path in $ENV
make_env() {
    ENV=$ENVS/$1-$(tag "$2")
    rm -rf "$ENV"
    "$2" -m venv "$ENV"
}

# alone COMMAND...: builds of this tree share a folder, so there is one at a time
alone() {
    mkdir -p "$ENVS"
    (
        if command -v flock >/dev/null; then flock 9; fi
        "$@" 9>&-
    ) 9>"$ENVS/build.lock"
}

# find_python X.Y -> a path, or nothing
find_python() {
    local candidate
    for candidate in "$(command -v "python$1" || true)" \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python3 \
        "$(command -v python3 || true)"; do
        if [ -x "$candidate" ] && [ "$("$candidate" -c \
            'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$1" ]; then
            printf '%s\n' "$candidate"
            return
        fi
    done
}
