#!/usr/bin/env bash
# Folders of recordings with manifest.csv through all four stages by run.sh, with the flags for a small machine.
#
#   bash experiments/own_sensor.sh FOLDER_OF_FOLDERS       e.g. the folder that holds digits/, handwritten/, robot_push/
#
# Semi-supervised, 10% of the labels, 3 seeds: random, erm, selftrain (the control without other modalities), cox;
# and digits' audio without any label, literal. Writes RUNS (default runs/own_sensor); finished work is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?usage: bash experiments/own_sensor.sh FOLDER_OF_FOLDERS}
export RUNS=${RUNS:-runs/own_sensor} SEEDS=${SEEDS:-0 1 2} METHODS="random erm selftrain cox"

world() {  # world FOLDER OOM EXTRACT CONNECT EXPLORE
    DATA="$data/$1" OOM="$2" EXTRACT="$3" CONNECT="$4" EXPLORE="$5" bash run.sh
}
world robot_push vibration "" "--width 128 --depth 2 --batch 32 --labelled-batch 32" "--batch 32 --labelled-batch 32"
world handwritten pix "--image-size 16" "--width 64 --depth 3 --patch 4" ""
world handwritten fou "--image-size 16" "--width 64 --depth 3" ""
world digits pen "--image-size 28 --series-length 128 --bind-epochs 15" "--width 64 --depth 3 --slice 4" "--epochs 20"
world digits rgb "--image-size 28 --series-length 128 --bind-epochs 15" "--width 64 --depth 3 --patch 7" "--epochs 20"
SETTING=unsup METHODS="random ssl cox" world digits audio "--image-size 28 --series-length 128 --bind-epochs 15" \
    "--width 64 --depth 3 --slice 4" "--epochs 20"
