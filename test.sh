#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing, builds, and runs the tests. See docs/testing.md.
set -euo pipefail
cd "$(dirname "$0")"

usage() {
  cat <<'EOF'
usage: ./test.sh [--long] [--only STEP]...

  --long       longer runs of the guest tests and fuzzers, more guest kernels, and thread sanitizer (hours)
  --only STEP  run just these steps: deps, format, build, unit, fuzz, tidy, install, guests

Without options everything that is promised to users is tested, in less than 40 minutes on 2 cores.
EOF
}

long=0
only=()
while (($#)); do
  case "$1" in
    --long) long=1 ;;
    --only)
      shift
      only+=("${1:?--only needs a step}")
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    *)
      usage >&2
      exit 2
      ;;
  esac
  shift
done

wanted() {
  ((${#only[@]} == 0)) && return 0
  local step
  for step in "${only[@]}"; do [[ "$step" == "$1" ]] && return 0; done
  return 1
}

step() { printf '\n== %s (%ds)\n' "$1" "$SECONDS"; }

jobs="$(nproc)"
fuzz_seconds=42
if ((long)); then
  fuzz_seconds=1800
  export VMSIEVE_LONG=1
fi

if wanted deps; then
  step "installing what is missing"
  if ((long)); then scripts/install-deps.sh --long; else scripts/install-deps.sh; fi
  if ((long)); then scripts/lab.sh matrix; else scripts/lab.sh all; fi
fi

if wanted format; then
  step "clang-format"
  git ls-files -co --exclude-standard '*.cc' '*.h' | xargs -r clang-format --dry-run -Werror
fi

if wanted build; then
  step "building: g++ release, clang with sanitizers, coverage and fuzzers"
  cmake --preset release >build.log 2>&1 || { cat build.log; exit 1; }
  cmake --build --preset release -j "$jobs"
  cmake --preset check >build.log 2>&1 || { cat build.log; exit 1; }
  cmake --build --preset check -j "$jobs"
  rm -f build.log
fi

if wanted unit; then
  step "unit tests under address and undefined-behaviour sanitizers"
  rm -rf build/check/profiles
  LLVM_PROFILE_FILE="$PWD/build/check/profiles/%p.profraw" \
    ctest --test-dir build/check -L unit --output-on-failure -j "$jobs"
  scripts/coverage.sh build/check 90 guest pages image store
  if ((long)); then
    cmake --preset tsan
    cmake --build --preset tsan -j "$jobs"
    ctest --test-dir build/tsan -L unit --output-on-failure -j "$jobs"
  fi
fi

if wanted fuzz; then
  step "fuzzers, up to $fuzz_seconds s each"
  scripts/fuzz.sh build/check "$fuzz_seconds" "$jobs"
fi

if wanted tidy; then
  step "clang-tidy"
  # The path-sensitive checks take twice as long as all others together.
  cmake --preset tidy >/dev/null
  tidy=(clang-tidy-14 -p build/tidy --quiet)
  ((long)) || tidy+=(--checks='-clang-analyzer-*')
  find build/tidy/unity -name '*.cc' | xargs -P "$jobs" -n 1 "${tidy[@]}" 2>/dev/null
fi

if wanted install; then
  step "installed package: an outside program builds and links against it"
  scripts/test-install.sh build/release
fi

if wanted guests; then
  step "real guests"
  # Debian's own interpreter: its python3-pytest is what install-deps.sh installed.
  # What the tests leave is 26 GB: kept after a failure only.
  scratch="$(mktemp -d)"
  /usr/bin/python3 -m pytest -q -n 2 --dist loadfile --durations=15 -p no:cacheprovider --basetemp="$scratch/t" tests ||
    { echo "files of the tests are in $scratch"; exit 1; }
  rm -rf "$scratch"
fi

step "all done"
