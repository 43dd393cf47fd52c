#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Line coverage of rooms by the unit tests that just ran; fails below the limit.
# usage: scripts/coverage.sh BUILD PERCENT ROOM...
set -euo pipefail
build="$1" limit="$2"
shift 2
llvm-profdata-14 merge -sparse "$build"/profiles/*.profraw -o "$build/unit.profdata"
objects=()
for program in "$build"/unit_*; do
  [[ -x "$program" && -f "$program" ]] && objects+=(-object "$program")
done
status=0
for room in "$@"; do
  percent="$(llvm-cov-14 export -summary-only -instr-profile "$build/unit.profdata" "${objects[@]}" \
    -ignore-filename-regex='(/usr/|tests/)' |
    python3 -c '
import json, sys
room = "/src/" + sys.argv[1] + "/"
link = "/include/vmsieve/" + sys.argv[1] + "/"
files = [f for f in json.load(sys.stdin)["data"][0]["files"] if room in f["filename"] or link in f["filename"]]
lines = sum(f["summary"]["lines"]["count"] for f in files)
covered = sum(f["summary"]["lines"]["covered"] for f in files)
print("%.1f" % (100.0 * covered / lines if lines else 0))' "$room")"
  printf 'line coverage of %-6s %s%%\n' "$room" "$percent"
  if ! python3 -c 'import sys; sys.exit(float(sys.argv[1]) < float(sys.argv[2]))' "$percent" "$limit"; then
    printf 'line coverage of %s is below %s%%\n' "$room" "$limit" >&2
    status=1
  fi
done
exit "$status"
