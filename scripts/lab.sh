#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fills the lab: guest kernels, QEMU builds and the initramfs that the tests
# and the demo boot. Everything is kept in one cache folder; what is already
# there whole is left alone, so a second run works offline and at once.
set -eEuo pipefail

lab=${VMSIEVE_LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/vmsieve-lab}
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    cat <<USAGE
Usage: scripts/lab.sh WHAT...

  base           guest kernel 6.1 and the initramfs: all that the demo needs
  all            base, guest kernels 6.12 and newest, QEMU 10.0: all that the tests need
  matrix         all, every other guest kernel, two more QEMUs, a newer libvirt, crash, a kernel's
                 debugging information: what the long tests need
  initramfs      the guest's user space, rebuilt when its sources changed

  kernel-5.10           from bullseye
  kernel-6.1            from bookworm
  kernel-6.1-rt         from bookworm, the flavour with PREEMPT_RT
  kernel-6.12           from bookworm-backports
  kernel-6.12-generic   from bookworm-backports; the other ones are of the cloud flavour
  kernel-sid            from sid
  kernel-newest         from trixie-backports
  debug-6.1             debugging information of kernel-6.1, 1 GB: what crash and drgn want
  qemu-5.2              from bullseye
  qemu-10.0             from bookworm-backports
  qemu-newest           from trixie-backports, with trixie's libraries
  crash                 from sid, with its libraries
  libvirt-backports     libvirt and QEMU of bookworm-backports, to be laid over /usr
  arm64                 for guests on arm64: kernel 6.1, initramfs
  initramfs-arm64, kernel-6.1-arm64
                        these alone
  kernel-16k-arm64      with pages of 16 KiB, from bookworm-backports
  kernel-newest-arm64   from trixie-backports
  qemu-10.0-arm64       from bookworm-backports

  path           print the lab's folder

The lab is \$VMSIEVE_LAB, else vmsieve-lab in the user's cache folder: $lab
Packages come from the Debian mirror that this machine's apt uses, or from
\$VMSIEVE_DEBIAN_MIRROR. The machine's own apt sources are never changed.
USAGE
}

say() { echo "lab: $*"; }
die() { echo "lab: $*" >&2; exit 1; }

# Everything is made here first and moved to its place when it is whole.
making=$lab/.making

# ---- Debian packages from suites that this machine does not use ------------

mirror_uri() {
    if [[ -n ${VMSIEVE_DEBIAN_MIRROR:-} ]]; then
        echo "$VMSIEVE_DEBIAN_MIRROR"
        return
    fi
    # apt itself reads the sources, so that every format it knows is understood.
    # --no-release-info: also where no list was ever downloaded.
    local uri
    # shellcheck disable=SC2016  # $(...) here is apt's notation, not the shell's
    uri=$(apt-get indextargets --no-release-info \
                  --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
          awk '$1 ~ /^(bookworm|trixie|sid|stable|oldstable|testing|unstable)$/ &&
               $2 == "main" && !seen { print $3; seen = 1 }')
    [[ -n $uri ]] || die "apt's sources name no Debian mirror: set VMSIEVE_DEBIAN_MIRROR"
    echo "$uri"
}

# apt_in SUITE COMMAND...: runs COMMAND with an apt whose sources, lists and
# caches are the lab's own. The machine's proxy and download settings stay.
apt_in() {
    local home=$lab/apt/$1
    shift
    APT_CONFIG=$home/apt.conf "$@"
}

# open_suites NAME STATUS SUITE...: makes the apt of apt_in NAME, with fresh
# lists. STATUS is the dpkg status file to resolve dependencies against:
# /dev/null makes only the suites' own packages visible. Packages are amd64
# ones, or with suites_architecture=arm64 those.
open_suites() {
    local name=$1 status=$2 suite uri
    shift 2
    local home=$lab/apt/$name
    rm -rf "$home"
    mkdir -p "$home"/{lists/partial,cache/archives/partial,parts}
    uri=$(mirror_uri)
    for suite in "$@"; do
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $suite main"
    done > "$home/sources.list"
    {
        cat <<CONF
Dir::Etc::sourcelist "$home/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "$home/parts";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "$home";
Dir::State::lists "$home/lists";
Dir::State::status "$status";
Dir::Cache "$home/cache";
APT::Architecture "${suites_architecture:-amd64}";
APT::Architectures { "${suites_architecture:-amd64}"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
CONF
        apt-config dump | grep -E '^Acquire::(http|https|ftp|Check|Retries)' || true
    } > "$home/apt.conf"
    say "reading the package lists of $*"
    apt_in "$name" apt-get update -qq
}

# The lists are large, and the next download wants fresh ones anyway.
close_suites() { rm -rf "$lab/apt/$1"; }

# unpack_packages NAME FOLDER PACKAGE...
unpack_packages() {
    local name=$1 folder=$2 debs deb
    shift 2
    debs=$lab/apt/$name/debs
    rm -rf "$debs"
    mkdir -p "$debs" "$folder"
    say "downloading $*"
    (cd "$debs" && apt_in "$name" apt-get download -qq "$@")
    for deb in "$debs"/*.deb; do
        dpkg -x "$deb" "$folder"
    done
    rm -rf "$debs"
}

# depends_matching NAME PACKAGE REGEX: the dependencies of PACKAGE that match.
depends_matching() {
    apt_in "$1" apt-cache depends "$2" |
        awk -v want="$3" '$1 == "Depends:" && $2 ~ want { print $2 }'
}

# ---- guest kernels ---------------------------------------------------------

# The cloud kernel's virtio drivers are modules, which a guest needs only for
# virtio devices: an archive to append to the initramfs.
drivers='/(virtio|virtio_ring|virtio_pci|virtio_pci_modern_dev|virtio_pci_legacy_dev|virtio_mmio|virtio_blk|virtio_balloon|virtio_mem'
# What a disk of any model with ext4 on it needs, and the port of a guest agent.
drivers+='|ext4|jbd2|mbcache|crc16|crc32c_generic|libcrc32c|crc32c-cryptoapi|scsi_common|scsi_mod|sd_mod|virtio_scsi'
drivers+='|libata|libahci|ahci|ata_piix|nvme|nvme-core|nvme-auth|nvme-common|nvme-keyring|t10-pi|crc64|crc64-rocksoft|crc64-rocksoft_generic'
drivers+='|crct10dif_common|crc-t10dif|crct10dif_generic|crc-itu-t|virtio_console|hkdf)\.ko(\.xz)?$'

# pack_drivers FOLDER ARCHIVE
pack_drivers() {
    local root=$making/drivers
    mkdir -p "$root/drivers"
    find "$1" -type f | { grep -E "$drivers" || true; } | xargs -r cp -t "$root/drivers"
    find "$root" -name '*.xz' -exec unxz {} +
    pack_cpio "$root" "$2"
}

pack_cpio() {
    (cd "$1" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0 --reproducible) > "$2"
}

# need_kernel NAME SUITE [FLAVOUR]: kernels/NAME with vmlinuz, drivers.cpio and release.
need_kernel() {
    local name=kernel-$1 suite=$2 meta=linux-image-${3:-cloud-amd64} home=$lab/kernels/$1
    # With other drivers than those wanted it is unpacked anew.
    [[ -f $home/drivers.cpio && -f $home/drivers.wanted && $(<"$home/drivers.wanted") == "$drivers" ]] && return
    open_suites "$name" /dev/null "$suite"

    # The meta package names the newest image; from 7.x on the kernel and its
    # modules are in packages that the image depends on.
    local image parts
    image=$(depends_matching "$name" "$meta" '^linux-image-[0-9]')
    [[ -n $image ]] || die "$suite has no $meta"
    mapfile -t parts < <(depends_matching "$name" "$image" '^linux-(binary|modules)-')

    rm -rf "$making"
    mkdir -p "$making/home"
    unpack_packages "$name" "$making/tree" "$image" "${parts[@]}"
    find "$making/tree" \( -path '*/boot/vmlinuz-*' -o -path '*/lib/modules/*/vmlinu[xz]' \) \
         -type f -exec mv {} "$making/home/vmlinuz" \;
    [[ -f $making/home/vmlinuz ]] || die "$image holds no kernel"
    pack_drivers "$making/tree" "$making/home/drivers.cpio"
    echo "${image#linux-image-}" > "$making/home/release"
    echo "$drivers" > "$making/home/drivers.wanted"

    rm -rf "$home"
    mv "$making/home" "$home"
    close_suites "$name"
    say "kernel $1 is $(<"$home/release")"
}

# need_debug NAME SUITE: kernels/NAME/vmlinux, that kernel with its debugging information.
need_debug() {
    local name=debug-$1 suite=$2 home=$lab/kernels/$1
    need_kernel "$1" "$suite"
    [[ -f $home/vmlinux ]] && return
    open_suites "$name" /dev/null "$suite"
    rm -rf "$making"
    unpack_packages "$name" "$making/tree" "linux-image-$(<"$home/release")-dbg"
    find "$making/tree/usr/lib/debug/boot" -name 'vmlinux-*' -exec mv {} "$home/vmlinux" \;
    [[ -f $home/vmlinux ]] || die "linux-image-$(<"$home/release")-dbg holds no kernel"
    close_suites "$name"
    say "debugging information of kernel $1"
}

# need_kernel_arm64 NAME META SUITE: kernels/NAME-arm64, the newest image that
# the arm64 package META names.
need_kernel_arm64() {
    local name=kernel-$1-arm64 meta=$2 suite=$3 home=$lab/kernels/$1-arm64 image parts
    [[ -f $home/release ]] && return
    suites_architecture=arm64 open_suites "$name" /dev/null "$suite"
    image=$(depends_matching "$name" "$meta" '^linux-image-[0-9]')
    [[ -n $image ]] || die "$suite has no $meta"
    mapfile -t parts < <(depends_matching "$name" "$image" '^linux-binary-')

    rm -rf "$making"
    mkdir -p "$making/home"
    unpack_packages "$name" "$making/tree" "$image" "${parts[@]}"
    find "$making/tree" \( -path '*/boot/vmlinu*' -o -path '*/lib/modules/*/vmlinu[xz]' \) \
         -type f -exec mv {} "$making/home/vmlinuz" \;
    [[ -f $making/home/vmlinuz ]] || die "$image holds no kernel"
    echo "${image#linux-image-}" > "$making/home/release"

    rm -rf "$home"
    mv "$making/home" "$home"
    close_suites "$name"
    say "kernel $1 for arm64 is $(<"$home/release")"
}

# ---- QEMU ------------------------------------------------------------------

# QEMUs unpacked into the lab, beside the machine's own, each with the shared
# libraries that the machine lacks, or has too old.

# need_qemu VERSION STATUS PIN SUITE...: qemu-VERSION/qemu-VERSION. The last suite
# is preferred; PIN is added to the name of each package. STATUS is as for
# open_suites: with /dev/null nothing of the machine is used, not even its C library.
need_qemu() {
    local version=$1 name=qemu-$1 status=$2 pin=$3 suite=${*: -1} home=$lab/qemu-$1
    "$home/$name" --version >/dev/null 2>&1 && return
    shift 3
    open_suites "$name" "$status" "$@"

    # QEMU and its firmware must be the lab's own. Of what an installation would
    # bring besides, only the shared libraries matter to a private folder.
    local own=(qemu-system-x86 qemu-system-common qemu-system-data seabios ipxe-qemu) libraries
    own=("${own[@]/%/$pin}")
    mapfile -t libraries < <(
        apt_in "$name" apt-get install -s --allow-downgrades -t "$suite" "${own[@]}" |
        sed -nE 's/^Inst (lib[^ ]+|zlib1g) (\[[^]]*\] )?\(([^ ]+) .*/\1=\3/p')

    rm -rf "$making"
    unpack_packages "$name" "$making/home/root" -t "$suite" "${own[@]}" "${libraries[@]}"
    write_qemu_wrapper "$making/home/$name"
    keep_libraries "$making/home/root" "$home/root"
    rm -rf "$home"
    mv "$making/home" "$home"
    "$home/$name" --version >/dev/null || die "the unpacked QEMU $version does not run"
    close_suites "$name"
    say "$("$home/$name" --version | head -n 1)"
}

# keep_libraries FOLDER PLACE [PROGRAM]: lets the QEMU, or PROGRAM, unpacked in FOLDER, which is to be
# moved to PLACE, find its own libraries first, whoever starts it with whatever environment.
keep_libraries() {
    local qemu=$1/usr/bin/${3:-qemu-system-x86_64} path
    path=$2/usr/lib/x86_64-linux-gnu:$2/lib/x86_64-linux-gnu
    # Not the newer kind of path, which would not hold for the libraries' libraries.
    patchelf --force-rpath --set-rpath "$path" "$qemu"
    local loader=usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2
    # The machine's loader cannot load another C library than its own.
    [[ ! -e $1/$loader ]] || patchelf --set-interpreter "$2/$loader" "$qemu"
}

# need_crash: crash/usr/bin/crash, sid's with sid's libraries. Of a 6.1 kernel that has not crashed,
# 8.0.2 (bookworm's) lists the idle tasks alone and 8.0.6 (trixie's) gives up at a stack of no size,
# also in QEMU's own dump.
need_crash() {
    local name=crash home=$lab/crash libraries
    "$home/usr/bin/crash" --version >/dev/null 2>&1 && return
    open_suites "$name" /dev/null sid
    mapfile -t libraries < <(
        apt_in "$name" apt-get install -s crash |
        sed -nE 's/^Inst (lib[^ ]+|zlib1g) \(([^ ]+) .*/\1=\2/p')
    rm -rf "$making"
    unpack_packages "$name" "$making/home" crash "${libraries[@]}"
    keep_libraries "$making/home" "$home" crash
    rm -rf "$home"
    mv "$making/home" "$home"
    "$home/usr/bin/crash" --version >/dev/null || die "the unpacked crash does not run"
    close_suites "$name"
    say "$("$home/usr/bin/crash" --version | head -n 1)"
}

# need_guest_agent: guest-agent/usr/sbin/qemu-ga, which runs in guests with the machine's libraries.
need_guest_agent() {
    local name=guest-agent home=$lab/guest-agent
    [[ -x $home/usr/sbin/qemu-ga ]] && return
    open_suites "$name" /var/lib/dpkg/status bookworm bookworm-updates
    rm -rf "$making"
    unpack_packages "$name" "$making/home" qemu-guest-agent
    rm -rf "$home"
    mv "$making/home" "$home"
    close_suites "$name"
    "$home/usr/sbin/qemu-ga" --version >/dev/null || die "the unpacked guest agent does not run"
    say "guest agent $("$home/usr/sbin/qemu-ga" --version | head -n 1)"
}

# need_libvirt: libvirt-backports/usr, a libvirt with its QEMU and all that they need and the
# machine lacks. Both have places compiled into them, so a test lays it over /usr for itself.
need_libvirt() {
    local name=libvirt-backports home=$lab/libvirt-backports packages part
    [[ -x $home/usr/sbin/libvirtd ]] && return
    open_suites "$name" /var/lib/dpkg/status bookworm bookworm-updates bookworm-backports
    mapfile -t packages < <(
        apt_in "$name" apt-get install -s -t bookworm-backports \
               libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 |
        sed -nE 's/^Inst ([^ ]+) (\[[^]]*\] )?\(([^ ]+) .*/\1=\3/p')
    rm -rf "$making"
    unpack_packages "$name" "$making/tree" -t bookworm-backports "${packages[@]}"
    for part in bin sbin lib lib64; do
        [[ ! -d $making/tree/$part ]] || cp -a "$making/tree/$part/." "$making/tree/usr/$part/"
    done
    mkdir -p "$making/home"
    mv "$making/tree/usr" "$making/home/usr"
    [[ -x $making/home/usr/sbin/libvirtd ]] || die "bookworm-backports has no libvirtd"
    rm -rf "$home"
    mv "$making/home" "$home"
    close_suites "$name"
    say "libvirt of bookworm-backports"
}

# As need_qemu, for the QEMU that runs arm64 guests.
need_qemu_arm64() {
    local home=$lab/qemu-10.0-arm64 name=qemu-10.0-arm64
    "$home/qemu-10.0" --version >/dev/null 2>&1 && return
    open_suites "$name" /var/lib/dpkg/status bookworm bookworm-updates bookworm-backports
    local own=(qemu-system-arm qemu-system-common qemu-system-data ipxe-qemu) libraries
    mapfile -t libraries < <(
        apt_in "$name" apt-get install -s -t bookworm-backports "${own[@]}" |
        sed -nE 's/^Inst (lib[^ ]+) (\[[^]]*\] )?\(([^ ]+) .*/\1=\3/p')

    rm -rf "$making"
    unpack_packages "$name" "$making/home/root" \
                    -t bookworm-backports "${own[@]}" "${libraries[@]}"
    write_qemu_wrapper "$making/home/qemu-10.0" qemu-system-aarch64
    keep_libraries "$making/home/root" "$home/root" qemu-system-aarch64
    rm -rf "$home"
    mv "$making/home" "$home"
    "$home/qemu-10.0" --version >/dev/null || die "the unpacked QEMU 10.0 for arm64 does not run"
    close_suites "$name"
    say "$("$home/qemu-10.0" --version | head -n 1)"
}

# write_qemu_wrapper FILE [PROGRAM]
write_qemu_wrapper() {
    # The wrapper is found by its own place. `exec` makes the real binary the
    # process, as with a QEMU installed by a package.
    cat > "$1" <<'WRAPPER'
#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/root
# QEMU looks for its loadable devices where a package would have put them.
export QEMU_MODULE_DIR="$root/usr/lib/x86_64-linux-gnu/qemu"
# Newer suites have the network cards' firmware among QEMU's own.
ipxe=$root/usr/lib/ipxe/qemu
[ -d "$ipxe" ] || ipxe=$root/usr/share/qemu
exec "$root/usr/bin/qemu-system-x86_64" \
    -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" -L "$ipxe" "$@"
WRAPPER
    # Of x86 alone, and a folder that is not there would have to be for a restore.
    [[ -z ${2:-} ]] || sed -i "s/qemu-system-x86_64/$2/; s| -L \"\$root/usr/share/seabios\"||" "$1"
    chmod +x "$1"
}

# ---- initramfs -------------------------------------------------------------

# One initramfs for every kernel: a busybox, selfcheck, the /init that starts it, what hurts a guest on
# purpose, and what works in one. Uncompressed, because unpacking costs seconds under emulation.
need_initramfs() {
    local guests=$source_dir/tests/guests sources
    sources=$(cd "$guests" && sha256sum ./*.c ./*.h ./*/*.[ch] ./init "$(command -v busybox)" \
                  "$source_dir/scripts/lab.sh" | sha256sum)
    [[ -f $lab/initramfs.cpio && -f $lab/initramfs.sources &&
       $(<"$lab/initramfs.sources") == "$sources" ]] && return

    rm -rf "$making"
    mkdir -p "$making/tree"/{bin,dev,proc,sys,tmp,cache}
    # -fno-tree-vectorize: plain 8-byte moves are the fastest under emulation.
    gcc -std=gnu17 -O2 -fno-tree-vectorize -Wall -Wextra -Werror -static -s \
        -o "$making/tree/bin/selfcheck" "$guests"/*.c
    gcc -std=gnu17 -O2 -Wall -Wextra -Werror -static -s -o "$making/tree/bin/hazard" "$guests"/hazard/*.c
    # The linker warns that SQLite could load extensions, which a static program cannot.
    gcc -std=gnu17 -O2 -Wall -Wextra -Werror -static -s -o "$making/tree/bin/ledger" "$guests"/ledger/*.c \
        -lsqlite3 -lm 2> "$making/ledger.log" || { cat "$making/ledger.log" >&2; false; }
    gcc -std=gnu17 -O2 -fno-tree-vectorize -Wall -Wextra -Werror -static -s \
        -o "$making/tree/bin/workload" "$guests"/workload/*.c -lm
    cp "$(command -v busybox)" "$making/tree/bin/busybox"
    ln -s busybox "$making/tree/bin/sh"
    install -m 755 "$guests/init" "$making/tree/init"
    pack_cpio "$making/tree" "$making/initramfs.cpio"
    rm -f "$lab/initramfs.sources"
    mv "$making/initramfs.cpio" "$lab/initramfs.cpio"
    echo "$sources" > "$lab/initramfs.sources"
    say "initramfs built"
}

# The same for arm64: selfcheck cross-compiled, and the arm64 busybox.
need_initramfs_arm64() {
    local guests=$source_dir/tests/guests sources name=initramfs-arm64
    sources=$(cd "$guests" && sha256sum ./*.c ./*.h ./init "$source_dir/scripts/lab.sh" | sha256sum)
    [[ -f $lab/initramfs-arm64.cpio && -f $lab/initramfs-arm64.sources &&
       $(<"$lab/initramfs-arm64.sources") == "$sources" ]] && return
    if [[ ! -f $lab/busybox-arm64 ]]; then
        suites_architecture=arm64 open_suites "$name" /dev/null bookworm
        rm -rf "$making"
        unpack_packages "$name" "$making/busybox" busybox-static
        mv "$making/busybox/bin/busybox" "$lab/busybox-arm64"
        close_suites "$name"
    fi
    rm -rf "$making"
    mkdir -p "$making/tree"/{bin,dev,proc,sys,tmp,cache}
    aarch64-linux-gnu-gcc -std=gnu17 -O2 -fno-tree-vectorize -Wall -Wextra -Werror -static -s \
        -o "$making/tree/bin/selfcheck" "$guests"/*.c
    cp "$lab/busybox-arm64" "$making/tree/bin/busybox"
    ln -s busybox "$making/tree/bin/sh"
    install -m 755 "$guests/init" "$making/tree/init"
    pack_cpio "$making/tree" "$making/initramfs.cpio"
    rm -f "$lab/initramfs-arm64.sources"
    mv "$making/initramfs.cpio" "$lab/initramfs-arm64.cpio"
    echo "$sources" > "$lab/initramfs-arm64.sources"
    say "initramfs for arm64 built"
}

# ---- main ------------------------------------------------------------------

(( $# )) || { usage; exit 2; }
mkdir -p "$lab/kernels"
# One filler at a time: two test runs may start together.
exec 9> "$lab/.lock"
flock 9
trap 'rm -rf "$making"' EXIT
trap 'echo "lab: line $LINENO failed: $BASH_COMMAND" >&2' ERR

need() {
    case $1 in
        base)                need kernel-6.1; need initramfs ;;
        all)                 need base; need kernel-6.12; need kernel-newest; need qemu-10.0
                             need arm64; need guest-agent ;;
        matrix)              need all; need kernel-5.10; need kernel-6.1-rt
                             need kernel-6.12-generic; need kernel-sid
                             need qemu-5.2; need qemu-newest; need debug-6.1
                             need crash; need libvirt-backports
                             need kernel-16k-arm64; need kernel-newest-arm64
                             need qemu-10.0-arm64 ;;
        initramfs)           need_initramfs ;;
        debug-6.1)           need_debug 6.1 bookworm ;;
        kernel-5.10)         need_kernel 5.10 bullseye ;;
        kernel-6.1)          need_kernel 6.1 bookworm ;;
        kernel-6.1-rt)       need_kernel 6.1-rt bookworm rt-amd64 ;;
        kernel-6.12)         need_kernel 6.12 bookworm-backports ;;
        kernel-6.12-generic) need_kernel 6.12-generic bookworm-backports amd64 ;;
        kernel-sid)          need_kernel sid sid ;;
        kernel-newest)       need_kernel newest trixie-backports ;;
        qemu-5.2)            need_qemu 5.2 /var/lib/dpkg/status /bullseye bookworm bullseye ;;
        qemu-10.0)           need_qemu 10.0 /var/lib/dpkg/status "" \
                                       bookworm bookworm-updates bookworm-backports ;;
        qemu-newest)         need_qemu newest /dev/null "" trixie trixie-backports ;;
        crash)               need_crash ;;
        guest-agent)         need_guest_agent ;;
        libvirt-backports)   need_libvirt ;;
        arm64)               need kernel-6.1-arm64; need initramfs-arm64 ;;
        initramfs-arm64)     need_initramfs_arm64 ;;
        kernel-6.1-arm64)    need_kernel_arm64 6.1 linux-image-cloud-arm64 bookworm ;;
        kernel-16k-arm64)    need_kernel_arm64 16k linux-image-arm64-16k bookworm-backports ;;
        kernel-newest-arm64) need_kernel_arm64 newest linux-image-cloud-arm64 trixie-backports ;;
        qemu-10.0-arm64)     need_qemu_arm64 ;;
        path)                echo "$lab" ;;
        -h|--help)           usage ;;
        *)                   usage >&2; exit 2 ;;
    esac
}
for what in "$@"; do need "$what"; done
