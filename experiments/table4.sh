#!/usr/bin/env bash
# Table 4: ablations of COX, beside labels alone and self-training.
#
#   w/o connection   untrained connections map the IM items     w/o exploration   unlabelled items teach nothing
#   w/o emergent     no emergent correspondences       kl-literal   Eq. 13 as printed       refresh-once   anchors once
#   w/o warmup       without the warm-up of stage 2 (unsupervised)            no-im         no IM features predicted
#
# Variables: worlds.sh. Writes experiments/results/table4/.
. "$(dirname "$0")/worlds.sh"
export EXPLORE_cox_without_connection="--without connection" EXPLORE_cox_without_exploration="--without exploration"
export EXPLORE_cox_without_emergent="--without emergent" EXPLORE_cox_without_warmup="--without warmup"
export EXPLORE_cox_kl_literal="--kl literal --w-disagree 0.5" EXPLORE_cox_refresh_once="--refreshes 1"
export EXPLORE_cox_no_im="--w-im 0"
trees=("$RUNS")
for setting in ${SETTING:-semi}; do
    parts="cox cox-without-connection cox-without-exploration cox-without-emergent cox-kl-literal cox-refresh-once"
    [ "$setting" = unsup ] || parts="erm selftrain $parts cox-no-im"
    every_column "$setting" ${METHODS:-$parts}
    if [ "$setting" = unsup ] && [ -z "${METHODS:-}" ]; then              # another stage 2, so a tree of its own
        RUNS=${trees[0]}/without-warmup
        trees+=("$RUNS")
        share_columns "${trees[0]}" "$RUNS"
        more[1]+=" --without warmup"
        every_column unsup cox-without-warmup
        RUNS=${trees[0]} more[1]=${user[1]}
    fi
done
collect --runs "${trees[@]}" --setting ${SETTING:-semi} --method ${METHODS:-erm selftrain cox cox-without-connection \
    cox-without-exploration cox-without-emergent cox-without-warmup cox-kl-literal cox-refresh-once cox-no-im}
