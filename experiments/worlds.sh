# What the experiments share, sourced by their files: the settings of every world, the runs of every column, the table.
#
# An experiment is a file beside this one, `bash experiments/table2.sh`. All take, as environment variables,
#   DATA     data sets by name or folder, e.g. DATA="synth ../shared/data/handwritten"; default: synth
#   OOM      modalities to learn, one column each; default: all that the data set has (digits: rgb pen audio)
#   SEEDS    default: 0 1 2 3 4             SETTING    semi, unsup or both; each experiment has its default
#   METHODS  each experiment has its own    PERCEPTOR  default: bind
#   SIZE     small: the settings below, for 2 cores without a GPU; full: the stages' defaults, ViT-T/16 and 50 epochs
#   RUNS     runs/experiments-SIZE, shared by all experiments, so that each run is made once
#   OUT      experiments/results/NAME       EXTRACT, CONNECT, EXPLORE  further flags of the stages, for every column
#   ADD      records.csv of an earlier collection, for the runs that RUNS lacks; ADD_METHODS: of these methods alone
# and PYTHON and JOBS as run.sh does. Finished work is skipped: the same command goes on after a stop.
set -euo pipefail
cd "$(dirname "$0")/.."
given="" experiment=$(basename "$0" .sh)
for v in DATA OOM SEEDS SETTING METHODS ADD ADD_METHODS PERCEPTOR SIZE EXTRACT CONNECT EXPLORE "${!EXPLORE_@}"; do
    [ -z "${!v:-}" ] || given+="$v=\"${!v}\" "
done
export COMMAND="${given}bash experiments/$experiment.sh${*:+ $*}"
export PYTHON=${PYTHON:-.venv/bin/python} SEEDS=${SEEDS:-0 1 2 3 4} PERCEPTOR=${PERCEPTOR:-bind} SIZE=${SIZE:-small}
export RUNS=${RUNS:-runs/experiments-$SIZE}
DATA=${DATA:-synth} OUT=${OUT:-experiments/results/$experiment} failed=
[ ! -f experiments/results/search/chosen.sh ] || . experiments/results/search/chosen.sh         # search.sh
user=("${EXTRACT:-}" "${CONNECT:-}" "${EXPLORE:-}") more=("${user[@]}")         # flags behind a column's own

settings() {  # settings DATA OOM: sets EXTRACT, CONNECT and EXPLORE of a column
    local world; world=$(basename "$1")
    EXTRACT= CONNECT= EXPLORE=
    case $SIZE/$world in
    full/*) EXPLORE="--epochs 50" ;;
    */synth) EXTRACT="--image-size 24 --bind-epochs 12" EXPLORE="--epochs 10"
        CONNECT="--width 64 --depth 3 --patch 6 --slice 3 --connect-steps 200" ;;
    */digits) EXTRACT="--image-size 28 --series-length 128 --bind-epochs 10" EXPLORE="--epochs 6"
        CONNECT="--width 64 --depth 3 --patch 7 --slice 4" ;;
    */emoji) EXTRACT="--image-size 32 --series-length 512" CONNECT="--width 64 --depth 3 --patch 8 --slice 8" EXPLORE="--epochs 20" ;;
    */handwritten*) EXTRACT="--image-size 16" CONNECT="--width 64 --depth 3 --patch 4" EXPLORE="--epochs 20" ;;
    */robot_*) CONNECT="--width 128 --depth 2 --batch 32 --labelled-batch 32" EXPLORE="--batch 32 --labelled-batch 32 --epochs 20" ;;
    *) EXTRACT="--image-size 32" CONNECT="--width 64 --depth 4 --patch 8" ;;
    esac
    CONNECT="--labels 0.1 --warmup-epochs 10 $CONNECT"         # a folder's defaults are all labels and 200 steps
    case $world/$2 in
    synth/video) CONNECT=${CONNECT/--patch 6/--patch 8} ;;
    digits/audio) CONNECT+=" --labels 0.02" ;;                  # 10% leave no headroom
    esac
    EXTRACT+=" ${more[0]}" CONNECT+=" ${more[1]}" EXPLORE+=" ${more[2]}"
}

columns() {  # columns DATA: the modalities that take their turn as the new sensor, a line each
    if [ -n "${OOM:-}" ]; then printf '%s\n' $OOM
    elif [ "$(basename "$1")" = digits ]; then printf '%s\n' rgb pen audio
    else "$PYTHON" -c "import sys
from cox_oom import data, run
run.script(lambda name: print(*data.read(name).modalities, sep='\n'), sys.argv[1])" "$1"
    fi
}

every_column() {  # every_column SETTING METHODS...: these methods on every column by run.sh; a failure does not stop the others
    local data oom found setting=$1; shift
    for data in $DATA; do
        found=$(columns "$data") || { failed+=" $(basename "$data")"; continue; }
        while IFS= read -r -u 3 oom; do
            settings "$data" "$oom"
            echo "==== $(basename "$data"), $oom, $setting: $*"
            DATA=$data OOM=$oom SETTING=$setting METHODS=$* EXTRACT=$EXTRACT CONNECT=$CONNECT EXPLORE=$EXPLORE \
                EVALUATE="${EVALUATE:---task classification}" bash run.sh || failed+=" $(basename "$data")/$oom/$setting"
        done 3<<< "$found"
    done
}

share_columns() {  # share_columns FROM TO: share() of every column; a data set that cannot be read is left to every_column
    local data oom found
    for data in $DATA; do
        found=$(columns "$data" 2> /dev/null) || continue
        while IFS= read -r -u 3 oom; do share "$1" "$2" "$data" "$oom"; done 3<<< "$found"
    done
}

share() {  # share FROM TO DATA OOM: stage 1's files of the tree FROM serve the tree TO as well
    local world; world=$(basename "$3")
    local banks=${PERCEPTOR//[\/:]/_}/banks; [ "$PERCEPTOR" = bind ] && banks=bind/no-$4
    local part
    for part in inputs "$banks"; do
        mkdir -p "$1/$world/$part" "$(dirname "$2/$world/$part")"
        [ -e "$2/$world/$part" ] || ln -s "$(cd "$1/$world/$part" && pwd)" "$2/$world/$part"
    done
}

collect() {  # collect FLAGS...: the experiment's table, plot and report from all finished runs that match
    "$PYTHON" experiments/collect.py "$experiment" --data $DATA ${OOM:+--oom $OOM} --seed $SEEDS --perceptor "$PERCEPTOR" \
        --runs "$RUNS" --out "$OUT" ${ADD:+--add $ADD} ${ADD_METHODS:+--add-method $ADD_METHODS} "$@" || [ -n "$failed" ] || exit 2
    [ -z "$failed" ] || { echo "error: not finished:$failed; the same command goes on from there" >&2; exit 1; }
}
