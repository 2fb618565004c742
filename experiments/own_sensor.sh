#!/usr/bin/env bash
# Folders of recordings with manifest.csv through all four stages by run.sh, with worlds.sh's settings.
#
#   bash experiments/own_sensor.sh FOLDER_OF_FOLDERS       e.g. the folder that holds digits/, handwritten/, robot_push/
#
# Semi-supervised, 10% of the labels, 3 seeds: random, erm, selftrain (the control without other modalities), cox;
# and digits' audio without any label, literal. Writes RUNS (default runs/own_sensor); finished work is skipped.
RUNS=${RUNS:-runs/own_sensor} SEEDS=${SEEDS:-0 1 2}
. "$(dirname "$0")/worlds.sh"
folder=${1:?usage: bash experiments/own_sensor.sh FOLDER_OF_FOLDERS}
for column in robot_push/vibration handwritten/pix handwritten/fou digits/pen digits/rgb; do
    DATA=$folder/${column%/*} OOM=${column#*/} every_column semi random erm selftrain cox
done
DATA=$folder/digits OOM=audio every_column unsup random ssl cox
DATA="$folder/robot_push $folder/handwritten $folder/digits"
[ -z "$failed" ] || { echo "error: not finished:$failed; the same command goes on from there" >&2; exit 1; }
"$PYTHON" evaluate.py --data $DATA --runs "$RUNS" --table --out "${OUT:-experiments/results/own_sensor}"
