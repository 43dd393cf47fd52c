// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "vmsieve/base/endian.h"
#include "vmsieve/guest/memory.h"

namespace vmsieve::testing {

/// Guest memory made by hand: RAM where it is said, zero until written, pages kept only where
/// written. Reading and writing beyond RAM is an error and a crash of the test, respectively.
class FakeMemory : public GuestMemory {
 public:
  using Page = std::array<std::byte, kPageSize>;

  explicit FakeMemory(std::vector<PfnRange> ram) : ram_(std::move(ram)) {}

  std::span<const PfnRange> ram() const override { return ram_; }

  Result<void> read(GuestPhysical address, std::span<std::byte> out) const override {
    if (fail_reads) return Error(ErrorKind::kVanished, "QEMU went away");
    while (!out.empty()) {
      if (!is_ram(Pfn{address})) return make_error(ErrorKind::kDamaged, "{:#x} is not RAM", address.value);
      const u64 inside = address.value % kPageSize;
      const u64 piece = std::min<u64>(out.size(), kPageSize - inside);
      const auto page = pages_.find(Pfn{address}.value);
      if (page == pages_.end()) {
        std::memset(out.data(), 0, piece);
      } else {
        std::memcpy(out.data(), &page->second[inside], piece);
      }
      out = out.subspan(piece);
      address = address + piece;
    }
    return {};
  }

  std::vector<PfnRange> resident(PfnRange range) const override {
    std::vector<PfnRange> runs;
    for (auto page = pages_.lower_bound(range.first.value); page != pages_.end() && page->first < range.end();
         ++page) {
      if (!runs.empty() && runs.back().end() == page->first) {
        ++runs.back().count;
      } else {
        runs.push_back({Pfn{page->first}, 1});
      }
    }
    return runs;
  }

  void write(GuestPhysical address, std::span<const std::byte> bytes) {
    for (std::size_t i = 0; i < bytes.size();) {
      const GuestPhysical at = address + i;
      VMSIEVE_CHECK(is_ram(Pfn{at}));
      const u64 inside = at.value % kPageSize;
      const u64 piece = std::min<u64>(bytes.size() - i, kPageSize - inside);
      std::memcpy(&pages_[Pfn{at}.value][inside], &bytes[i], piece);
      i += piece;
    }
  }

  template <std::unsigned_integral T>
  void write_le(GuestPhysical address, T value) {
    static_assert(std::endian::native == std::endian::little);
    write(address, std::as_bytes(std::span{&value, 1}));
  }

  u64 read_u64(GuestPhysical address) const {
    std::byte bytes[8]{};
    VMSIEVE_CHECK(read(address, bytes).ok());
    return load_le<u64>(bytes);
  }

  bool is_ram(Pfn pfn) const {
    return std::any_of(ram_.begin(), ram_.end(), [&](const PfnRange& range) { return range.contains(pfn); });
  }

  /// While set, every read fails as if the process were gone.
  bool fail_reads = false;

 private:
  std::vector<PfnRange> ram_;
  std::map<u64, Page> pages_;
};

}  // namespace vmsieve::testing
