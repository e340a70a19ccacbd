#!/usr/bin/env bash
# Check a GPU machine in at most 10 minutes, without a network: scripts/gpu_check.sh OUT [STAGE...]   (by default every stage)
# Stages write lines to OUT/results.jsonl as they measure, and OUT/<stage>.log; a stage that fails, hangs or lacks something does not stop
# the next. On a machine without a GPU each stage runs at debug size, or says what it needs. PYTHON=... picks the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: scripts/gpu_check.sh OUT [STAGE...]}
shift
only=" $* "
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 MUJOCO_GL=${MUJOCO_GL:-egl} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export TORCHINDUCTOR_FX_GRAPH_CACHE=1 TORCHINDUCTOR_AUTOGRAD_CACHE=1 TORCHINDUCTOR_COMPILE_THREADS=4  # what one stage compiles another takes

stage() { # name, limit in seconds
    if [ "$only" != "  " ] && [[ $only != *" $1 "* ]]; then return; fi
    local begin=$SECONDS code=0
    timeout -k 5 "$2" "$python" scripts/gpu_check.py "$1" "$out" >"$out/$1.log" 2>&1 || code=$?
    case $code in
        0) local ended=passed ;;
        77) local ended="needs CUDA" ;;
        124 | 137) local ended="cut off after $2 s" ;;
        *) local ended="failed: $(tail -n 1 "$out/$1.log" | tr -d '"\\' | cut -c 1-300)" ;;
    esac
    echo "{\"stage\": \"$1\", \"ended\": \"$ended\", \"seconds\": $((SECONDS - begin))}" | tee -a "$out/results.jsonl"
}

stage imports 60
beside=false # where none of these measures what others disturb, as compiling takes most of their time
if "$python" -c 'import os, torch; exit(not torch.cuda.is_available() or (os.cpu_count() or 1) < 8)'; then beside=true; fi
for name in updates-float32 updates-float64 seeds replay resume ready-seeds ready-bfloat16 ready-slots ready-cnn ready-learn; do
    if $beside; then stage "$name" 170 & else stage "$name" 170; fi
done
wait
stage suite 140
stage render 40
stage physics 60
stage learn 200
