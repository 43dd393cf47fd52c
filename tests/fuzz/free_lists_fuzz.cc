// SPDX-License-Identifier: Apache-2.0
// A hand-made guest with per-CPU lists, trylock lists and hugetlb pools, patched anywhere in them, in
// what they link, and in the kernel's own names and types: the answer comes, and no page that it calls
// free has a user.
#include <cstddef>
#include <cstdint>

#include "support/fake_allocator.h"
#include "support/patched_memory.h"
#include "vmsieve/pages/free_pages.h"

namespace {

using namespace vmsieve;
using testing::FakeAllocator;
using testing::FakeGuest;

FakeAllocator& made() {
  static FakeAllocator made({.guest = {.small_vmemmap_pages = true}});
  static const bool filled = [] {
    made.guest().set_key("NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)", "-251658240");
    made.guest().free_block(0x2000, 10);
    for (u64 i = 0; i < 12; ++i) made.list_block(i % 2, 1, static_cast<u32>(i % 3), 0x2400 + i, 0);
    made.list_block(0, 1, 10, 0x2410, 3);
    made.list_block(1, 0, 13, 0x200, 9);
    made.list_block(1, 0, 0, 0x400, 0);
    made.trylock_block(1, 0x2420, 5);
    made.trylock_block(1, 0x2440, 0);
    made.pool_page(0, 0, 0x2600, 9);
    made.pool_page(0, 0, 0x2800, 9);
    made.pool_page(1, 1, 0x2c00, 10);
    made.guest().set_page(0x2450, 1, 0xf100'0000, 0);
    return true;
  }();
  (void)filled;
  return made;
}

// Patches hit what matters: one of these, plus an offset inside the bytes behind it.
struct Target {
  GuestPhysical start;
  u64 bytes;
};

const Target kTargets[] = {
    {FakeAllocator::kPerCpu + 0x1000, 0x800},
    {FakeAllocator::kPerCpu + 0x5000, 0x800},
    {FakeGuest::kStructPages + 0x2400 * 64, 0x60 * 64},
    {FakeGuest::kStructPages + 0x200 * 64, 0x210 * 64},
    {FakeGuest::kStructPages + 0x2600 * 64, 64},
    {FakeGuest::kStructPages + 0x2800 * 64, 64},
    {FakeAllocator::kHstates, 128},
    {FakeAllocator::kMaxHstate, 32},
    {FakeAllocator::kCpuOffsets, 16},
    {FakeAllocator::kPossibleMask, 8},
    {FakeAllocator::kSystemState, 4},
    {FakeGuest::kNodes, 2048},
    {FakeAllocator::kBtf, 1536},  // from here on only when all is read anew
    {FakeAllocator::kKallsyms, 16384},
};
constexpr std::size_t kListTargets = std::size(kTargets) - 2;

// Page tables and the memory map are never patched, so that the struct page of a page is where it was.
void check(const testing::PatchedMemory& memory, const FreePages& found, bool all_unused) {
  u64 next = 0;
  u64 count = 0;
  for (const PfnRange& run : found.runs) {
    VMSIEVE_CHECK(run.count > 0 && (next == 0 || run.first.value > next));
    next = run.end();
    count += run.count;
    for (u64 pfn = run.first.value; pfn < run.end(); ++pfn) {
      std::byte page[64];
      VMSIEVE_CHECK(memory.read(Pfn{pfn}.address(), page).ok());  // RAM
      VMSIEVE_CHECK(memory.read(made().guest().struct_page(pfn), page).ok());
      VMSIEVE_CHECK(!all_unused || load_le<u32>(&page[52]) == 0);
    }
  }
  VMSIEVE_CHECK(count == found.count);
  VMSIEVE_CHECK(count == found.buddy + found.per_cpu + found.hugetlb + found.offline);
  VMSIEVE_CHECK(found.list_doubts.size() <= 40);
}

}  // namespace

// The first byte: whether names and types are read anew, which kinds are looked for. Then patches:
// (target, offset, 8 bytes) each.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 1) return 0;
  static testing::PatchedMemory memory(made().memory());
  static const LinuxKernel kernel = made().guest().kernel();
  static const AllocatorLayout known = made().layout();
  const bool anew = (data[0] & 7) == 0;
  const auto* bytes = reinterpret_cast<const std::byte*>(data);
  for (std::size_t at = 1; at + 12 <= size; at += 12) {
    const Target& target = kTargets[data[at] % (anew ? std::size(kTargets) : kListTargets)];
    const u64 offset = load_le<u16>(bytes + at + 1) % target.bytes;
    for (u64 i = 0; i < 8 && offset + i < target.bytes; ++i)
      memory.patch(target.start + offset + i, bytes[at + 4 + i]);
  }
  AllocatorLayout layout = known;
  if (anew) {
    // Not by searching the whole image, which is slow.
    auto names = Kallsyms::read(memory, kernel.page_tables(), kernel.vmcoreinfo());
    if (names.ok()) {
      const auto symbols = KernelSymbols::read(memory, kernel.page_tables(), *std::move(names));
      if (symbols.ok()) layout = AllocatorLayout::read(memory, kernel, *symbols);
    }
  }
  FindOptions options;
  options.allocator = &layout;
  options.kinds.hugetlb = (data[0] & 8) != 0;
  options.kinds.offline = (data[0] & 16) != 0;
  const auto found = find_free_pages(memory, kernel, options);
  // Of a pool's page only the head is looked at; an offline page belongs to a driver.
  const bool all_unused = !options.kinds.hugetlb && !options.kinds.offline;
  if (found.ok()) check(memory, *found, all_unused);
  memory.mend();
  return 0;
}
