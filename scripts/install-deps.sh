#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs the Debian packages that building, testing and the demo need; with --long, also those of the long tests.
# When none is missing it neither touches the network nor needs root.
set -euo pipefail

build=(g++ cmake ninja-build pkg-config
       clang-14 clang-format-14 clang-format clang-tidy lld llvm-14 libclang-rt-14-dev
       nlohmann-json3-dev libcli11-dev libfmt-dev
       libzstd-dev liblz4-dev libxxhash-dev liburing-dev libcairo2-dev libvirt-dev libxml2-dev
       libgtest-dev libgmock-dev)
run=(qemu-system-x86 qemu-system-arm qemu-efi-aarch64 qemu-utils
     gcc-aarch64-linux-gnu libc6-dev-arm64-cross libsqlite3-dev e2fsprogs
     fonts-dejavu-core busybox-static cpio xz-utils zstd
     python3 python3-pytest python3-pytest-xdist procps strace
     makedumpfile python3-drgn patchelf
     libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients)
long=(ceph-mon ceph-osd ceph-common qemu-block-extra)
[[ ${1:-} == --long ]] && run+=("${long[@]}")

# One dpkg-query for all: the usual case, nothing missing, must cost nothing.
installed=$(dpkg-query -W -f='${Package} ${db:Status-Status}\n' \
                "${build[@]}" "${run[@]}" 2>/dev/null || true)
missing=()
for package in "${build[@]}" "${run[@]}"; do
    grep -qFx "$package installed" <<<"$installed" || missing+=("$package")
done

if (( ${#missing[@]} == 0 )); then
    echo "install-deps: nothing is missing"
    exit 0
fi

as_root=()
(( EUID == 0 )) || as_root=(sudo)

echo "install-deps: installing ${missing[*]}"
"${as_root[@]}" apt-get update -qq
# --no-install-recommends: QEMU's recommendations bring a desktop along.
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}"
