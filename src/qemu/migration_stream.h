// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"

namespace vmsieve {

/// Where the stream's bytes go: a socket, a file, a test's buffer.
using ByteSink = std::function<Result<void>(std::span<const std::byte>)>;

struct StreamBlock {
  std::string name;
  u64 used_bytes = 0;
};

/// What the reading QEMU expects of a stream beside the sections: the properties `send-configuration` and
/// `send-section-footer` of its migration object. Both are on except with machine types of 2.3 and before
/// (QEMU hw/core/machine.c, hw_compat_2_3) and by `-global migration....=off`.
struct StreamFormat {
  bool configuration = true;
  bool section_footers = true;
};

/// Where a block's pages are in a stream of the mapped-ram form, in bytes from its beginning (QEMU
/// docs/devel/migration/mapped-ram.rst, migration/ram.c struct MappedRamHeader).
struct MappedBlock {
  u64 bitmap_offset = 0;  ///< of one bit for each page, the first page's the lowest of the first byte
  u64 pages_offset = 0;   ///< of the first page; a multiple of 1 MiB
};
/// Where the next bytes of the stream go.
using SeekFunction = std::function<Result<void>(u64 offset)>;

/// Writes a migration stream that stock QEMU takes with `-incoming`, all integers big-endian
/// (QEMU migration/savevm.c, migration/ram.c; docs/devel/migration): file header, CONFIGURATION, section
/// "ram" version 4 with the pages given, the device sections as `xen-save-devices-state` wrote them, EOF and
/// a VMDESCRIPTION. Pages that are not given are not touched by the reader. Calls must come in the order
/// below; after an error the stream is of no use. Buffers up to 1 MiB.
class MigrationStreamWriter {
 public:
  /// `blocks` in any order; QEMU resizes its resizeable blocks to `used_bytes`.
  MigrationStreamWriter(ByteSink sink, std::string machine_type, std::vector<StreamBlock> blocks,
                        StreamFormat format = {});

  /// The stream becomes one of the mapped-ram form (QEMU 9.0): pages have fixed places, which begin() leaves
  /// out, and the caller writes them and the bitmaps. Before begin(); pages() and fill_pages() are not
  /// called.
  void map_ram(SeekFunction seek) { seek_ = std::move(seek); }
  /// By block, after begin(), with map_ram() only.
  const std::vector<MappedBlock>& mapped() const { return mapped_; }

  /// Header, configuration, start of the ram section. kUnsupported when a block's name or size cannot be
  /// said in a stream (1 to 255 bytes; whole pages).
  Result<void> begin();
  /// Whole pages at page index `first_page` of block `block`. A page may be given once. kDamaged when they
  /// are not inside the block.
  Result<void> pages(u32 block, u64 first_page, std::span<const std::byte> bytes);
  /// `count` pages of one repeated byte (0: QEMU's zero page flag; others travel as data: the flag could
  /// carry any byte, but QEMU is going to drop that).
  Result<void> fill_pages(u32 block, u64 first_page, u64 count, u8 fill);
  /// End of the ram section, device sections, end of stream. `device_state` begins with QEVM. QEMU may run
  /// the guest as soon as it has the last byte.
  Result<void> finish(std::span<const std::byte> device_state);

 private:
  Result<void> flush_if_full();
  Result<void> flush();
  Result<void> map_block(const StreamBlock& block);
  void page_header(u32 block, u64 page, u64 flags);
  void footer();
  Result<void> check_range(u32 block, u64 first_page, u64 count) const;

  ByteSink sink_;
  std::string machine_type_;
  std::vector<StreamBlock> blocks_;
  StreamFormat format_;
  std::vector<std::byte> buffer_;
  u32 last_block_ = ~u32{0};
  SeekFunction seek_;
  std::vector<MappedBlock> mapped_;
  u64 flushed_ = 0;  ///< offset behind what the sink has
};

/// Splits off what `xen-save-devices-state` put before the first section and after the last: the
/// span of the device sections themselves. kDamaged when it is no such stream, kUnsupported for another
/// version of it. The sections are not parsed: only QEMU knows their lengths.
Result<std::span<const std::byte>> device_sections(std::span<const std::byte> device_state);

/// Does the last of these sections end with a section footer? All do or none.
bool has_section_footers(std::span<const std::byte> sections);

}  // namespace vmsieve
