#!/usr/bin/env bash
# COX beside the controls, each a simpler idea that might explain its gain (docs/method.md, "Further controls").
# An ensemble takes three times as long as its method: METHODS="… ensemble" adds it.
#
# Variables: worlds.sh. Writes experiments/results/controls/.
. "$(dirname "$0")/worlds.sh"
methods=${METHODS:-raw labelprop procrustes erm uml freematch selftrain cox}
every_column semi $methods
collect --setting semi --method $methods
