#!/usr/bin/env bash
# A quarter of an hour on a GPU (docs/gpu.md).
#   run.sh rehearse [STAGE...]   the same code on a CPU, tiny, in a minute or two
#   run.sh run [STAGE...]        on the GPU; goes on where an earlier run was cut off
# Options: --out FOLDER for JSON, logs and weights, --work FOLDER for what may be lost,
# --answers FILE to train on. PYTHON=... names the interpreter, WHEELS=... a folder of wheels.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python="${PYTHON:-python3}"
path="src"
# nothing is installed: wheels that were carried along are unpacked once
if [ -n "${WHEELS:-}" ]; then
    for wheel in "$WHEELS"/*.whl; do
        [ -e "$wheel" ] || { echo "run.sh: there are no wheels in $WHEELS" >&2; exit 2; }
        stamp="build/gpu-site/.$(basename "$wheel")"
        [ -e "$stamp" ] && continue
        mkdir -p build/gpu-site
        "$python" -m zipfile -e "$wheel" build/gpu-site
        touch "$stamp"
    done
    path="$path:build/gpu-site"
fi
export PYTHONPATH="$path${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m specblock.bench.gpu "$@"
