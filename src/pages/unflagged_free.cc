// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/pages/unflagged_free.h"

#include <algorithm>
#include <array>
#include <optional>

#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

constexpr u64 kMaxTrylockBlocks = 4096;
constexpr u32 kMaxHugeOrder = 30;
constexpr u64 kMaxFreeHugePages = u64{1} << 16;  // per node: each costs a few page-table reads
constexpr u64 kMaxHstateBytes = kMiB;
constexpr u64 kMaxListsOfCpus = u64{1} << 16;  // zones times CPUs, each a read or two inside the pause
constexpr std::size_t kMaxDoubts = 16;

// From the address of a struct page to its page frame: one subtraction, when all of the memory map is one
// array (CONFIG_SPARSEMEM_VMEMMAP), which is checked.
class MemoryMap {
 public:
  MemoryMap(const PageLayout& layout, const std::vector<MemorySection>& sections)
      : layout_(layout), sections_(sections) {
    for (const MemorySection& section : sections) {
      const u64 page = section.first.value >> layout.frame_shift();
      const GuestVirtual base{section.memmap.value - page * layout.page_bytes};
      if (&section == &sections.front()) base_ = base;
      if (base_ != base) base_.reset();
      if (!base_) return;
    }
  }

  bool known() const { return base_.has_value(); }

  // The page frame whose struct page has its member at `offset` at the address.
  std::optional<Pfn> pfn_of(u64 address, u64 offset) const {
    const u64 bytes = address - offset - base_->value;
    if (bytes % layout_.page_bytes != 0) return std::nullopt;
    const Pfn pfn{bytes / layout_.page_bytes << layout_.frame_shift()};
    return described(pfn, layout_.frames_per_page()) ? std::optional(pfn) : std::nullopt;
  }
  GuestVirtual address_of(Pfn pfn, u64 offset) const {
    return GuestVirtual{base_->value + (pfn.value >> layout_.frame_shift()) * layout_.page_bytes + offset};
  }
  // Are all page frames of [pfn, pfn + count) in one section? Sections are longer than any block, hugetlb's
  // gigantic pages apart, which are looked up section by section.
  bool described(Pfn pfn, u64 count) const {
    const u64 per_section = layout_.frames_per_section();
    for (u64 at = pfn.value; at < pfn.value + count; at = round_down(at, per_section) + per_section) {
      const auto after = std::upper_bound(sections_.begin(), sections_.end(), Pfn{at},
                                          [](Pfn p, const MemorySection& s) { return p < s.first; });
      if (after == sections_.begin() || at - std::prev(after)->first.value >= per_section) return false;
    }
    return true;
  }

 private:
  const PageLayout& layout_;
  const std::vector<MemorySection>& sections_;
  std::optional<GuestVirtual> base_;
};

enum class Listed : u8 { kNowhere, kSomewhere, kInGoodOrder };

struct Candidate {
  Pfn pfn;
  u64 next = 0;
  u64 prev = 0;
  Listed listed = Listed::kNowhere;
};

bool is_ram(const GuestMemory& memory, Pfn first, u64 count) {
  const auto ram = memory.ram();
  const auto range =
      std::partition_point(ram.begin(), ram.end(), [&](const PfnRange& r) { return r.end() <= first.value; });
  return range != ram.end() && range->first <= first && first.value + count <= range->end();
}

void add_doubt(ListedPages& pages, std::string doubt) {
  if (pages.doubts.size() < kMaxDoubts) pages.doubts.push_back(std::move(doubt));
}

void normalise(ListedPages& pages) {
  std::sort(pages.runs.begin(), pages.runs.end(),
            [](const PfnRange& a, const PfnRange& b) { return a.first < b.first; });
  std::vector<PfnRange> merged;
  for (const PfnRange& run : pages.runs) {
    if (!merged.empty() && merged.back().end() == run.first.value) {
      merged.back().count += run.count;
    } else {
      merged.push_back(run);
    }
  }
  pages.runs = std::move(merged);
}

// Walks lists through the unused pages that the scan found. Tens of thousands of pages may be on them, each
// a step of its own, and the guest stands still: so they are found by number and never sorted.
class UnlistedWalker {
 public:
  UnlistedWalker(const ListWalk& walk, const MemoryMap& map) : walk_(walk), map_(map) {
    std::size_t count = 0;
    for (const ScannedSection& scan : walk.scans) count += scan.found.unlisted.size();
    candidates_.reserve(count);
    for (const ScannedSection& scan : walk.scans) {
      for (const UnlistedPage& page : scan.found.unlisted)
        candidates_.push_back({Pfn{scan.first.value + (page.index << scan.frame_shift)}, page.next, page.prev,
                               Listed::kNowhere});
    }
    divide();
  }

  /// `lists` is the CPU's struct per_cpu_pages (or what holds it), `first` the trylock list's first word.
  void walk_cpu(GuestVirtual zone, GuestVirtual lists, ListedPages& out);
  void walk_trylock(GuestVirtual zone, u64 first, ListedPages& out);
  /// All pages of the lists that were believed.
  void collect(ListedPages& out) const;

 private:
  // What one CPU's lists hold, kept aside until all of it is believed. Candidates stay listed even when it
  // is not: so all walks together take no more steps than there are candidates, whatever the lists say.
  using Taken = std::vector<std::size_t>;

  std::optional<std::string> walk_list(GuestVirtual head, u64 first, u64 last, u32 order, u64 limit,
                                       Taken& taken);
  std::optional<std::string> take_block(std::size_t first, u32 order, Taken& taken);

  void divide() {
    if (candidates_.empty()) return;
    const u64 first = candidates_.front().pfn.value;
    const u64 span = candidates_.back().pfn.value - first + 1;
    while (span >> stretch_shift_ > candidates_.size()) ++stretch_shift_;
    stretches_.resize((span >> stretch_shift_) + 2, candidates_.size());
    for (std::size_t i = candidates_.size(); i-- > 0;)
      stretches_[(candidates_[i].pfn.value - first) >> stretch_shift_] = i;
    for (std::size_t i = stretches_.size() - 1; i-- > 0;)
      stretches_[i] = std::min(stretches_[i], stretches_[i + 1]);
  }
  std::optional<std::size_t> find(Pfn pfn) const {
    if (candidates_.empty() || pfn < candidates_.front().pfn) return std::nullopt;
    const u64 stretch = (pfn.value - candidates_.front().pfn.value) >> stretch_shift_;
    if (stretch + 1 >= stretches_.size()) return std::nullopt;
    const auto begin = candidates_.begin() + static_cast<std::ptrdiff_t>(stretches_[stretch]);
    const auto end = candidates_.begin() + static_cast<std::ptrdiff_t>(stretches_[stretch + 1]);
    const auto at = std::lower_bound(begin, end, pfn, [](const Candidate& c, Pfn p) { return c.pfn < p; });
    if (at == end || at->pfn != pfn) return std::nullopt;
    return static_cast<std::size_t>(at - candidates_.begin());
  }
  void settle(std::optional<std::string> doubt, GuestVirtual zone, const Taken& taken, ListedPages& out) {
    if (doubt) {
      add_doubt(out, fmt::format("zone at {:#x}: {}", zone.value, *doubt));
      return;
    }
    for (const std::size_t page : taken) candidates_[page].listed = Listed::kInGoodOrder;
  }

  const ListWalk& walk_;
  const MemoryMap& map_;
  std::vector<Candidate> candidates_;   // ascending
  std::vector<std::size_t> stretches_;  // the first candidate of each stretch of page frames, or behind it
  u64 stretch_shift_ = 0;
};

void UnlistedWalker::collect(ListedPages& out) const {
  const u64 frames = walk_.layout.frames_per_page();
  for (const Candidate& candidate : candidates_) {
    if (candidate.listed != Listed::kInGoodOrder) continue;
    if (!out.runs.empty() && out.runs.back().end() == candidate.pfn.value) {
      out.runs.back().count += frames;
    } else {
      out.runs.push_back({candidate.pfn, frames});
    }
    out.count += frames;
  }
}

// All pages of the block must be candidates that no other list has.
std::optional<std::string> UnlistedWalker::take_block(std::size_t first, u32 order, Taken& taken) {
  const Pfn pfn = candidates_[first].pfn;
  const u64 pages = u64{1} << order;
  const u64 frames = pages << walk_.layout.frame_shift();
  if (pfn.value % frames != 0) return fmt::format("the block at {:#x} is not aligned", pfn.address().value);
  if (first + pages > candidates_.size() ||
      candidates_[first + pages - 1].pfn.value != pfn.value + frames - walk_.layout.frames_per_page())
    return fmt::format("the page at {:#x} is listed as free, but is in use", pfn.address().value);
  if (!is_ram(walk_.memory, pfn, frames)) return fmt::format("{:#x} is not RAM", pfn.address().value);
  for (std::size_t i = first; i < first + pages; ++i) {
    if (candidates_[i].listed != Listed::kNowhere)
      return fmt::format("{:#x} is listed twice", pfn.address().value);
    candidates_[i].listed = Listed::kSomewhere;
    taken.push_back(i);
  }
  return std::nullopt;
}

// `first` and `last` are the words of the list's head, `limit` how many pages there may be at most.
std::optional<std::string> UnlistedWalker::walk_list(GuestVirtual head, u64 first, u64 last, u32 order,
                                                     u64 limit, Taken& taken) {
  const u64 lru = walk_.allocator.lru_offset;
  u64 node = first;
  u64 before = head.value;
  while (node != head.value) {
    if (taken.size() >= limit) return "its lists are longer than their counter says";
    const auto pfn = map_.pfn_of(node, lru);
    const auto at = pfn ? find(*pfn) : std::nullopt;
    if (!at) return fmt::format("its list leads to {:#x}, which is no free page", node);
    if (candidates_[*at].prev != before) return fmt::format("the list is broken at {:#x}", node);
    if (auto doubt = take_block(*at, order, taken)) return doubt;
    before = node;
    node = candidates_[*at].next;
  }
  if (last != before) return "the list does not end where it should";
  return std::nullopt;
}

void UnlistedWalker::walk_cpu(GuestVirtual zone, GuestVirtual cpu, ListedPages& out) {
  const AllocatorLayout::PerCpuLists& layout = *walk_.allocator.per_cpu;
  const u64 lists_bytes = layout.list_orders.size() * kListHeadBytes;
  const u64 bytes = std::max(
      {layout.lists_offset + lists_bytes, layout.count_offset + 4, layout.lock_offset.value_or(0) + 4});
  std::vector<std::byte> lists(bytes);
  Taken taken;
  if (const auto read = read_virtual(walk_.memory, walk_.tables, cpu, lists); !read.ok())
    return settle("its per-CPU lists cannot be read", zone, {}, out);
  if (layout.lock_offset && load_le<u32>(&lists[*layout.lock_offset]) != 0)
    return settle("a CPU is at work at its lists", zone, {}, out);
  const u64 count = load_le<u32>(&lists[layout.count_offset]);
  std::optional<std::string> doubt;
  for (std::size_t i = 0; i < layout.list_orders.size() && !doubt; ++i) {
    const u64 at = layout.lists_offset + i * kListHeadBytes;
    doubt = walk_list(cpu + at, load_le<u64>(&lists[at]), load_le<u64>(&lists[at + 8]), layout.list_orders[i],
                      count, taken);
  }
  if (!doubt && taken.size() != count)
    doubt = fmt::format("a CPU counts {} pages in its lists, {} are there", count, taken.size());
  settle(std::move(doubt), zone, taken, out);
}

// An llist: singly linked, ends with a null pointer; each block's order was put into `private`
// (add_page_to_zone_llist(), mm/page_alloc.c). Whether a block's pages are all unused tells whether the
// order is right.
void UnlistedWalker::walk_trylock(GuestVirtual zone, u64 node, ListedPages& out) {
  const AllocatorLayout::TrylockList& layout = *walk_.allocator.trylock;
  Taken taken;
  std::optional<std::string> doubt;
  for (u64 steps = 0; node != 0 && !doubt; ++steps) {
    const auto pfn = steps < kMaxTrylockBlocks ? map_.pfn_of(node, layout.link_offset) : std::nullopt;
    if (!pfn) {
      doubt = fmt::format("its trylock list leads to {:#x}, which is no page", node);
      break;
    }
    std::array<std::byte, 8> order, next;
    if (!read_virtual(walk_.memory, walk_.tables, map_.address_of(*pfn, walk_.layout.private_offset), order)
             .ok() ||
        !read_virtual(walk_.memory, walk_.tables, GuestVirtual{node}, next).ok()) {
      doubt = "its trylock list cannot be read";
      break;
    }
    const u64 value = load_le<u64>(order.data());
    if (value >= walk_.layout.orders) {
      doubt = "its trylock list holds a block of an impossible order";
      break;
    }
    const auto at = find(*pfn);
    doubt = at ? take_block(*at, static_cast<u32>(value), taken)
               : fmt::format("the page at {:#x} is listed as free, but is in use", pfn->address().value);
    node = load_le<u64>(next.data());
  }
  settle(std::move(doubt), zone, taken, out);
}

}  // namespace

ListedPages read_per_cpu_lists(const ListWalk& walk, const Zones& zones) {
  ListedPages result;
  const MemoryMap map(walk.layout, walk.sections);
  if (!walk.allocator.per_cpu || !map.known()) return result;
  const AllocatorLayout::PerCpuLists& lists = *walk.allocator.per_cpu;
  if (zones.addresses.size() > kMaxListsOfCpus / std::max<std::size_t>(1, lists.cpu_offsets.size())) {
    add_doubt(result, fmt::format("{} zones and {} CPUs are more than any machine has",
                                  zones.addresses.size(), lists.cpu_offsets.size()));
    return result;
  }
  const auto word = [&](GuestVirtual address) -> std::optional<u64> {
    std::array<std::byte, 8> bytes;
    if (!read_virtual(walk.memory, walk.tables, address, bytes).ok()) return std::nullopt;
    return load_le<u64>(bytes.data());
  };
  UnlistedWalker walker(walk, map);
  for (const GuestVirtual zone : zones.addresses) {
    const auto per_cpu = word(zone + lists.pointer_offset);
    const auto trylock = walk.allocator.trylock ? word(zone + walk.allocator.trylock->first_offset) : u64{0};
    if (!per_cpu || !trylock) {
      add_doubt(result, fmt::format("the zone at {:#x} cannot be read", zone.value));
      continue;
    }
    for (const u64 cpu : lists.cpu_offsets) walker.walk_cpu(zone, GuestVirtual{*per_cpu} + cpu, result);
    if (walk.allocator.trylock) walker.walk_trylock(zone, *trylock, result);
  }
  walker.collect(result);
  return result;
}

namespace {

// One node's list of one pool.
std::optional<std::string> walk_hugetlb(const ListWalk& walk, const MemoryMap& map, GuestVirtual head,
                                        std::span<const std::byte> head_bytes, u64 count, u32 order,
                                        std::vector<PfnRange>& runs) {
  const u64 lru = walk.allocator.hugetlb->next_offset;
  const u64 frames = walk.layout.frames_per_page() << order;
  u64 before = head.value;
  u64 node = load_le<u64>(head_bytes.data());
  std::vector<std::byte> page(walk.layout.page_bytes);
  for (u64 i = 0; i < count; ++i) {
    const auto pfn = map.pfn_of(node, lru);
    if (!pfn || pfn->value % frames != 0 || !map.described(*pfn, frames) ||
        !is_ram(walk.memory, *pfn, frames))
      return fmt::format("its list leads to {:#x}, which is no huge page", node);
    if (!read_virtual(walk.memory, walk.tables, map.address_of(*pfn, 0), page).ok())
      return fmt::format("the structure of the huge page at {:#x} cannot be read", pfn->address().value);
    if (load_le<u32>(&page[walk.layout.refcount_offset]) != 0)
      return fmt::format("the huge page at {:#x} is listed as free, but is in use", pfn->address().value);
    if (load_le<u64>(&page[lru + 8]) != before) return fmt::format("the list is broken at {:#x}", node);
    runs.push_back({*pfn, frames});
    before = node;
    node = load_le<u64>(&page[lru]);
  }
  if (node != head.value || load_le<u64>(&head_bytes[8]) != before)
    return "its list does not end where its counter says";
  return std::nullopt;
}

// Pages that two lists hold, or one list twice, are a sign that neither is what it seems.
bool overlap(std::vector<PfnRange> runs) {
  std::sort(runs.begin(), runs.end(), [](const PfnRange& a, const PfnRange& b) { return a.first < b.first; });
  for (std::size_t i = 1; i < runs.size(); ++i) {
    if (runs[i].first.value < runs[i - 1].end()) return true;
  }
  return false;
}

}  // namespace

ListedPages read_free_hugetlb(const ListWalk& walk) {
  ListedPages result;
  const MemoryMap map(walk.layout, walk.sections);
  if (!walk.allocator.hugetlb || !map.known()) return result;
  const AllocatorLayout::HugetlbPools& pools = *walk.allocator.hugetlb;
  if (pools.hstate_bytes > kMaxHstateBytes) return result;
  std::array<std::byte, 4> lock;
  if (!read_virtual(walk.memory, walk.tables, pools.lock, lock).ok() || load_le<u32>(lock.data()) != 0) {
    add_doubt(result, "hugetlb: somebody is at work at the pools");
    return result;
  }
  std::vector<std::byte> hstate(pools.hstate_bytes);
  for (u64 pool = 0; pool < pools.pools; ++pool) {
    const GuestVirtual address = pools.hstates + pool * pools.hstate_bytes;
    if (!read_virtual(walk.memory, walk.tables, address, hstate).ok()) {
      add_doubt(result, fmt::format("hugetlb pool {} cannot be read", pool));
      continue;
    }
    const u32 order = load_le<u32>(&hstate[pools.order_offset]);
    for (u64 node = 0; node < pools.nodes; ++node) {
      const u64 count = load_le<u32>(&hstate[pools.free_count_offset + node * 4]);
      if (count == 0) continue;
      if (order == 0 || order > kMaxHugeOrder || count > kMaxFreeHugePages) {
        add_doubt(result, fmt::format("hugetlb pool {} node {}: {} pages of order {} are too many", pool,
                                      node, count, order));
        continue;
      }
      const u64 head = pools.freelists_offset + node * kListHeadBytes;
      std::vector<PfnRange> runs;
      if (auto doubt = walk_hugetlb(walk, map, address + head,
                                    std::span(hstate).subspan(head, kListHeadBytes), count, order, runs)) {
        add_doubt(result, fmt::format("hugetlb pool {} node {}: {}", pool, node, *doubt));
        continue;
      }
      result.runs.insert(result.runs.end(), runs.begin(), runs.end());
      result.count += count << (order + walk.layout.frame_shift());
    }
  }
  if (overlap(result.runs)) {
    result = {};
    add_doubt(result, "hugetlb: pools overlap");
  }
  normalise(result);
  return result;
}

}  // namespace vmsieve
