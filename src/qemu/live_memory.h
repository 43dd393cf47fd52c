// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>
#include <memory>

#include "vmsieve/base/fd.h"
#include "vmsieve/guest/memory.h"
#include "vmsieve/qemu/ram_layout.h"

namespace vmsieve {

/// The RAM blocks of a running QEMU, read from outside. Shared file mappings (memfd, tmpfs,
/// hugetlbfs, files) are read with pread(2) through the file, since reading a hole of one through
/// a mapping would allocate the page; everything else with process_vm_readv(2). All calls may be
/// made from several threads.
class LiveMemory final : public GuestMemory {
 public:
  /// Looks up how each block of `layout` is mapped in process `pid`; reads no guest memory.
  static Result<std::unique_ptr<LiveMemory>> open(pid_t pid, RamLayout layout);
  ~LiveMemory() override;

  const RamLayout& layout() const;

  std::span<const PfnRange> ram() const override;
  Result<void> read(GuestPhysical address, std::span<std::byte> out) const override;
  std::vector<PfnRange> resident(PfnRange range) const override;

  /// Copies [offset, offset + out.size()) of a block, inside used_bytes rounded up to a page.
  Result<void> read_block(u32 block, u64 offset, std::span<std::byte> out) const;

  /// Half-open range of page indices inside a block: [first, first + count).
  struct PageRun {
    u64 first = 0;
    u64 count = 0;
  };
  /// The pages of [first, first + count) of a block that may hold something other than zeros,
  /// by SEEK_DATA or pagemap; where neither can be had, all of them.
  std::vector<PageRun> resident_block(u32 block, u64 first, u64 count) const;
  /// The same, but private pages that are swapped out are not among them, and neither are pages that were
  /// write-protected before they were ever touched.
  std::vector<PageRun> present_block(u32 block, u64 first, u64 count) const;
  /// Is all of a block shared memory? Then reading pages that were never touched costs nothing but time,
  /// and asking about a few pages takes as long as about all: SEEK_HOLE knows no end.
  bool is_shared(u32 block) const;
  /// Is any of a block mapped from a file (a memfd among them), shared or copied on write? When such memory
  /// is discarded, a userfaultfd's write protection stays behind, and nobody is told.
  bool has_file(u32 block) const;

 private:
  struct Impl;
  explicit LiveMemory(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace vmsieve
