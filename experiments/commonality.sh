#!/usr/bin/env bash
# When does a second modality help, and how many pairs does it take? The gain of COX over selftrain on `synth`, in
# accuracy and in finding the very instance, over its commonality and the labelled pairs per class.
#
#   COMMONALITY="0 0.25 0.5 0.75 1"  PAIRS="2 4 8 16 32"  OOM=audio
#
# Other variables: worlds.sh. Writes experiments/results/commonality/.
OOM=${OOM:-audio} DATA=synth EVALUATE="--task retrieval"
. "$(dirname "$0")/worlds.sh"
base=$RUNS trees=()
for c in ${COMMONALITY:-0 0.25 0.5 0.75 1}; do
    for n in ${PAIRS:-2 4 8 16 32}; do
        RUNS=$base/commonality/$c-$n
        for oom in $OOM; do share "$base/commonality/$c" "$RUNS" synth "$oom"; done
        more=("${user[0]} --option commonality=$c" "${user[1]} --per-class $n" "${user[2]}")
        every_column semi selftrain cox
        trees+=("$RUNS")
    done
done
collect --runs "${trees[@]}" --method selftrain cox
