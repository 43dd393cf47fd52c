// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "support/fake_memory.h"

namespace vmsieve::testing {

/// A flat copy of a guest's memory, made once, that is patched for one run of a fuzzer and mended after it.
class PatchedMemory : public GuestMemory {
 public:
  explicit PatchedMemory(const FakeMemory& base) : base_(base), bytes_(base.ram().back().end() * kPageSize) {
    for (const PfnRange& range : base.ram()) {
      for (const PfnRange& run : base.resident(range)) {
        const std::span out = std::span{bytes_}.subspan(run.first.address().value, run.count * kPageSize);
        VMSIEVE_CHECK(base.read(run.first.address(), out).ok());
      }
    }
  }
  std::span<const PfnRange> ram() const override { return base_.ram(); }
  std::vector<PfnRange> resident(PfnRange range) const override { return base_.resident(range); }

  Result<void> read(GuestPhysical address, std::span<std::byte> out) const override {
    for (const PfnRange& range : ram()) {
      const u64 begin = range.first.address().value;
      const u64 end = range.end() * kPageSize;
      if (address.value < begin || address.value >= end || out.size() > end - address.value) continue;
      std::copy_n(&bytes_[address.value], out.size(), out.begin());
      return {};
    }
    return make_error(ErrorKind::kDamaged, "{:#x} is not RAM", address.value);
  }

  void patch(GuestPhysical address, std::byte value) {
    undo_.emplace_back(address.value, bytes_[address.value]);
    bytes_[address.value] = value;
  }
  void mend() {
    for (; !undo_.empty(); undo_.pop_back()) bytes_[undo_.back().first] = undo_.back().second;
  }

 private:
  const FakeMemory& base_;
  std::vector<std::byte> bytes_;
  std::vector<std::pair<u64, std::byte>> undo_;
};

}  // namespace vmsieve::testing
