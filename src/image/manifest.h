// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"

namespace vmsieve {

struct ObjectRecord {
  std::string name;  ///< "memory" or "device"
  u64 bytes = 0;
  u64 checksum = 0;  ///< "device": XXH3-64 of all its bytes; "memory": of its encoded index (which holds the
                     ///< frames' checksums)
};

struct BlockRecord {
  std::string name;
  u64 used_bytes = 0;
  u64 max_bytes = 0;
  u64 host_page_bytes = kPageSize;
  bool guest_ram = false;
};

struct MappingRecord {
  u64 address = 0;  ///< guest-physical
  u64 bytes = 0;
  u32 block = 0;
  u64 block_offset = 0;
};

struct WritableDiskRecord {
  std::string device;
  std::string file;
};

/// Pages that were left out, by what they were free as.
struct FreeKindCounts {
  u64 buddy = 0;
  u64 per_cpu = 0;
  u64 hugetlb = 0;
  u64 offline = 0;
};

struct IntrospectionRecord {
  bool used = false;
  std::string kernel;  ///< release, empty when none was found
  std::string reason;  ///< why not used, or which zones were saved in full; empty when all went well
  double classify_ms = 0;
  FreeKindCounts free_pages = {};
  /// What the kernel says of its structures (VMCOREINFO) and where it was found, so that the memory of the
  /// checkpoint can be looked into without a search; empty when there was no kernel.
  std::string vmcoreinfo = {};
  u64 vmcoreinfo_address = 0;
};

/// Of a VM that libvirt runs: what it needs to run it again. The XML may hold passwords.
struct LibvirtRecord {
  std::string uri;
  std::string domain;  ///< its name
  std::string xml;     ///< empty: no libvirt
};

struct PageCounts {
  u64 total = 0;
  u64 free = 0;
  u64 zero = 0;   ///< in use, all zeros
  u64 fill = 0;   ///< in use, one repeated byte other than zero
  u64 saved = 0;  ///< in a frame
};

/// A checkpoint's manifest: all that is known of it except the bytes themselves. Texts may hold any bytes
/// (paths and arguments of a process do).
struct Manifest {
  static constexpr u64 kFormatVersion = 1;
  static constexpr u64 kMaxBytes = 8 * kMiB;  ///< of the encoded manifest
  /// Made of a dump of a machine's memory: the object "device" is empty.
  static constexpr std::string_view kDumpMode = "dump";

  std::string id;
  std::string created;  ///< UTC, ISO 8601 with milliseconds: "2026-01-31T12:34:56.789Z"
  std::string mode;     ///< "paused", "live", or kDumpMode
  std::string parent;   ///< id of the checkpoint that this one was taken after, or empty; for people
  std::vector<std::string> ancestors;  ///< ids whose memory objects hold frames of this one, as in the index
  std::vector<std::string> required_features;
  /// Taken by `watch`, which may remove it again; in the format an optional member.
  bool periodic = false;
  /// The guest's agent had frozen its file systems: a restored guest's are to be thawed. In the format an
  /// optional member.
  bool frozen = false;
  LibvirtRecord libvirt;  ///< in the format an optional member

  std::string vm_name;
  u64 vm_pid = 0;
  bool was_running = true;
  std::string qemu_version;
  std::string qemu_package;
  std::string qemu_executable;
  std::string machine_type;
  std::string accelerator;
  u64 vcpus = 0;
  std::vector<std::string> command_line;
  std::string working_directory;

  std::vector<BlockRecord> blocks;
  std::vector<MappingRecord> mappings;
  std::vector<WritableDiskRecord> writable_disks;
  /// The checkpoint holds the disks too, in this way (to_string(DiskWay)), and the store a record of where
  /// they are (image/disk_record.h); empty: it does not. In the format an optional member.
  std::string disks;

  IntrospectionRecord introspection;
  PageCounts pages;
  double pause_ms = 0;
  double total_ms = 0;
  u64 guest_bytes = 0;   ///< sum of used_bytes of all blocks
  u64 stored_bytes = 0;  ///< bytes of the memory and device objects
  std::string compression;

  std::vector<ObjectRecord> objects;
};

/// One header line (magic, version, length, checksum), then JSON: docs/format.md. Decoding gives the same
/// manifest again, if it keeps the rules of the format (else decode_manifest() refuses it). A number of
/// milliseconds that is not finite is written as 0.
std::string encode_manifest(const Manifest& manifest);

/// Checks header, length and checksum before the JSON is parsed; then the required features, then every
/// member's type and range. kDamaged names the member; kUnsupported the version or feature.
Result<Manifest> decode_manifest(std::string_view text);

/// Is `id` well-formed: 16 lower-case hex digits. To be asked before an id becomes part of a path.
bool is_checkpoint_id(std::string_view id);
/// Is `name` fit to be an object's: 1 to 32 of a-z, 0-9 and '-', a letter first, none of the store's own
/// names. To be asked before a name becomes part of a path.
bool is_object_name(std::string_view name);
/// A new random id (getrandom).
Result<std::string> new_checkpoint_id();

}  // namespace vmsieve
