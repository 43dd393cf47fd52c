// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/option_table.h"

#include <algorithm>
#include <array>

namespace vmsieve {

namespace {

// QEMU qemu-options.hx: DEF(..., 0, ...) and DEF(..., HAS_ARG, ...).
constexpr auto kFlags = std::to_array<std::string_view>({
    "S",
    "alt-grab",
    "async-teardown",
    "audio-help",
    "ctrl-grab",
    "curses",
    "daemonize",
    "enable-fips",
    "enable-hax",
    "enable-kvm",
    "enable-sync-profile",
    "full-screen",
    "h",
    "help",
    "jitdump",
    "mem-prealloc",
    "no-acpi",
    "no-fd-bootchk",
    "no-frame",
    "no-hpet",
    "no-kvm",
    "no-kvm-irqchip",
    "no-kvm-pit",
    "no-kvm-pit-reinjection",
    "no-quit",
    "no-reboot",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "nodefconfig",
    "nographic",
    "old-param",
    "only-migratable",
    "perfmap",
    "portrait",
    "preconfig",
    "s",
    "sdl",
    "semihosting",
    "show-cursor",
    "singlestep",
    "snapshot",
    "usb",
    "version",
    "win2k-hack",
    "xen-attach",
    "xen-domid-restrict",
});

constexpr auto kArguments = std::to_array<std::string_view>({
    "D",
    "L",
    "M",
    "accel",
    "acpitable",
    "action",
    "add-fd",
    "append",
    "audio",
    "audiodev",
    "balloon",
    "bios",
    "blockdev",
    "boot",
    "bt",
    "cdrom",
    "chardev",
    "chroot",
    "compat",
    "cpu",
    "d",
    "debugcon",
    "device",
    "dfilter",
    "display",
    "drive",
    "dtb",
    "dump-vmstate",
    "echr",
    "fda",
    "fdb",
    "fsdev",
    "fw_cfg",
    "g",
    "gdb",
    "global",
    "hda",
    "hdb",
    "hdc",
    "hdd",
    "icount",
    "incoming",
    "initrd",
    "iscsi",
    "k",
    "kernel",
    "loadvm",
    "m",
    "machine",
    "mem-path",
    "mon",
    "monitor",
    "msg",
    "mtdblock",
    "name",
    "net",
    "netdev",
    "nic",
    "numa",
    "object",
    "option-rom",
    "overcommit",
    "parallel",
    "pflash",
    "pidfile",
    "plugin",
    "prom-env",
    "qmp",
    "qmp-pretty",
    "qtest",
    "qtest-log",
    "readconfig",
    "realtime",
    "rotate",
    "rtc",
    "run-with",
    "runas",
    "sandbox",
    "sd",
    "seed",
    "semihosting-config",
    "serial",
    "set",
    "shim",
    "smbios",
    "smp",
    "soundhw",
    "spice",
    "tb-size",
    "tpmdev",
    "trace",
    "usbdevice",
    "uuid",
    "vga",
    "virtfs",
    "vnc",
    "watchdog",
    "watchdog-action",
    "writeconfig",
    "xen-domid",
});

static_assert(std::ranges::is_sorted(kFlags) && std::ranges::is_sorted(kArguments));

struct Keys {
  std::string_view name;
  std::string_view id;
  std::string_view implied;
};

constexpr auto kKeys = std::to_array<Keys>({
    {"accel", "", "accel"},
    {"audiodev", "id", "driver"},
    {"blockdev", "node-name", "driver"},
    {"chardev", "id", "backend"},
    {"device", "id", "driver"},
    {"display", "", "type"},
    {"drive", "id", ""},
    {"fsdev", "id", "fsdriver"},
    {"fw_cfg", "", "name"},
    {"iscsi", "id", ""},
    {"machine", "", "type"},
    {"mon", "id", "chardev"},
    {"netdev", "id", "type"},
    {"nic", "id", "type"},
    {"object", "id", "qom-type"},
    {"plugin", "", "file"},
    {"tpmdev", "id", "type"},
    {"virtfs", "id", "fsdriver"},
});

const Keys* keys_of(std::string_view name) {
  const auto* found = std::ranges::find(kKeys, canonical_option(name), &Keys::name);
  return found == kKeys.end() ? nullptr : found;
}

}  // namespace

OptionShape option_shape(std::string_view name) {
  if (std::ranges::binary_search(kFlags, name)) return OptionShape::kFlag;
  if (std::ranges::binary_search(kArguments, name)) return OptionShape::kArgument;
  return OptionShape::kUnknown;
}

std::string_view canonical_option(std::string_view name) {
  if (name == "M") return "machine";
  if (name == "h") return "help";
  return name;
}

std::string_view id_key(std::string_view name) {
  const Keys* keys = keys_of(name);
  return keys == nullptr ? std::string_view{} : keys->id;
}

std::string_view implied_key(std::string_view name) {
  const Keys* keys = keys_of(name);
  return keys == nullptr ? std::string_view{} : keys->implied;
}

}  // namespace vmsieve
