// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/memory.h"
#include "vmsieve/store/checkpoint_reader.h"

namespace vmsieve {

/// The guest-physical memory of a checkpoint, so that a guest can be looked into that runs no more. Pages
/// that were left out read as they would after a restore.
class CheckpointMemory final : public GuestMemory {
 public:
  /// `reader` must outlive this. Decoded frames are kept, the last 64 used (64 MiB at most).
  explicit CheckpointMemory(const CheckpointReader& reader);
  ~CheckpointMemory() override;

  std::span<const PfnRange> ram() const override { return ram_; }
  /// As GuestMemory; kDamaged or kIo also when a frame is damaged or cannot be read.
  Result<void> read(GuestPhysical address, std::span<std::byte> out) const override;

  /// The page frames that were left out as free, ascending, merged.
  std::vector<PfnRange> free_pages() const;

 private:
  struct Cache;
  Result<void> read_page(u64 block, u64 page, u64 offset, std::span<std::byte> out) const;
  Result<void> copy_from_frame(u64 frame, u64 offset, std::span<std::byte> out) const;

  const CheckpointReader& reader_;
  std::vector<MappingRecord> mappings_;  // of guest RAM, ascending by address
  std::vector<PfnRange> ram_;
  std::unique_ptr<Cache> cache_;
};

}  // namespace vmsieve
