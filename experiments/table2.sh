#!/usr/bin/env bash
# Table 2: classification. Every OOM modality in turn, COX and the baselines, semi-supervised and without labels.
# Variables: worlds.sh. Writes experiments/results/table2/.
. "$(dirname "$0")/worlds.sh"
export EXPLORE_selftrain_plain="--rounds 0"                        # anchors by the learner's confidence alone
for setting in ${SETTING:-semi}; do
    methods=$("$PYTHON" -m cox_oom.methods --setting "$setting")
    [ "$setting" = unsup ] || methods+=" selftrain-plain"
    every_column "$setting" ${METHODS:-$methods}
done
collect --setting ${SETTING:-semi} ${METHODS:+--method $METHODS}
