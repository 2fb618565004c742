#!/usr/bin/env bash
# Fig. 6: accuracy on unlabelled items on which the modalities agree and disagree, before and after exploration.
# Variables: worlds.sh. Writes experiments/results/fig6/.
. "$(dirname "$0")/worlds.sh"
for setting in ${SETTING:-semi}; do every_column "$setting" ${METHODS:-cox}; done
collect --setting ${SETTING:-semi} --method ${METHODS:-cox}
