#!/usr/bin/env bash
# Fig. 5: MMD of each IM mapping to the OOM data, and the accuracy of its head on OOM data, at six points of the
# connection's training and before it. Stage 2 alone: `random` trains nothing further.
# Variables: worlds.sh. Writes experiments/results/fig5/.
. "$(dirname "$0")/worlds.sh"
for setting in ${SETTING:-semi}; do every_column "$setting" random; done
collect --setting ${SETTING:-semi} --method random
