// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/pages/page_classes.h"

#include <algorithm>
#include <bit>
#include <optional>
#include <unordered_map>

#include "vmsieve/base/endian.h"
#include "vmsieve/guest/kernel_reader.h"
#include "vmsieve/guest/mappings.h"
#include "vmsieve/pages/cached_files.h"
#include "vmsieve/pages/memory_sections.h"
#include "vmsieve/pages/page_layout.h"
#include "vmsieve/pages/struct_page_types.h"
#include "vmsieve/pages/zones.h"

namespace vmsieve {
namespace {

constexpr u64 kReadBytes = 256 * kKiB;
constexpr u64 kMaxTables = u64{1} << 17;       // page tables of the kernel's virtually mapped memory
constexpr std::size_t kMaxMappings = 1 << 20;  // files in the page cache that are told apart
constexpr std::size_t kMaxAskedMappings = 1 << 15;
constexpr u64 kMaxZoneNameBytes = 16;

// Classes by RAM page, whatever holes RAM has.
class ClassMap {
 public:
  explicit ClassMap(std::span<const PfnRange> ram) : ram_(ram) {
    u64 pages = 0;
    for (const PfnRange& range : ram) {
      before_.push_back(pages);
      pages += range.count;
    }
    classes_.resize(pages, PageClass::kUnmanaged);
  }

  // Calls change(class) for each RAM page of the range.
  template <typename Change>
  void each(Pfn first, u64 count, const Change& change) {
    auto range = std::partition_point(ram_.begin(), ram_.end(),
                                      [&](const PfnRange& r) { return r.end() <= first.value; });
    const u64 end = count > ~u64{0} - first.value ? ~u64{0} : first.value + count;
    for (; range != ram_.end() && range->first.value < end; ++range) {
      const u64 base = before_[static_cast<std::size_t>(range - ram_.begin())];
      const u64 from = std::max(first.value, range->first.value);
      const u64 to = std::min(end, range->end());
      for (u64 pfn = from; pfn < to; ++pfn) change(classes_[base + (pfn - range->first.value)]);
    }
  }
  // The classes of the kernel's pages from `first` on, `frames` page frames each; what is no RAM is dropped.
  void set(Pfn first, std::span<const PageClass> classes, u64 frames) {
    auto range = std::partition_point(ram_.begin(), ram_.end(),
                                      [&](const PfnRange& r) { return r.end() <= first.value; });
    const u64 end = first.value + classes.size() * frames;
    for (; range != ram_.end() && range->first.value < end; ++range) {
      const u64 from = std::max(first.value, range->first.value);
      const u64 to = std::min(end, range->end());
      const u64 base = before_[static_cast<std::size_t>(range - ram_.begin())] - range->first.value;
      for (u64 pfn = from; pfn < to; ++pfn) classes_[base + pfn] = classes[(pfn - first.value) / frames];
    }
  }
  // What is only known as the kernel's becomes something more exact.
  void refine(Pfn first, u64 count, PageClass to) {
    each(first, count, [&](PageClass& c) {
      if (c == PageClass::kReserved || c == PageClass::kKernelOther) c = to;
    });
  }

  void finish(PageClasses& out) const {
    for (std::size_t r = 0; r < ram_.size(); ++r) {
      for (u64 i = 0; i < ram_[r].count; ++i) {
        const PageClass c = classes_[before_[r] + i];
        ++out.pages[static_cast<std::size_t>(c)];
        const Pfn pfn{ram_[r].first.value + i};
        if (!out.runs.empty() && out.runs.back().page_class == c &&
            out.runs.back().first.value + out.runs.back().count == pfn.value) {
          ++out.runs.back().count;
        } else {
          out.runs.push_back({pfn, 1, c});
        }
      }
    }
  }

 private:
  std::span<const PfnRange> ram_;
  std::vector<u64> before_;  // RAM pages before each range
  std::vector<PageClass> classes_;
};

struct MappingPages {
  u64 pages = 0;
  u64 dirty = 0;
  bool shared = false;
};

// Goes through all struct pages, in order: what a page is a part of stands before it.
class StructPageReader {
 public:
  StructPageReader(const GuestMemory& memory, const PageTableRoot& tables, const PageLayout& layout,
                   const StructPageTypes& types, ClassMap& map)
      : memory_(memory), tables_(tables), layout_(layout), types_(types), map_(map) {}

  Result<void> read(const MemorySection& section) {
    const u64 per_chunk = std::bit_floor(kReadBytes / layout_.page_bytes);
    for (u64 done = 0; done < layout_.pages_per_section(); done += per_chunk) {
      const u64 pages = std::min(per_chunk, layout_.pages_per_section() - done);
      // One page more, since a large page's second structure says whose it is.
      std::vector<std::byte> bytes((pages + 1) * layout_.page_bytes);
      const GuestVirtual from = section.memmap + done * layout_.page_bytes;
      auto read = read_virtual(memory_, tables_, from, bytes);
      if (!read.ok())
        read = read_virtual(memory_, tables_, from, std::span(bytes).first(pages * layout_.page_bytes));
      if (!read.ok()) {
        if (read.error().kind() == ErrorKind::kNotFound || read.error().kind() == ErrorKind::kDamaged)
          continue;
        return read.error();
      }
      std::vector<PageClass> classes(pages);
      for (u64 i = 0; i < pages; ++i) classes[i] = classify(&bytes[i * layout_.page_bytes]);
      map_.set(Pfn{section.first.value + (done << layout_.frame_shift())}, classes,
               layout_.frames_per_page());
    }
    return {};
  }

  std::unordered_map<u64, MappingPages> mappings;
  u64 swap_cache = 0;

 private:
  PageClass classify(const std::byte* page) {
    const StructPage seen = types_.read(page);
    if (seen.tail) {
      if (whole_ != nullptr) {
        ++whole_->pages;
        if (class_ == PageClass::kCacheDirty) ++whole_->dirty;
      }
      if (swap_cache_) ++swap_cache;
      return class_;
    }
    whole_ = nullptr;
    class_ = seen.page_class;
    swap_cache_ = seen.swap_cache;
    if (swap_cache_) ++swap_cache;
    if (seen.mapping != 0 && (mappings.size() < kMaxMappings || mappings.contains(seen.mapping))) {
      MappingPages& mapping = mappings[seen.mapping];
      mapping.shared = class_ == PageClass::kShared;
      ++mapping.pages;
      if (class_ == PageClass::kCacheDirty) ++mapping.dirty;
      whole_ = &mapping;
    }
    return class_;
  }

  const GuestMemory& memory_;
  const PageTableRoot& tables_;
  const PageLayout& layout_;
  const StructPageTypes& types_;
  ClassMap& map_;
  PageClass class_ = PageClass::kUnused;  // of the page that tails belong to
  MappingPages* whole_ = nullptr;         // its file; elements of an unordered_map stay where they are
  bool swap_cache_ = false;
};

struct Stack {
  u64 begin = 0;
  u64 end = 0;
};

std::vector<Stack> sorted_stacks(const GuestProcesses& processes) {
  std::vector<Stack> stacks;
  for (const GuestProcess& process : processes.processes) {
    for (const GuestVirtual stack : process.stacks)
      stacks.push_back({stack.value, stack.value + processes.stack_bytes});
  }
  std::sort(stacks.begin(), stacks.end(), [](const Stack& a, const Stack& b) { return a.begin < b.begin; });
  return stacks;
}

bool in_stack(const std::vector<Stack>& stacks, GuestVirtual address) {
  const auto after = std::upper_bound(stacks.begin(), stacks.end(), address.value,
                                      [](u64 a, const Stack& s) { return a < s.begin; });
  return after != stacks.begin() && address.value < std::prev(after)->end;
}

using VirtualArea = std::pair<GuestVirtual, GuestVirtual>;  // both ends inclusive

// Where the kernel maps memory page by page. arm64 says so itself. On x86-64 VMALLOC_START is a variable
// where the address space is randomized, and the range 32 TiB long with 4 levels, 12800 TiB with 5; modules
// follow the kernel image (arch/x86/include/asm/pgtable_64_types.h).
std::vector<VirtualArea> virtually_mapped(const GuestMemory& memory, const LinuxKernel& kernel,
                                          const KernelSymbols& symbols) {
  const VmcoreInfo& info = kernel.vmcoreinfo();
  std::vector<VirtualArea> ranges;
  const auto add = [&](std::optional<i64> begin, std::optional<i64> end) {
    if (begin && end && *begin < *end)
      ranges.emplace_back(static_cast<u64>(*begin), static_cast<u64>(*end) - 1);
  };
  if (info.number("VMALLOC_START")) {
    add(info.number("VMALLOC_START"), info.number("VMALLOC_END"));
    add(info.number("MODULES_VADDR"), info.number("MODULES_END"));
    return ranges;
  }
  const bool five_levels = kernel.page_tables().format.depth == 5;
  u64 begin = five_levels ? 0xffa0'0000'0000'0000 : 0xffff'c900'0000'0000;
  if (const auto variable = symbols.symbols().address("vmalloc_base"))
    begin = KernelReader(memory, kernel.page_tables()).pointer(*variable).value_or(GuestVirtual{begin}).value;
  const u64 length = (five_levels ? u64{12800} : u64{32}) << 40;
  ranges.emplace_back(begin, begin + length - 1);
  const u64 image = static_cast<u64>(info.number("KERNEL_IMAGE_SIZE").value_or(512 * kMiB));
  constexpr u64 kStartKernelMap = 0xffff'ffff'8000'0000;
  constexpr u64 kModulesEnd = 0xffff'ffff'ff00'0000;
  ranges.emplace_back(kStartKernelMap + std::min(image, kGiB), kModulesEnd - 1);
  return ranges;
}

// Memory that the kernel maps page by page: vmalloc, modules, and stacks in it.
void mark_virtually_mapped(const GuestMemory& memory, const LinuxKernel& kernel, const KernelSymbols& symbols,
                           const GuestProcesses& processes, ClassMap& map) {
  const auto stacks = sorted_stacks(processes);
  const MappingVisitor visitor{
      [&](GuestVirtual address, PhysicalExtent extent) {
        if (extent.bytes > kGiB) return;
        map.refine(Pfn{extent.address}, extent.bytes >> kPageShift,
                   in_stack(stacks, address) ? PageClass::kKernelStacks : PageClass::kVmalloc);
      },
      {}};
  const PageTableRoot& tables = kernel.page_tables();
  for (const auto& [first, last] : virtually_mapped(memory, kernel, symbols))
    walk_mappings(memory, tables, first, last, kMaxTables, visitor);

  // Stacks that are not virtually mapped are pages of the direct mapping.
  for (const Stack& stack : stacks) {
    for (u64 at = stack.begin; at < stack.end; at += kPageSize) {
      if (const auto page = translate(memory, tables, GuestVirtual{at}); page.ok())
        map.refine(Pfn{*page}, 1, PageClass::kKernelStacks);
    }
  }
}

void mark_kernel_image(const GuestMemory& memory, const LinuxKernel& kernel, const KernelSymbols& symbols,
                       ClassMap& map) {
  const auto begin = symbols.symbols().address("_text");
  const auto end = symbols.symbols().address("_end");
  if (!begin || !end || *end <= *begin || *end - *begin > kGiB) return;
  // Contiguous in memory too, but parts are no longer mapped.
  const auto first = translate(memory, kernel.page_tables(), *begin);
  if (!first.ok()) return;
  map.refine(Pfn{*first}, (*end - *begin + kPageSize - 1) >> kPageShift, PageClass::kKernelImage);
}

void name_files(const StructPageReader& pages, const KernelReader& reader, const Btf& types,
                std::size_t max_files, u64 frames, PageClasses& out) {
  using Entry = std::pair<u64, MappingPages>;
  std::vector<Entry> mappings(pages.mappings.begin(), pages.mappings.end());
  std::sort(mappings.begin(), mappings.end(), [](const Entry& a, const Entry& b) {
    return a.second.pages != b.second.pages ? a.second.pages > b.second.pages : a.first < b.first;
  });
  const auto names = CachedFileNames::make(reader, types);
  for (std::size_t i = 0; i < mappings.size() && names && i < kMaxAskedMappings; ++i) {
    const GuestVirtual mapping{mappings[i].first};
    if (names->is_block_device(mapping)) out.buffers += mappings[i].second.pages * frames;
    if (i >= max_files) continue;
    const MappingPages& seen = mappings[i].second;
    out.files.push_back({names->name(mapping), seen.pages * frames, seen.dirty * frames, seen.shared});
  }
}

// Nodes and zones, by the names that the kernel gives them: "node 0 DMA32".
std::vector<ZoneSpan> name_zones(const Zones& zones, const KernelReader& reader, const Btf& types) {
  std::vector<ZoneSpan> spans;
  const auto name_offset = types.offset_of("zone", "name");
  for (std::size_t i = 0; i < zones.groups.size(); ++i) {
    ZoneSpan span{zones.groups[i].name, zones.groups[i].span};
    if (name_offset && zones.addresses.size() == zones.groups.size()) {
      const auto at = reader.pointer(zones.addresses[i] + *name_offset);
      const auto text = at ? reader.text(*at, kMaxZoneNameBytes) : std::nullopt;
      if (text) span.name = span.name.substr(0, span.name.find(" zone ")) + " " + *text;
    }
    spans.push_back(std::move(span));
  }
  return spans;
}

// None when they cannot be read: they are for drawing only.
std::vector<ZoneSpan> read_zone_spans(const GuestMemory& memory, const LinuxKernel& kernel,
                                      const KernelSymbols& symbols, PageLayout layout) {
  const KernelReader reader(memory, kernel.page_tables());
  if (!layout.node_data) {
    // Where VMCOREINFO does not have it, its length is not known either: nodes are numbered from 0 on.
    layout.node_data = symbols.symbols().address("node_data");
    layout.nodes = 0;
    while (layout.node_data && layout.nodes < kMaxNodes &&
           reader.pointer(*layout.node_data + layout.nodes * 8))
      ++layout.nodes;
    if (layout.nodes == 0) return {};
  }
  const auto zones = read_zones(memory, kernel.page_tables(), layout, {});
  return zones.ok() ? name_zones(*zones, reader, symbols.types()) : std::vector<ZoneSpan>{};
}

}  // namespace

std::string_view to_string(PageClass page_class) {
  switch (page_class) {
    case PageClass::kFree: return "free";
    case PageClass::kUnused: return "unused";
    case PageClass::kOffline: return "offline";
    case PageClass::kAnonymous: return "anonymous";
    case PageClass::kShared: return "shared";
    case PageClass::kCacheClean: return "cache-clean";
    case PageClass::kCacheDirty: return "cache-dirty";
    case PageClass::kHugetlb: return "hugetlb";
    case PageClass::kSlab: return "slab";
    case PageClass::kPageTables: return "page-tables";
    case PageClass::kKernelStacks: return "kernel-stacks";
    case PageClass::kVmalloc: return "vmalloc";
    case PageClass::kKernelImage: return "kernel-image";
    case PageClass::kPageStructs: return "page-structs";
    case PageClass::kReserved: return "reserved";
    case PageClass::kKernelOther: return "kernel-other";
    case PageClass::kUnmanaged: return "unmanaged";
  }
  return "unmanaged";
}

Result<PageClasses> classify_pages(const GuestMemory& memory, const LinuxKernel& kernel,
                                   const KernelSymbols& symbols, const FreePages& free,
                                   const GuestProcesses& processes, std::size_t max_files) {
  const PageTableRoot& tables = kernel.page_tables();
  VMSIEVE_ASSIGN(const PageLayout layout, PageLayout::from(kernel.vmcoreinfo()));
  VMSIEVE_ASSIGN(const auto sections, read_memory_sections(memory, tables, layout));
  VMSIEVE_ASSIGN(const StructPageTypes types,
                 StructPageTypes::make(memory, kernel, symbols, layout, sections, processes));
  ClassMap map(memory.ram());
  StructPageReader pages(memory, tables, layout, types, map);
  for (const MemorySection& section : sections) VMSIEVE_TRY(pages.read(section));

  mark_kernel_image(memory, kernel, symbols, map);
  mark_virtually_mapped(memory, kernel, symbols, processes, map);
  for (const MemorySection& section : sections) {
    const auto extents =
        translate_range(memory, tables, section.memmap, layout.pages_per_section() * layout.page_bytes);
    if (!extents.ok()) continue;
    for (const PhysicalExtent& extent : *extents)
      map.refine(Pfn{extent.address}, (extent.bytes + kPageSize - 1) >> kPageShift, PageClass::kPageStructs);
  }
  for (const PfnRange& run : free.runs)
    map.each(run.first, run.count, [](PageClass& c) { c = PageClass::kFree; });

  PageClasses result;
  map.finish(result);
  result.swap_cache = pages.swap_cache * layout.frames_per_page();
  name_files(pages, KernelReader(memory, tables), symbols.types(), max_files, layout.frames_per_page(),
             result);
  result.zones = read_zone_spans(memory, kernel, symbols, layout);
  return result;
}

}  // namespace vmsieve
