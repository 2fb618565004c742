#!/usr/bin/env bash
# Which recordings to label next? Rounds of labels that several strategies choose, against labels drawn at random.
#
#   PER_CLASS=2 labels per class at the start   COUNT=20 labels a round   ROUNDS=3   STRATEGIES: default all
#
# Other variables: worlds.sh; METHODS is the one method that is trained. Writes experiments/results/suggest/.
. "$(dirname "$0")/worlds.sh"
RUNS=$RUNS/suggest
for data in $DATA; do
    while IFS= read -r -u 3 oom; do
        settings "$data" "$oom"
        "$PYTHON" extract_features.py --data "$data" --oom "$oom" --runs "$RUNS" $EXTRACT
        for seed in $SEEDS; do
            "$PYTHON" experiments/suggest.py --data "$data" --oom "$oom" --seed "$seed" --runs "$RUNS" --out "$OUT" \
                --method "${METHODS:-cox}" --per-class "${PER_CLASS:-2}" --count "${COUNT:-20}" --rounds "${ROUNDS:-3}" \
                ${STRATEGIES:+--strategy $STRATEGIES} --connect "$CONNECT" --explore "$EXPLORE"
        done
    done 3<<< "$(columns "$data")"
done
