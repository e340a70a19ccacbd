#!/usr/bin/env bash
# The main job from end to end (make train): train from pixels, evaluate on rendered rollouts, draw slots and explored states.
# An earlier run is left alone: runs/first, then runs/first-2, runs/first-3, ...
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
export MUJOCO_GL=${MUJOCO_GL:-egl}

out=runs/first
k=1
while [ -e "$out" ]; do
    k=$((k + 1))
    out=runs/first-$k
done

"$python" scripts/train.py task=block_push task.blocks=1 obs=pixels preset=cpu seed=0 out="$out" ${DEMO_STEPS:+steps="$DEMO_STEPS"}
"$python" scripts/evaluate.py run="$out"
"$python" scripts/visualise_slots.py run="$out"
"$python" scripts/visualise_states.py run="$out"

"$python" - "$out" <<'PYTHON'
import json
import sys
from pathlib import Path

run = Path(sys.argv[1])
summary = json.loads((run / "summary.json").read_text())
print(f"\nResults in {run}/")
for path in sorted(p for p in run.rglob("*") if p.suffix in {".mp4", ".png", ".jsonl"} or p.name in {"summary.json", "evaluation.json"}):
    print(f"  {path}")
for name in ("return", "success"):
    print(f"{name}: {summary[name]:.3f}")
print(
    f"object displacement coverage: {summary['coverage']:.3f} after {summary['steps']:,} interactions, a random policy's at "
    f"{summary['steps'] + summary['pretraining_frames']:,} (with the frames that the slot model was trained on): {summary['random_coverage']:.3f}"
)
PYTHON
