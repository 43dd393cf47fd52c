#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs every fuzzer of a build for SECONDS, JOBS at a time; stops with the finding of the first that
# has one.
# The parsers of what comes from furthest away take all of it (the format's four together twice), the others a
# sixth.
# usage: scripts/fuzz.sh BUILD SECONDS JOBS
set -euo pipefail
build="$1" seconds="$2" jobs="$3"

run_one() {
  local fuzzer="$1" seconds="$2" log
  case "$(basename "$fuzzer")" in
    vmcoreinfo_fuzz | page_tables_fuzz | index_fuzz | qmp_fuzz) ;;
    frame_fuzz | manifest_fuzz | trailer_fuzz) seconds=$((seconds / 3)) ;;
    *) seconds=$((seconds / 6)) ;;
  esac
  log="$fuzzer.log"
  if "$fuzzer" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix="$fuzzer." >"$log" 2>&1; then
    printf '%-24s %s\n' "$(basename "$fuzzer")" \
      "$(grep -E 'number_of_executed_units' "$log" | awk '{print $2 " runs, no finding"}')"
  else
    tail -n 60 "$log"
    printf '%s FAILED, see %s\n' "$fuzzer" "$log"
    return 1
  fi
}
export -f run_one
# The coverage build writes a profile at exit; a fuzzer's is of no use.
export LLVM_PROFILE_FILE=/dev/null
find "$build" -maxdepth 1 -name '*_fuzz' -type f -perm -u+x | sort |
  xargs -P "$jobs" -I{} bash -c 'run_one {} '"$seconds"
