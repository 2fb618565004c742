#!/usr/bin/env bash
# No labels, no pairs: the paper's start as printed (literal), clusters named by the classes' geometry (spectral), and the
# names of one labelled item per class spread along the graph of the readings (--name-with 1). Ten seeds.
# Variables: worlds.sh. Writes experiments/results/unsup/: accuracy, accuracy under the best renaming, NMI, and whether
# it is above chance.
SEEDS=${SEEDS:-0 1 2 3 4 5 6 7 8 9}
. "$(dirname "$0")/worlds.sh"
base=$RUNS trees=()
for start in literal spectral named; do
    RUNS=$base/unsup-$start
    trees+=("$RUNS")
    share_columns "$base" "$RUNS"
    case $start in
    literal) more[1]="${user[1]} --init literal" ;;
    spectral) more[1]="${user[1]} --init spectral" ;;
    named) more[1]="${user[1]} --init spectral --name-with 1" ;;
    esac
    every_column unsup ${METHODS:-random cox}
done
collect --runs "${trees[@]}" --setting unsup --method ${METHODS:-random cox}
