#!/bin/sh
# Checks the bundle in service on recent parts; where the policy is broken, trains its run further with them and puts the result into
# service if it keeps the policy and loses nothing. What is after the six words goes to `steadfast retrain`.
#
#   retrain.sh RUN OLD_DATA RECENT VERSIONS POLICY OUT [--max-loss 1 …]
set -u
run=$1 old=$2 recent=$3 versions=$4 policy=$5 out=$6
shift 6
steadfast check "$versions/current" --data "$recent" --policy "$policy" --history "$versions/checks.jsonl"
broken=$?
[ $broken -eq 1 ] || exit $broken
exec steadfast retrain "$run" --old-data "$old" --data "$recent" --out "$out" --exports "$versions" --policy "$policy" "$@"
