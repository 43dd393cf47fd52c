// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/pages/free_page_fill.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace vmsieve {
namespace {

// Under poisoning the first few tell already, and without it nothing more is read.
constexpr u64 kFirstSamples = 8;
constexpr u64 kSamples = 256;

// The byte that fills the page, or 0.
u8 uniform_byte(std::span<const std::byte> page) {
  const bool uniform = std::memcmp(page.data(), page.data() + 1, page.size() - 1) == 0;
  return uniform ? static_cast<u8>(page[0]) : u8{0};
}

// How many of `samples` pages, spread evenly over the runs, are filled with each byte; those that are
// not uniform count as 0.
Result<std::array<u64, 256>> sample(const GuestMemory& memory, std::span<const PfnRange> runs, u64 count,
                                    u64 samples) {
  std::array<u64, 256> counts{};
  std::array<std::byte, kPageSize> page;
  u64 before = 0;  // pages in the runs before `run`
  auto run = runs.begin();
  for (u64 i = 0; i < samples; ++i) {
    const u64 nth = i * (count / samples);
    while (nth - before >= run->count) before += (run++)->count;
    VMSIEVE_TRY(memory.read(Pfn{run->first.value + nth - before}.address(), page));
    ++counts[uniform_byte(page)];
  }
  return counts;
}

}  // namespace

Result<u8> free_page_fill(const GuestMemory& memory, std::span<const PfnRange> runs, u64 count) {
  if (count == 0) return u8{0};
  const u64 few = std::min(kFirstSamples, count);
  VMSIEVE_ASSIGN(const auto first, sample(memory, runs, count, few));
  if (first[0] == few) return u8{0};
  const u64 samples = std::min(kSamples, count);
  VMSIEVE_ASSIGN(const auto counts, sample(memory, runs, count, samples));
  const auto most = std::max_element(counts.begin() + 1, counts.end());
  if (*most * 2 <= samples) return u8{0};
  return static_cast<u8>(most - counts.begin());
}

}  // namespace vmsieve
