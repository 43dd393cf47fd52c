// SPDX-License-Identifier: Apache-2.0
// Page tables of any kind in 64 KiB of memory: the walks end, and agree with each other.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "support/fake_memory.h"
#include "vmsieve/guest/x86_paging.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vmsieve;
  // The head of the input: what is asked; the rest: (u16 slot, u64 entry) pairs, eight bytes apart.
  constexpr std::size_t kHead = 8 + 8 + 1;
  if (size < kHead) return 0;
  const auto* bytes = reinterpret_cast<const std::byte*>(data);
  const GuestVirtual address{load_le<u64>(bytes)};
  const u64 length = load_le<u64>(bytes + 8) % (4 * kMiB);
  const PageTableRoot root{GuestPhysical{0}, (data[16] & 1) != 0 ? 5U : 4U};

  testing::FakeMemory memory({{Pfn{0}, 16}});
  for (std::size_t at = kHead; at + 10 <= size; at += 10) {
    const u64 slot = load_le<u16>(bytes + at) % (16 * kPageSize / 8);
    memory.write_le(GuestPhysical{slot * 8}, load_le<u64>(bytes + at + 2));
  }

  const auto one = translate(memory, root, address);
  const auto range = translate_range(memory, root, address, length);
  (void)top_level_table(memory, root, address);
  if (!range.ok() || length == 0) return 0;
  u64 total = 0;
  for (const PhysicalExtent& extent : *range) total += extent.bytes;
  VMSIEVE_CHECK(total == length && one.ok() && *one == range->front().address);
  return 0;
}
