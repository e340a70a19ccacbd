#!/usr/bin/env bash
# The main job from end to end (make train): train from pixels, evaluate on rendered rollouts, draw slots and explored states.
# Settings of vis-rpg train may follow: scripts/demo.sh seed=3 steps=10000 (or make train ARGS="seed=3 steps=10000").
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

# Rewards of success count five times, as in the paper's runs, and ten environments explore side by side, which costs little beside an update.
"$python" scripts/train.py task=block_push task.blocks=1 obs=pixels preset=cpu exploration.rnd_input=moving_slots \
    agent.envs=10 steps=40000 out="$out" "$@"
"$python" scripts/evaluate.py run="$out"
"$python" scripts/visualise_slots.py run="$out"
"$python" scripts/visualise_states.py run="$out"

"$python" - "$out" <<'PYTHON'
import json
import sys
from pathlib import Path

run = Path(sys.argv[1])
summary, evaluation = (json.loads((run / name).read_text()) for name in ("summary.json", "evaluation.json"))
print(f"\nResults in {run}/")
for path in sorted(p for p in run.rglob("*") if p.suffix in {".mp4", ".png", ".jsonl"} or p.name in {"summary.json", "evaluation.json"}):
    print(f"  {path}")
print(
    f"Object displacement coverage {summary['coverage']:.2f} after {summary['steps']:,} interactions; a random policy's at "
    f"{summary['steps'] + summary['pretraining_frames']:,} (with the frames that the slot model was trained on): {summary['random_coverage']:.2f}"
)
solved = round(evaluation["eval_success"] * evaluation["episodes"])
print(f"{summary['wall_s'] / 60:.1f} minutes of training; by mean actions {solved} of {evaluation['episodes']} episodes succeed.")
wanted = "the red pusher goes round the green block and pushes it into the green square, upper left"
print(f"Watch {run}/rollouts.mp4: each row is one z, and {wanted}" + ("." if solved else ", which it has not learned yet."))
PYTHON
