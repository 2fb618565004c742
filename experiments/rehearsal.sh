#!/usr/bin/env bash
# A rehearsal at the paper's size: what each stage takes, in minutes and memory.
# 1. Stage 1 on MSR-VTT's and VGGSound's true annotation files with CLIPS generated clips each.
# 2. Stages 2 to 4 on ROWS rows of generated inputs and banks, with a small learner.
# Variables: ROWS, CLIPS (0: no clips), ANNOT, RUNS, OUT, PYTHON, EPOCHS, WARMUP, REFRESHES, ROUNDS, METHODS;
# SLOT: a command before each part, such as nice. Writes OUT/rehearsal.csv, a line a part.
set -euo pipefail
cd "$(dirname "$0")/.."
ROWS=${ROWS:-100000} CLIPS=${CLIPS:-200} ANNOT=${ANNOT:-/work/shared/data/annot} PYTHON=${PYTHON:-python} SLOT=${SLOT:-}
RUNS=${RUNS:-runs/rehearsal} OUT=${OUT:-$RUNS} EPOCHS=${EPOCHS:-2} WARMUP=${WARMUP:-1} REFRESHES=${REFRESHES:-2}
ROUNDS=${ROUNDS:-6} METHODS=${METHODS:-erm cox}
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} PYTHONPATH=$PWD

part() { # part NAME ROWS COMMAND…
    local name=$1 rows=$2
    shift 2
    $SLOT "$PYTHON" experiments/rehearsal.py run --out "$OUT" --part "$name" --rows "$rows" -- "$@"
}

if [ "$CLIPS" -gt 0 ]; then
    [ -d "$ANNOT/msrvtt" ] || { echo "error: $ANNOT/msrvtt is not there; give ANNOT, or CLIPS=0" >&2; exit 2; }
    $SLOT "$PYTHON" experiments/rehearsal.py clips --annot "$ANNOT" --to "$RUNS/clips" --count "$CLIPS"
    for data in msrvtt vggs; do
        for oom in audio video; do
            part "stage 1, $data, $oom" "$CLIPS" "$PYTHON" extract_features.py --data $data --root "$RUNS/clips/$data" \
                --oom $oom --im language --runs "$RUNS/stage1-$oom" --on-error skip --bind-epochs 1 --bind-width 8
        done
    done
fi
where="--data rehearsal --oom audio --perceptor generated --runs $RUNS/$ROWS --device cpu"
[ -f "$RUNS/$ROWS/rehearsal/inputs/audio.pt" ] ||
    part "writing inputs and banks" "$ROWS" "$PYTHON" experiments/rehearsal.py files --runs "$RUNS/$ROWS" --rows "$ROWS"
part "stage 2" "$ROWS" "$PYTHON" train_connect.py $where --labels 0.1 --width 64 --depth 4 --warmup-epochs "$WARMUP"
for method in $METHODS; do
    flags=""
    [ "$method" = cox ] && flags="--refreshes $REFRESHES --rounds $ROUNDS"
    part "stage 3, $method" "$ROWS" "$PYTHON" train_explore.py $where --method "$method" --epochs "$EPOCHS" $flags
done
part "stage 4" "$ROWS" "$PYTHON" evaluate.py $where
cat "$OUT/rehearsal.csv"
