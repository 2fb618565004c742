#!/usr/bin/env bash
# COX beside simpler ideas that might explain its gain (docs/method.md, "Further controls"): every method that sees few
# labels, but for the ensemble, which takes three times as long (METHODS="… ensemble").
#
# Variables: worlds.sh. Writes experiments/results/controls/.
. "$(dirname "$0")/worlds.sh"
methods=" ${METHODS:-$("$PYTHON" -m cox_oom.methods --setting semi)} "
[ -n "${METHODS:-}" ] || for m in random aligned ensemble; do methods=${methods/ $m / }; done
every_column semi $methods
collect --setting semi --method $methods
