// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/pages/free_pages.h"

#include <algorithm>
#include <optional>

#include "vmsieve/base/endian.h"
#include "vmsieve/pages/free_page_fill.h"
#include "vmsieve/pages/memory_sections.h"
#include "vmsieve/pages/page_layout.h"
#include "vmsieve/pages/section_scan.h"
#include "vmsieve/pages/zones.h"

namespace vmsieve {
namespace {

// What became of one zone group in checks E and F.
struct Verdict {
  OrderCounts found{};
  u64 malformed = 0;
  GuestPhysical first_malformed;
  BlockFault first_fault{};
};

// Check D: the page that holds VMCOREINFO comes from the page allocator and is never freed
// (kernel/vmcore_info.c crash_save_vmcoreinfo_init()), so a map in which it is free is not the map of
// the running kernel. Page by page it has reference count 1 (alloc_pages_exact() splits), no type,
// and is on no reclaim list, which also tells it from a copy in a file or in a process.
Result<void> check_vmcoreinfo_page(const GuestMemory& memory, const LinuxKernel& kernel,
                                   const PageLayout& layout, const std::vector<MemorySection>& sections) {
  const Pfn pfn{kernel.vmcoreinfo_address()};
  const auto section = std::find_if(sections.begin(), sections.end(), [&](const MemorySection& s) {
    return PfnRange{s.first, layout.pages_per_section()}.contains(pfn);
  });
  if (section == sections.end()) {
    return make_error(ErrorKind::kIncompatible,
                      "the page of VMCOREINFO at {:#x} is in no online memory section",
                      kernel.vmcoreinfo_address().value);
  }
  std::vector<std::byte> page(layout.page_bytes);
  const GuestVirtual address = section->memmap + (pfn.value - section->first.value) * layout.page_bytes;
  VMSIEVE_TRY(read_virtual(memory, kernel.page_tables(), address, page));
  const u32 refcount = load_le<u32>(&page[layout.refcount_offset]);
  const u32 type = load_le<u32>(&page[layout.type_offset]);
  const u64 flags = load_le<u64>(&page[layout.flags_offset]);
  if (refcount != 1 || type != ~u32{0} || ((flags >> layout.lru_bit) & 1) != 0) {
    return make_error(
        ErrorKind::kIncompatible,
        "the page of VMCOREINFO at {:#x} is not in use by the kernel according to the page structures "
        "(reference count {}, type {:#x}, flags {:#x}): they are not those of the running kernel",
        kernel.vmcoreinfo_address().value, refcount, type, flags);
  }
  return {};
}

// Sorts what the scan found into zone groups. The first block that no zone spans, if there is one.
std::optional<GuestPhysical> judge(const std::vector<ScannedSection>& scans, const Zones& zones,
                                   std::vector<Verdict>& verdicts) {
  for (const ScannedSection& scan : scans) {
    std::optional<std::size_t> group;
    const auto verdict_of = [&](Pfn pfn) -> Verdict* {
      if (!group || !zones.groups[*group].span.contains(pfn)) group = zones.group_of(pfn);
      return group ? &verdicts[*group] : nullptr;
    };
    for (const ScannedBlock& block : scan.found.blocks) {
      Verdict* verdict = verdict_of(scan.pfn(block));
      if (verdict == nullptr) return scan.pfn(block).address();
      ++verdict->found[block.order()];
    }
    for (const ScannedBlock& block : scan.found.malformed) {
      Verdict* verdict = verdict_of(scan.pfn(block));
      if (verdict == nullptr) return scan.pfn(block).address();
      if (verdict->malformed++ == 0) {
        verdict->first_malformed = scan.pfn(block).address();
        verdict->first_fault = block.fault();
      }
    }
  }
  return std::nullopt;
}

// Why a zone group is not believed, if so.
std::optional<std::string> doubt_of(const ZoneGroup& group, const Verdict& verdict) {
  if (verdict.malformed != 0) {
    return fmt::format("{}: the free block at {:#x} is malformed, {} ({} such in all)", group.name,
                       verdict.first_malformed.value, to_string(verdict.first_fault), verdict.malformed);
  }
  for (std::size_t order = 0; order < verdict.found.size(); ++order) {
    if (verdict.found[order] == group.nr_free[order]) continue;
    return fmt::format("{}, order {}: the kernel counts {} free blocks, {} are flagged", group.name, order,
                       group.nr_free[order], verdict.found[order]);
  }
  return std::nullopt;
}

void add_run(FreePages& result, Pfn first, u64 count) {
  result.count += count;
  if (!result.runs.empty() && result.runs.back().end() == first.value) {
    result.runs.back().count += count;
  } else {
    result.runs.push_back({first, count});
  }
}

// Checks E and F over everything that was scanned; what passes becomes runs, what does not, doubts.
void decide(const std::vector<ScannedSection>& scans, const Zones& zones, FreePages& result) {
  std::vector<Verdict> verdicts(zones.groups.size());
  if (const auto outside = judge(scans, zones, verdicts)) {
    result.doubts.push_back(
        fmt::format("the free block at {:#x} is in no memory zone of the guest", outside->value));
    return;
  }
  std::vector<bool> trusted(zones.groups.size());
  for (std::size_t i = 0; i < zones.groups.size(); ++i) {
    auto doubt = doubt_of(zones.groups[i], verdicts[i]);
    trusted[i] = !doubt;
    if (doubt) result.doubts.push_back(*std::move(doubt));
  }
  for (const ScannedSection& scan : scans) {
    std::size_t group = 0;  // judge() found one for every block
    for (const ScannedBlock& block : scan.found.blocks) {
      const Pfn pfn = scan.pfn(block);
      if (!zones.groups[group].span.contains(pfn)) group = *zones.group_of(pfn);
      if (trusted[group]) add_run(result, pfn, u64{1} << block.order());
    }
  }
}

}  // namespace

Result<FreePages> find_free_pages(const GuestMemory& memory, const LinuxKernel& kernel, unsigned threads) {
  VMSIEVE_ASSIGN(const PageLayout layout, PageLayout::from(kernel.vmcoreinfo()));
  VMSIEVE_ASSIGN(const auto sections, read_memory_sections(memory, kernel.page_tables(), layout));
  VMSIEVE_TRY(check_vmcoreinfo_page(memory, kernel, layout, sections));
  VMSIEVE_ASSIGN(const Zones zones, read_zones(memory, kernel.page_tables(), layout));
  VMSIEVE_ASSIGN(const auto scans, scan_sections(memory, kernel.page_tables(), layout, sections, threads));

  FreePages result;
  for (const ScannedSection& scan : scans) {
    result.described += scan.ram_pages;
    if (!scan.unreadable.empty()) result.doubts.push_back(scan.unreadable);
  }
  decide(scans, zones, result);
  VMSIEVE_ASSIGN(result.fill, free_page_fill(memory, result.runs, result.count));
  return result;
}

}  // namespace vmsieve
