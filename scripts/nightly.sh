#!/usr/bin/env bash
# What takes too long for every change (make nightly): every test with line coverage, then the whole demo and the notebook. Each ends in a line of
# results/nightly.md: date, commit, processor, what ran, its last line and its minutes. Ends with 1 if either failed.
set -uo pipefail
cd "$(dirname "$0")/.."
pytest=${1:-.venv/bin/python -m pytest} bin=$(realpath "${2:-.venv/bin}")
commit=$(git rev-parse --short HEAD)
git diff --quiet HEAD -- . ':!results/nightly.md' || commit="$commit and changes"
field() { sed -n "s/^$1[^:]*: //p" /proc/cpuinfo | head -1; }
processor="$(field 'model name') (family $(field 'cpu family'), model $(field 'model	')), $(nproc) cores"
failed=0

record() { # a name, and the command whose last line tells the outcome
    local name=$1 begun=$SECONDS outcome log
    shift
    log=$(mktemp)
    if "$@" 2>&1 | tee "$log"; then outcome=; else outcome="FAILED: " failed=1; fi
    outcome+=$(grep -v '^ *$' "$log" | tail -1 | tr -d '=|')
    rm "$log"
    echo "| $(date +%F) | $commit | $processor | $name | $outcome | $(((SECONDS - begun + 30) / 60)) |" >>results/nightly.md
}

run_notebook() { # docs/guides/tour.ipynb as a newcomer would run it, in a folder of its own
    local folder
    folder=$(mktemp -d)
    "$bin/pip" install --quiet nbclient ipykernel && cp docs/guides/tour.ipynb "$folder" &&
        (cd "$folder" && PATH="$bin:$PATH" jupyter-execute tour.ipynb) &&
        echo "tour.ipynb: every cell ran"
}

record "tests, slow ones too" $pytest --cov --cov-report=term
record demo bash scripts/demo.sh
record notebook run_notebook
tail -3 results/nightly.md
exit $failed
