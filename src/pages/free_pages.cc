// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/pages/free_pages.h"

#include <algorithm>
#include <array>
#include <optional>

#include "vmsieve/base/endian.h"
#include "vmsieve/pages/free_page_fill.h"
#include "vmsieve/pages/memory_sections.h"
#include "vmsieve/pages/node_search.h"
#include "vmsieve/pages/page_layout.h"
#include "vmsieve/pages/section_scan.h"
#include "vmsieve/pages/unflagged_free.h"
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
// and is on no reclaim list, which also tells it from a copy in a file or in a process. The same is true of
// the kernel's image, where its banner is (memmap_init_reserved_pages(), mm/memblock.c).
Result<void> check_witness_page(const GuestMemory& memory, const LinuxKernel& kernel,
                                const PageLayout& layout, const std::vector<MemorySection>& sections) {
  const GuestPhysical witness = kernel.witness().address;
  const Pfn pfn{witness};
  const auto section = std::find_if(sections.begin(), sections.end(), [&](const MemorySection& s) {
    return PfnRange{s.first, layout.frames_per_section()}.contains(pfn);
  });
  if (section == sections.end()) {
    return make_error(ErrorKind::kIncompatible,
                      "the page at {:#x} by which the kernel was found is in no online memory section",
                      witness.value);
  }
  std::vector<std::byte> page(layout.page_bytes);
  const u64 index = (pfn.value - section->first.value) >> layout.frame_shift();
  const GuestVirtual address = section->memmap + index * layout.page_bytes;
  VMSIEVE_TRY(read_virtual(memory, kernel.page_tables(), address, page));
  const u32 refcount = load_le<u32>(&page[layout.refcount_offset]);
  const u32 type = load_le<u32>(&page[layout.type_offset]);
  const u64 flags = load_le<u64>(&page[layout.flags_offset]);
  if (refcount != 1 || type != ~u32{0} || ((flags >> layout.lru_bit) & 1) != 0) {
    return make_error(
        ErrorKind::kIncompatible,
        "the page at {:#x} by which the kernel was found is not in use by the kernel according to the page "
        "structures (reference count {}, type {:#x}, flags {:#x}): they are not those of the running kernel",
        witness.value, refcount, type, flags);
  }
  return {};
}

// A kernel that has not written VMCOREINFO may still be making its page structures: only check G tells.
Result<void> check_start_is_known(const LinuxKernel& kernel, const FindOptions& options) {
  if (kernel.has_vmcoreinfo() || (options.allocator != nullptr && options.allocator->system_state)) return {};
  return Error(ErrorKind::kIncompatible,
               "the kernel shows neither VMCOREINFO nor whether it is still starting");
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

// Check G: the kernel is past its start, whose allocator is not complete, and nobody holds a zone's lock.
std::optional<std::string> unsettled(const GuestMemory& memory, const PageTableRoot& tables,
                                     const AllocatorLayout& allocator, const Zones& zones) {
  if (allocator.system_state) {
    std::array<std::byte, 4> state;
    const auto read = read_virtual(memory, tables, allocator.system_state->address, state);
    if (!read.ok() || load_le<u32>(state.data()) < allocator.system_state->running)
      return "the guest's kernel is still starting";
  }
  if (!allocator.zone_lock_offset) return std::nullopt;
  for (const GuestVirtual zone : zones.addresses) {
    std::array<std::byte, 8> lock{};
    const std::span<std::byte> word(lock.data(), allocator.zone_lock_bytes);
    const auto read = read_virtual(memory, tables, zone + *allocator.zone_lock_offset, word);
    if (!read.ok() || load_le<u64>(lock.data()) != 0)
      return fmt::format("the lock of the zone at {:#x} is held", zone.value);
  }
  return std::nullopt;
}

std::vector<FreeListEnd> list_ends_of(const std::vector<ScannedSection>& scans) {
  std::vector<FreeListEnd> ends;
  for (const ScannedSection& scan : scans) {
    ends.insert(ends.end(), scan.found.list_ends.begin(), scan.found.list_ends.end());
  }
  return ends;
}

// Checks E and F over everything that was scanned; what passes becomes runs, what does not, doubts.
// For each zone group whether it passed; nothing when a block is in none of them.
std::vector<bool> decide(const std::vector<ScannedSection>& scans, const Zones& zones, FreePages& result) {
  std::vector<Verdict> verdicts(zones.groups.size());
  if (const auto outside = judge(scans, zones, verdicts)) {
    result.doubts.push_back(
        fmt::format("the free block at {:#x} is in no memory zone of the guest", outside->value));
    return {};
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
      if (!trusted[group]) continue;
      const u64 frames = u64{1} << (block.order() + scan.frame_shift);
      result.runs.push_back({pfn, frames});
      result.buddy += frames;
    }
  }
  return trusted;
}

// Cuts runs down to what lies in zone groups that passed checks E and F: where flags and counters
// disagree, a list that looks right proves nothing.
void keep_trusted(ListedPages& pages, const Zones& zones, const std::vector<bool>& trusted) {
  std::vector<PfnRange> kept;
  pages.count = 0;
  for (const PfnRange& run : pages.runs) {
    for (u64 at = run.first.value; at < run.end();) {
      const auto group = trusted.empty() ? std::nullopt : zones.group_of(Pfn{at});
      if (!group) break;
      const u64 end = std::min(run.end(), zones.groups[*group].span.end());
      if (trusted[*group]) {
        kept.push_back({Pfn{at}, end - at});
        pages.count += end - at;
      }
      at = end;
    }
  }
  pages.runs = std::move(kept);
}

// PageOffline pages that are RAM, as runs.
ListedPages offline_pages(const GuestMemory& memory, const std::vector<ScannedSection>& scans) {
  ListedPages pages;
  const auto ram = memory.ram();
  auto range = ram.begin();
  for (const ScannedSection& scan : scans) {
    for (const u32 index : scan.found.offline) {
      const PfnRange page{Pfn{scan.first.value + (u64{index} << scan.frame_shift)},
                          u64{1} << scan.frame_shift};
      while (range != ram.end() && range->end() <= page.first.value) ++range;
      if (range == ram.end() || !range->contains(page.first) || page.end() > range->end()) continue;
      pages.runs.push_back(page);
      pages.count += page.count;
    }
  }
  return pages;
}

bool by_first(const PfnRange& a, const PfnRange& b) { return a.first < b.first; }

// Sorts and merges runs of all kinds. False when two of them overlap: then one of the kinds is wrong.
bool merge_runs(std::vector<PfnRange>& runs) {
  if (!std::is_sorted(runs.begin(), runs.end(), by_first)) std::sort(runs.begin(), runs.end(), by_first);
  std::vector<PfnRange> merged;
  merged.reserve(runs.size());
  for (const PfnRange& run : runs) {
    if (!merged.empty() && run.first.value < merged.back().end()) return false;
    if (!merged.empty() && run.first.value == merged.back().end()) {
      merged.back().count += run.count;
    } else {
      merged.push_back(run);
    }
  }
  runs = std::move(merged);
  return true;
}

// Adds what the lists hold to what the buddy allocator flags.
void add_listed(const ListWalk& walk, const Zones& zones, const std::vector<bool>& trusted,
                const FreeKinds& kinds, FreePages& result) {
  std::vector<PfnRange> runs = result.runs;
  const auto add = [&](ListedPages pages, u64& count) {
    keep_trusted(pages, zones, trusted);
    const auto before = static_cast<std::ptrdiff_t>(runs.size());
    runs.insert(runs.end(), pages.runs.begin(), pages.runs.end());
    std::inplace_merge(runs.begin(), runs.begin() + before, runs.end(), by_first);
    result.list_doubts.insert(result.list_doubts.end(), pages.doubts.begin(), pages.doubts.end());
    count = pages.count;
  };
  if (kinds.per_cpu) add(read_per_cpu_lists(walk, zones), result.per_cpu);
  if (kinds.hugetlb) add(read_free_hugetlb(walk), result.hugetlb);
  if (kinds.offline) add(offline_pages(walk.memory, walk.scans), result.offline);
  if (merge_runs(runs)) {
    result.runs = std::move(runs);
    return;
  }
  result.list_doubts.emplace_back("pages are on several lists of free pages");
  result.per_cpu = result.hugetlb = result.offline = 0;
}

}  // namespace

Result<FreePages> find_free_pages(const GuestMemory& memory, const LinuxKernel& kernel,
                                  const FindOptions& options) {
  VMSIEVE_TRY(check_start_is_known(kernel, options));
  VMSIEVE_ASSIGN(const PageLayout layout, PageLayout::from(kernel.vmcoreinfo()));
  VMSIEVE_ASSIGN(const auto sections, read_memory_sections(memory, kernel.page_tables(), layout));
  VMSIEVE_TRY(check_witness_page(memory, kernel, layout, sections));
  const ScanWants wants{options.allocator != nullptr && options.kinds.per_cpu, options.kinds.offline};
  VMSIEVE_ASSIGN(auto scans, scan_sections(memory, kernel.page_tables(), layout, sections, wants,
                                           options.threads, options.earlier));
  std::vector<NodePlace> nodes;
  if (!layout.node_data) {
    VMSIEVE_ASSIGN(nodes, find_nodes(memory, kernel.page_tables(), layout, memmap_range(layout, sections),
                                     list_ends_of(scans)));
  }
  VMSIEVE_ASSIGN(const Zones zones, read_zones(memory, kernel.page_tables(), layout, nodes));

  FreePages result;
  for (const ScannedSection& scan : scans) {
    result.described += scan.ram_frames;
    if (!scan.unreadable.empty()) result.doubts.push_back(scan.unreadable);
  }
  if (options.allocator != nullptr) {
    if (auto reason = unsettled(memory, kernel.page_tables(), *options.allocator, zones)) {
      result.doubts.push_back(*std::move(reason));
      return result;
    }
  }
  const std::vector<bool> trusted = decide(scans, zones, result);
  merge_runs(result.runs);  // blocks never overlap: scan_struct_pages()
  // Before pages of pools and balloons are added: those keep what their last user wrote.
  VMSIEVE_ASSIGN(result.fill, free_page_fill(memory, result.runs, result.buddy));
  if (options.allocator != nullptr) {
    add_listed({memory, kernel.page_tables(), layout, *options.allocator, sections, scans}, zones, trusted,
               options.kinds, result);
  }
  for (const PfnRange& run : result.runs) result.count += run.count;
  if (options.earlier != nullptr) options.earlier->scans = std::move(scans);
  return result;
}

}  // namespace vmsieve
