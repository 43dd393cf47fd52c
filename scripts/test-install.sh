#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs a build into a temporary prefix and builds an outside program against it.
# usage: scripts/test-install.sh BUILD
set -euo pipefail
build="$1"
prefix="$(mktemp -d)"
trap 'rm -rf "$prefix"' EXIT
cmake --install "$build" --prefix "$prefix/usr" >/dev/null
for file in bin/vmsieve share/man/man1/vmsieve.1 share/bash-completion/completions/vmsieve; do
  [[ -e "$prefix/usr/$file" ]] || { echo "not installed: $file" >&2; exit 1; }
done
mkdir "$prefix/user"
cat >"$prefix/user/CMakeLists.txt" <<'EOF'
cmake_minimum_required(VERSION 3.25)
project(user LANGUAGES CXX)
find_package(vmsieve 0.1 REQUIRED)
add_executable(user user.cc)
target_link_libraries(user PRIVATE vmsieve::vmsieve)
add_executable(look look.cc)
target_link_libraries(look PRIVATE vmsieve::vmsieve)
EOF
cat >"$prefix/user/user.cc" <<'EOF'
#include <cstdio>
#include <vmsieve/capture/inspect.h>
#include <vmsieve/capture/save.h>
#include <vmsieve/restore/restore.h>
#include <vmsieve/store/store.h>
int main() {
  const auto processes = vmsieve::list_qemu_processes();
  const auto store = vmsieve::open_directory_store("/nowhere", false);
  std::printf("%d %s\n", processes.ok(), std::string(to_string(store.error().kind())).c_str());
  return processes.ok() && !store.ok() ? 0 : 1;
}
EOF
cp "$(dirname "$0")/../examples/look.cc" "$prefix/user"
cmake -S "$prefix/user" -B "$prefix/user/build" -DCMAKE_PREFIX_PATH="$prefix/usr" >/dev/null
cmake --build "$prefix/user/build" >/dev/null
"$prefix/user/build/user"
# There is nothing to look at: it must say so.
{ "$prefix/user/build/look" /nowhere 2>&1 || true; } | grep -q nowhere
"$prefix/usr/bin/vmsieve" --version
