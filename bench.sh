#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Every way of checkpointing on the same real guest, in turns; figures, page and plots in bench/results.
set -euo pipefail
cd "$(dirname "$0")"

wanted=" $* "
if [[ $wanted != *" --help "* && $wanted != *" -h "* && $wanted != *" --page "* ]]; then
    echo "== installing what is missing"
    scripts/install-deps.sh
    scripts/lab.sh all
    if [[ ! -x build/release/vmsieve ]]; then
        echo "== building"
        cmake --preset release >/dev/null
        cmake --build --preset release -j "$(nproc)" | tail -n 1
    fi
    echo "== measuring"
fi
exec /usr/bin/python3 -m bench.peers "$@"
