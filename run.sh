#!/usr/bin/env bash
# One data set through the four stages: the record of an experiment. Run it from the repository's root.
#
#   bash run.sh                                     the embedded data set, audio as the new sensor
#   DATA=my_robot OOM=sonar bash run.sh             your own folder with manifest.csv (README.md, "Your own sensor")
#   DATA=msrvtt EXTRACT="--root DIR" PERCEPTOR=imagebind OOM=audio bash run.sh            a public data set (docs/data/)
#   SETTING=unsup DATA=my_robot OOM=sonar bash run.sh                                     no label, no pair at all
#   METHODS="cox cox-soft" EXPLORE_cox_soft="--w-agree 0.3" bash run.sh                   two runs of one method
#   LABELS="0.02 0.05 0.1 0.2" bash run.sh          how many labels are enough: RUNS/labels-0.02 and so on (docs/watch.md)
#
# Finished work is skipped, so the same command goes on after a stop. On a GPU set JOBS to what fits its memory.
set -euo pipefail
export PYTHON=${PYTHON:-.venv/bin/python} DATA=${DATA:-synth} OOM=${OOM:-audio} SETTING=${SETTING:-semi}
export RUNS=${RUNS:-runs}                     # everything is written under it
export PERCEPTOR=${PERCEPTOR:-bind}           # or imagebind, languagebind, hf:MODEL, rgb=hf:MODEL,audio=imagebind
METHODS=$("$PYTHON" -m cox_oom.methods --setting "$SETTING" --methods ${METHODS:-})    # METHOD-TAG: --tag TAG
SEEDS=${SEEDS:-0 1 2}
LABELS=${LABELS:-}                            # shares of labels, each with runs of its own; empty: stage 2's own share
export EXTRACT=${EXTRACT:-} CONNECT=${CONNECT:-} EXPLORE=${EXPLORE:-}     # further flags of stages 1, 2 and 3
# EXPLORE_method, EXPLORE_method_tag (- becomes _): further flags of stage 3 for this method, for this run, if exported
case "${LABELS:+$SETTING} $CONNECT " in
*unsup*) echo "error: LABELS: without labels (SETTING=unsup) there is no share of them" >&2; exit 2 ;;
*--labels*|*--per-class*) [ -z "$LABELS" ] || { echo "error: LABELS and CONNECT both say how many labels; give one" >&2; exit 2; } ;;
esac
cores=$(env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
JOBS=${JOBS:-$cores}                          # seeds and methods side by side
name=$([ -d "$DATA" ] && cd "$DATA" && basename "$(pwd -P)" || basename "$DATA")
OUT=${OUT:-$RUNS/$name/report}                # table.md, table.csv, table.json, report.html
export log=$RUNS/$name/log/${PERCEPTOR//[\/:]/_}-$OOM-$SETTING
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}   # waiting threads sleep: beside other work up to 10 times faster
mkdir -p "$log"

side_by_side() {  # side_by_side FUNCTION: call it with every line's words, JOBS at a time, the cores shared out
    local lines; mapfile -t lines
    export threads=$((cores / (${#lines[@]} < JOBS ? ${#lines[@]} : JOBS)))
    [ "$threads" -ge 1 ] || threads=1
    printf '%s\n' "${lines[@]}" | xargs -P "$JOBS" -L 1 bash -c "$1 \"\$@\"" _ ||
        { echo "error: not every job succeeded, see above; the same command goes on from here" >&2; return 1; }
}
job() {  # job NAME COMMAND...: output to the log, one line on the screen, the end of the log after a failure
    local file="$log/$1.log"
    if OMP_NUM_THREADS=$threads "${@:2}" >"$file" 2>&1; then
        echo "  $1: $(grep -E 'already done|done in' "$file" | tail -n 1 | sed 's/ Next:.*//')"
        grep -E '^ *note: ' "$file" | sed 's/^ */    /' || true
    else
        { echo "error: $1 failed; the last lines of $file:"; tail -n 5 "$file"; } >&2
        return 1
    fi
}
share() {  # share FRACTION: stage 1's files of RUNS serve the runs of this share of labels as well
    local part link
    for part in "$RUNS/$name"/{inputs,*/no-"$OOM",*/banks}; do
        link="$RUNS/labels-$1/${part#"$RUNS"/}"
        [ -e "$part" ] && [ ! -e "$link" ] || continue
        mkdir -p "$(dirname "$link")" && ln -s "$(cd "$part" && pwd)" "$link"
    done
}
connect() {  # connect SEED [FRACTION]
    job "connect-seed$1${2:+-labels-$2}" "$PYTHON" train_connect.py --data "$DATA" --oom "$OOM" --perceptor "$PERCEPTOR" \
        --runs "$RUNS${2:+/labels-$2}" --setting "$SETTING" --seed "$1" $CONNECT ${2:+--labels "$2"}
}
explore() {  # explore SEED METHOD [FRACTION]
    local method=${2%%-*} run=EXPLORE_${2//-/_} flags=EXPLORE_${2%%-*} tag=
    [ "$2" = "$method" ] && run= || tag=${2#*-}
    job "$2-seed$1${3:+-labels-$3}" "$PYTHON" train_explore.py --data "$DATA" --oom "$OOM" --perceptor "$PERCEPTOR" \
        --runs "$RUNS${3:+/labels-$3}" --setting "$SETTING" --seed "$1" --method "$method" ${tag:+--tag "$tag"} $EXPLORE ${!flags:-} ${run:+${!run:-}}
}
export -f job connect explore

echo "== 1 extract_features: perceptor and banks, all $cores cores"
"$PYTHON" extract_features.py --data "$DATA" --oom "$OOM" --perceptor "$PERCEPTOR" --runs "$RUNS" $EXTRACT

trees=("$RUNS")
[ -z "$LABELS" ] || { trees=(); for f in $LABELS; do share "$f"; trees+=("$RUNS/labels-$f"); done; }

echo "== 2 train_connect: seeds $SEEDS${LABELS:+, labels $LABELS}; logs in $log"
for f in ${LABELS:-""}; do for seed in $SEEDS; do echo "$seed${f:+ $f}"; done; done | side_by_side connect

echo "== 3 train_explore: $METHODS"
for f in ${LABELS:-""}; do for seed in $SEEDS; do for method in $METHODS; do echo "$seed $method${f:+ $f}"; done; done; done |
    side_by_side explore

[ "${EVALUATE:-}" = none ] && exit                     # EVALUATE: flags of stage 4 in the place of --table --out
echo "== 4 evaluate"
"$PYTHON" evaluate.py --data "$DATA" --oom "$OOM" --perceptor "$PERCEPTOR" --runs "${trees[@]}" ${EVALUATE:---table --out "$OUT"}
