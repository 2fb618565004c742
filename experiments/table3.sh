#!/usr/bin/env bash
# Table 3: retrieval, OOM test items -> each IM modality's test items and back, with the runs of Table 2.
# Variables: worlds.sh. Writes experiments/results/table3/.
. "$(dirname "$0")/worlds.sh"
EVALUATE="--task retrieval"
for setting in ${SETTING:-semi}; do
    every_column "$setting" ${METHODS:-$("$PYTHON" -m cox_oom.methods --setting "$setting")}
done
collect --setting ${SETTING:-semi} ${METHODS:+--method $METHODS}
