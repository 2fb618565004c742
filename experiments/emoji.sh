#!/usr/bin/env bash
# What do pretrained encoders of the known modalities bring? The same rows with encoders trained on the data's own pairs
# (bind) and with EfficientNet-Lite0 for pictures, MiniLM for names, a speech embedding for sounds.
#
#   bash experiments/emoji.sh                                      pen strokes of emoji (docs/data/emoji.md)
#   DATA=../shared/data/digits OOM=pen bash experiments/emoji.sh   pen strokes of digits
#   MODELS   the folders that `python -m cox_oom.perceptors.packages` makes (docs/perceptors.md); default: runs/models
#
# Other variables: worlds.sh. Writes experiments/results/emoji/ or, for other DATA, emoji_NAME/.
DATA=${DATA:-emoji} OOM=${OOM:-pen} MODELS=${MODELS:-runs/models}
name=$(basename "$DATA")
OUT=${OUT:-experiments/results/emoji$([ "$name" = emoji ] || echo "_$name")} EVALUATE="--task retrieval"
. "$(dirname "$0")/worlds.sh"
pretrained=rgb=onnx:$MODELS/efficientnet-lite0,language=hf:$MODELS/minilm
[ "$name" = emoji ] || pretrained+=,audio=onnx:$MODELS/speech-embedding
methods=${METHODS:-raw erm fixmatch selftrain cox}
for PERCEPTOR in bind "$pretrained"; do every_column semi $methods; done
PERCEPTOR=bind
"$PYTHON" experiments/collect.py emoji --data $DATA --oom $OOM --seed $SEEDS --runs "$RUNS" --out "$OUT" ${ADD:+--add $ADD} \
    --method $methods
[ -z "$failed" ] || { echo "error: not finished:$failed; the same command goes on from there" >&2; exit 1; }
