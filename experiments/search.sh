#!/usr/bin/env bash
# The hyper-parameters of every method, six settings each (`grid` in cox_oom/methods.py). The setting with the best mean
# accuracy is chosen, over columns and seeds, on labelled items that training does not see (stage 2's --holdout). No
# test item is looked at.
# The first line of a method is its default. Variables: worlds.sh; METHODS: these methods.
# Writes experiments/results/search/; worlds.sh takes the chosen flags from there.
. "$(dirname "$0")/worlds.sh"
unset "${!EXPLORE_@}"                                               # what an earlier search chose plays no part
runs="" last="" n=0 base=$RUNS RUNS=$RUNS/search EVALUATE=none
while read -r method flags; do
    [[ " ${METHODS:-$method} " == *" $method "* ]] || continue
    [ "$method" = "$last" ] && n=$((n + 1)) || n=1
    last=$method runs+=" $method-$n"
    export "EXPLORE_${method}_$n=$flags"
done < <("$PYTHON" -m cox_oom.methods --grid)
share_columns "$base" "$RUNS"
more[1]+=" --holdout ${HOLDOUT:-0.3}"
every_column semi $runs
"$PYTHON" experiments/search.py --data $DATA --runs "$RUNS" --seed $SEEDS --perceptor "$PERCEPTOR" --out "$OUT" ${OOM:+--oom $OOM}
[ -z "$failed" ] || { echo "error: not finished:$failed; the same command goes on from there" >&2; exit 1; }
