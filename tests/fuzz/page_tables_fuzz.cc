// SPDX-License-Identifier: Apache-2.0
// Page tables of any kind in 64 KiB of memory: the walks end, and agree with each other.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "support/fake_memory.h"
#include "vmsieve/guest/arm64_paging.h"
#include "vmsieve/guest/x86_paging.h"

namespace {

using namespace vmsieve;

// Every format there is: x86 with 4 or 5 levels, arm64 with any granule and number of address bits.
PageTableRoot root_of(std::uint8_t choice) {
  const GuestPhysical top{0};
  if (choice < 2) return x86_page_tables(top, 4U + choice);
  const Arm64Translation translation{.page_shift = 12U + 2U * (choice % 3U),
                                     .va_bits = 25U + (choice / 6U) % 28U,
                                     .lpa2 = choice / 3U % 2U != 0};
  return translation.possible() ? arm64_page_tables(top, translation) : x86_page_tables(top, 4);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // The head of the input: what is asked; the rest: (u16 slot, u64 entry) pairs, eight bytes apart.
  constexpr std::size_t kHead = 8 + 8 + 1;
  if (size < kHead) return 0;
  const auto* bytes = reinterpret_cast<const std::byte*>(data);
  const GuestVirtual address{load_le<u64>(bytes)};
  const u64 length = load_le<u64>(bytes + 8) % (4 * kMiB);
  const PageTableRoot root = root_of(data[16]);

  vmsieve::testing::FakeMemory memory({{Pfn{0}, 16}});
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
