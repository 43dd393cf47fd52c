// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"

namespace vmsieve {

/// Where the stream's bytes go: a pipe, a socket, a file, a test's buffer.
using ByteSink = std::function<Result<void>(std::span<const std::byte>)>;

struct StreamBlock {
  std::string name;
  u64 used_bytes = 0;
};

/// Writes a migration stream that stock QEMU takes with `-incoming`
/// (QEMU migration/savevm.c, migration/ram.c; docs/devel/migration): file header, CONFIGURATION, section
/// "ram" version 4 with the pages given, the device sections as `xen-save-devices-state` wrote them, EOF and
/// a VMDESCRIPTION. Calls must come in the order below. Buffers up to 1 MiB.
class MigrationStreamWriter {
 public:
  MigrationStreamWriter(ByteSink sink, std::string machine_type, std::vector<StreamBlock> blocks);

  /// Header, configuration, start of the ram section.
  Result<void> begin();
  /// Whole pages at page index `first_page` of block `block`. A page may be given once.
  Result<void> pages(u32 block, u64 first_page, std::span<const std::byte> bytes);
  /// `count` pages of one repeated byte (0: QEMU's zero page flag; others travel as data).
  Result<void> fill_pages(u32 block, u64 first_page, u64 count, u8 fill);
  /// End of the ram section, device sections, end of stream. `device_state` begins with QEVM.
  Result<void> finish(std::span<const std::byte> device_state);

 private:
  Result<void> flush_if_full();
  Result<void> flush();
  void page_header(u32 block, u64 page, u64 flags);

  ByteSink sink_;
  std::string machine_type_;
  std::vector<StreamBlock> blocks_;
  std::vector<std::byte> buffer_;
  u32 last_block_ = ~u32{0};
};

/// Splits off what `xen-save-devices-state` put before the first section and after the last: the
/// span of the device sections themselves. kDamaged when it is no such stream.
Result<std::span<const std::byte>> device_sections(std::span<const std::byte> device_state);

}  // namespace vmsieve
