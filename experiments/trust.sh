#!/usr/bin/env bash
# How far can a learner's word be trusted? Calibration and novelty on a column of each world, and on one world of which
# two classes were left out of training.
#
#   COLUMNS   lines "DATA OOM FLAGS-OF-STAGE-3"; the folder of folders is COX_TEST_DATA, default ../shared/data
#
# Other variables: worlds.sh. Writes experiments/results/trust/.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHON=${PYTHON:-.venv/bin/python} SEEDS=${SEEDS:-0 1 2} RUNS=${RUNS:-runs/trust} METHODS=${METHODS:-erm selftrain cox}
export COMMAND=${COMMAND:-"SEEDS=\"$SEEDS\" bash experiments/trust.sh"}
data=${COX_TEST_DATA:-../shared/data} open=$RUNS/data/handwritten_open
COLUMNS=${COLUMNS:-"synth audio
$data/handwritten fou --folds 3
$data/robot_push vibration --folds 3
$data/digits pen --folds 2
$open fou --folds 3"}
case $COLUMNS in
*"$open"*) "$PYTHON" experiments/trust.py --leave-out eight nine --data "$data/handwritten" --write "$open" ;;
esac
asked=()
while read -r -u 4 world oom flags; do
    asked+=("$world")
    DATA=$world OOM=$oom EXPLORE=$flags bash -c '. experiments/worlds.sh; every_column semi $METHODS; [ -z "$failed" ]' \
        experiments/trust.sh || { echo "error: not finished: $world $oom; the same command goes on from there" >&2; exit 1; }
done 4<<< "$COLUMNS"
"$PYTHON" experiments/trust.py --data "${asked[@]}" --runs "$RUNS" --out "${OUT:-experiments/results/trust}"
