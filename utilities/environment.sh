# Sourced by antico_runs.sh and run_tests.sh: sets PYTHON to an interpreter with what requirements.txt asks for.
#
# ANTICO_PYTHON=/path/to/python   use this interpreter as it is and install nothing
# otherwise a virtual environment ${XDG_CACHE_HOME:-~/.cache}/antico/venv-<hash of requirements.txt and the Python
# version>, made on first use and shared by all checkouts with the same requirements.

antico_find_python() {
    local name
    for name in python3 python3.13 python3.12 python3.11 python3.10 python; do
        if "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    echo "error: no Python 3.10 to 3.13 found; install one, or name a prepared interpreter in ANTICO_PYTHON" >&2
    return 2
}

# antico_install VENV REQUIREMENTS MARK: pip install once; the mark file says that it went through
antico_install() {
    [ -e "$3" ] && return
    echo "installing $2 into $1 (once)"
    if ! "$1/bin/python" -m pip install --quiet --disable-pip-version-check -r "$2"; then
        echo "error: pip could not install $2. Without internet, name an interpreter that has it in ANTICO_PYTHON" >&2
        return 2
    fi
    touch "$3"
}

# antico_environment [test]: with 'test' the test tools are there as well
antico_environment() {
    if [ -n "${ANTICO_PYTHON:-}" ]; then
        # looked for, not imported: that takes seconds
        if ! "$ANTICO_PYTHON" -c 'import sys, importlib.util as i; sys.exit(not all(map(i.find_spec, sys.argv[1:])))' \
            torch torchvision numpy sklearn tqdm PIL matplotlib scipy pandas tabulate jinja2; then
            echo "error: ANTICO_PYTHON=$ANTICO_PYTHON lacks a package of requirements.txt (faiss is optional)" >&2
            return 2
        fi
        PYTHON=$ANTICO_PYTHON
        return
    fi
    local base key cache venv
    base=$(antico_find_python) || return 2
    key=$("$base" -c 'if True:
        import hashlib, sys
        text = open("requirements.txt", "rb").read() + sys.version.encode()
        print(hashlib.sha256(text).hexdigest()[:12])')
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/antico
    venv=$cache/venv-$key
    mkdir -p "$cache" || return 2
    (
        # two first runs at a time would write over each other
        if command -v flock >/dev/null; then flock 9; fi
        if [ ! -e "$venv/installed" ]; then
            echo "first run: making the environment $venv (several GB with torch's CUDA libraries; some minutes)"
            if ! "$base" -m venv --clear "$venv"; then
                echo "error: $base -m venv failed (on Debian: apt-get install python3-venv)" >&2
                exit 2
            fi
        fi
        antico_install "$venv" requirements.txt "$venv/installed" || exit 2
        if [ "${1:-}" = test ]; then
            sum=$(cksum <tests/requirements.txt | cut -d' ' -f1)
            antico_install "$venv" tests/requirements.txt "$venv/tests-$sum" || exit 2
        fi
    ) 9>"$venv.lock" || return 2
    PYTHON=$venv/bin/python
}
