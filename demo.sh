#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing, builds, boots a real guest, checkpoints it, kills it, brings it back.
set -euo pipefail
cd "$(dirname "$0")"

echo "== installing what is missing"
scripts/install-deps.sh
scripts/lab.sh base
echo "== building"
cmake --preset release >/dev/null
cmake --build --preset release -j "$(nproc)" | tail -n 1
exec /usr/bin/python3 -m scripts.demo "$@"
