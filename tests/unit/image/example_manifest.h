// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "vmsieve/image/manifest.h"

namespace vmsieve {

/// A manifest with something other than the default in every member (but required_features, of which there
/// are none yet).
inline Manifest example_manifest() {
  Manifest m;
  m.id = "0123456789abcdef";
  m.created = "2026-01-31T12:34:56.789Z";
  m.mode = "paused";
  m.parent = "00000000000000aa";
  m.ancestors = {"00000000000000aa", "00000000000000bb"};
  m.vm_name = "web \"1\"";
  m.vm_pid = 4711;
  m.was_running = false;
  m.qemu_version = "7.2.9";
  m.qemu_package = "Debian 1:7.2+dfsg-7";
  m.qemu_executable = "/usr/bin/qemu-system-x86_64";
  m.machine_type = "pc-q35-7.2";
  m.accelerator = "kvm";
  m.vcpus = 2;
  m.command_line = {"qemu-system-x86_64", "-m", "1G", "-append", "console=ttyS0 a=\"b\\c\"\n"};
  m.working_directory = "/";
  m.blocks = {{.name = "pc.ram",
               .used_bytes = kGiB,
               .max_bytes = kGiB,
               .host_page_bytes = 2 * kMiB,
               .guest_ram = true},
              {.name = "/rom@etc/acpi/tables", .used_bytes = 5 * kPageSize + 1, .max_bytes = 8 * kPageSize}};
  m.mappings = {{.address = 0, .bytes = 512 * kMiB, .block = 0, .block_offset = 0},
                {.address = 4 * kGiB, .bytes = 512 * kMiB, .block = 0, .block_offset = 512 * kMiB}};
  m.writable_disks = {{.device = "virtio0", .file = "/images/web.qcow2"}};
  m.introspection = {.used = true,
                     .kernel = "6.1.0-18-cloud-amd64",
                     .reason = "zone DMA saved in full",
                     .classify_ms = 3.25};
  m.pages = {.total = 262150, .free = 262000, .zero = 60, .fill = 40, .saved = 50};
  m.pause_ms = 12.125;
  m.total_ms = 0.1;
  m.guest_bytes = kGiB + 5 * kPageSize + 1;
  m.stored_bytes = 123456;
  m.compression = "zstd:1";
  m.objects = {{.name = "memory", .bytes = 123000, .checksum = 0xfedcba9876543210},
               {.name = "device", .bytes = 456, .checksum = 1}};
  return m;
}

}  // namespace vmsieve
