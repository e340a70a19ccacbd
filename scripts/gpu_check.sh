#!/usr/bin/env bash
# Check a GPU machine in at most 10 minutes, without a network: scripts/gpu_check.sh OUT
# Stages write lines to OUT/results.jsonl as they measure, and OUT/<stage>.log; a stage that fails, hangs or lacks something does not stop
# the next. On a machine without a GPU each stage runs at debug size, or says what it needs. PYTHON=... picks the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: scripts/gpu_check.sh OUT}
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 MUJOCO_GL=${MUJOCO_GL:-egl} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export TORCHINDUCTOR_FX_GRAPH_CACHE=1 TORCHINDUCTOR_AUTOGRAD_CACHE=1  # what one stage compiles another takes

stage() { # name, limit in seconds
    local begin=$SECONDS code=0
    timeout -k 5 "$2" "$python" scripts/gpu_check.py "$1" "$out" >"$out/$1.log" 2>&1 || code=$?
    case $code in
        0) local ended=passed ;;
        3) local ended="needs CUDA" ;;
        124 | 137) local ended="cut off after $2 s" ;;
        *) local ended="failed: $(tail -n 1 "$out/$1.log" | tr -d '"\\' | cut -c 1-300)" ;;
    esac
    echo "{\"stage\": \"$1\", \"ended\": \"$ended\", \"seconds\": $((SECONDS - begin))}" | tee -a "$out/results.jsonl"
}

together() { # side by side where there are cores for it: none of these measures time
    for name in "$@"; do
        if [ "$(nproc)" -ge 8 ]; then stage "$name" 150 & else stage "$name" 150; fi
    done
    wait
}

stage imports 40
together updates-float32 updates-float64 seeds replay resume
stage suite 150
stage render 40
stage learn 200
