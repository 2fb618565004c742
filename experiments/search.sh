#!/usr/bin/env bash
# The hyper-parameters of every method, six settings each: the one with the best mean accuracy, over columns and seeds, on
# labelled items that training does not see (stage 2's --holdout). No test item is looked at.
# The first line of a method is its default. Variables: worlds.sh; METHODS: these methods.
# Writes experiments/results/search/; worlds.sh takes the chosen flags from there.
. "$(dirname "$0")/worlds.sh"
grid="
erm       --weight-decay 1e-5
erm       --weight-decay 0
erm       --weight-decay 1e-4
erm       --weight-decay 1e-3
erm       --weight-decay 3e-3
erm       --weight-decay 1e-2
entmin    --w-entropy 0.3
entmin    --w-entropy 0.03
entmin    --w-entropy 0.1
entmin    --w-entropy 0.6
entmin    --w-entropy 1
entmin    --w-entropy 2
ssl       --noise 0.3 --w-ssl 1
ssl       --noise 0.1 --w-ssl 1
ssl       --noise 0.6 --w-ssl 1
ssl       --noise 0.3 --w-ssl 0.3
ssl       --noise 0.3 --w-ssl 3
ssl       --noise 0.1 --w-ssl 3
moco      --w-entropy 0.3 --temperature 0.1
moco      --w-entropy 0.1 --temperature 0.1
moco      --w-entropy 1 --temperature 0.1
moco      --w-entropy 0.3 --temperature 0.2
moco      --w-entropy 0.3 --temperature 0.5
moco      --w-entropy 0.3 --temperature 0.1 --momentum 0.999
fixmatch  --threshold 0.95
fixmatch  --threshold 0.6
fixmatch  --threshold 0.7
fixmatch  --threshold 0.8
fixmatch  --threshold 0.9
fixmatch  --threshold 0.98
selftrain --w-agree 1 --w-disagree 1
selftrain --w-agree 1 --w-disagree 0
selftrain --w-agree 0.5 --w-disagree 1
selftrain --w-agree 0.5 --w-disagree 0.5
selftrain --w-agree 2 --w-disagree 1
selftrain --w-agree 1 --w-disagree 0.5
cox       --w-agree 1 --w-disagree 1
cox       --w-agree 1 --w-disagree 0
cox       --w-agree 0.5 --w-disagree 1
cox       --w-agree 0.5 --w-disagree 0.5
cox       --w-agree 2 --w-disagree 1
cox       --w-agree 1 --w-disagree 0.5
"
unset "${!EXPLORE_@}"                                               # what an earlier search chose plays no part
runs="" last="" n=0 base=$RUNS RUNS=$RUNS/search EVALUATE=none
while read -r method flags; do
    [[ " ${METHODS:-$method} " == *" $method "* ]] || continue
    [ "$method" = "$last" ] && n=$((n + 1)) || n=1
    last=$method runs+=" $method-$n"
    export "EXPLORE_${method}_$n=$flags"
done <<<"${grid#$'\n'}"
share_columns "$base" "$RUNS"
more[1]+=" --holdout ${HOLDOUT:-0.3}"
every_column semi $runs
"$PYTHON" experiments/search.py --data $DATA --runs "$RUNS" --seed $SEEDS --perceptor "$PERCEPTOR" --out "$OUT" ${OOM:+--oom $OOM}
[ -z "$failed" ] || { echo "error: not finished:$failed; the same command goes on from there" >&2; exit 1; }
