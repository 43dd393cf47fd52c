// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/pages/memory_sections.h"

#include <algorithm>
#include <optional>

#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

// Low bits of section_mem_map, include/linux/mmzone.h. Bit 4 is SECTION_TAINT_ZONE_DEVICE, or
// without CONFIG_ZONE_DEVICE something of vmemmap's early set-up (6.15).
constexpr u64 kPresent = 1 << 0;
constexpr u64 kHasMemMap = 1 << 1;
constexpr u64 kOnline = 1 << 2;
constexpr u64 kEarly = 1 << 3;
constexpr u64 kTainted = 1 << 4;
constexpr u64 kFlags = 0x3f;

constexpr u64 kSubsectionShift = 21;  // SUBSECTION_SHIFT, include/linux/mmzone.h
constexpr u64 kUsageHeadWords = 2;    // struct rcu_head

// Reads the sections of one root at a time; sections that follow each other share it.
class SectionReader {
 public:
  SectionReader(const GuestMemory& memory, const PageTableRoot& tables, const PageLayout& layout,
                GuestVirtual roots)
      : memory_(memory),
        tables_(tables),
        layout_(layout),
        roots_(roots),
        per_root_((u64{1} << layout.page_shift) / layout.section_bytes) {}

  Result<std::optional<MemorySection>> read(u64 section);

 private:
  Result<void> load_root(u64 root);
  bool all_subsections(u64 usage) const;

  const GuestMemory& memory_;
  const PageTableRoot& tables_;
  const PageLayout& layout_;
  GuestVirtual roots_;
  u64 per_root_;
  std::optional<u64> loaded_root_;
  std::vector<std::byte> sections_;  // empty: no such root
};

Result<void> SectionReader::load_root(u64 root) {
  if (loaded_root_ == root) return {};
  loaded_root_ = root;
  sections_.clear();
  if (root >= layout_.section_roots) return {};
  std::byte pointer[8];
  auto read = read_virtual(memory_, tables_, roots_ + root * 8, pointer);
  if (read.ok() && load_le<u64>(pointer) != 0) {
    sections_.resize(u64{1} << layout_.page_shift);
    read = read_virtual(memory_, tables_, GuestVirtual{load_le<u64>(pointer)}, sections_);
  }
  if (read.ok()) return {};
  sections_.clear();
  if (guest_says_no(read.error())) return {};
  return read.error().with_context("reading the guest's table of memory sections");
}

// struct mem_section_usage begins with the bitmap of subsections, or since 6.8 (backported to the
// stable series; 5ec8e8ea8b77) with a struct rcu_head before it. That head is zero while the section
// is in use, and an online section never has an empty bitmap, so the two cannot be confused.
bool SectionReader::all_subsections(u64 usage) const {
  if (layout_.section_shift < kSubsectionShift + 6) return false;
  const u64 words = (u64{1} << (layout_.section_shift - kSubsectionShift)) / 64;
  std::vector<std::byte> bytes((kUsageHeadWords + words) * 8);
  if (!read_virtual(memory_, tables_, GuestVirtual{usage}, bytes).ok()) return false;
  const auto word = [&](u64 i) { return load_le<u64>(&bytes[i * 8]); };
  const u64 begin = word(0) == 0 && word(1) == 0 ? kUsageHeadWords : 0;
  for (u64 i = 0; i < words; ++i) {
    if (word(begin + i) != ~u64{0}) return false;
  }
  return true;
}

Result<std::optional<MemorySection>> SectionReader::read(u64 section) {
  const std::optional<MemorySection> not_described;
  VMSIEVE_TRY(load_root(section / per_root_));
  if (sections_.empty()) return not_described;
  const std::byte* const entry = &sections_[section % per_root_ * layout_.section_bytes];
  const u64 coded = load_le<u64>(entry + layout_.section_map_offset);
  constexpr u64 needed = kPresent | kHasMemMap | kOnline;
  if ((coded & needed) != needed) return not_described;
  if ((coded & kEarly) == 0) {
    // The pointer to the usage is the member behind section_mem_map.
    const u64 usage_offset = layout_.section_map_offset + 8;
    if ((coded & kTainted) != 0 || usage_offset + 8 > layout_.section_bytes) return not_described;
    if (!all_subsections(load_le<u64>(entry + usage_offset))) return not_described;
  }
  // The map is stored minus the section's first page frame, in struct pages, so that
  // map + pfn is the struct page (sparse_encode_mem_map()); the sum may wrap by design.
  const u64 first_page = section * layout_.pages_per_section();
  const u64 memmap = (coded & ~kFlags) + first_page * layout_.page_bytes;
  const u64 bytes = layout_.pages_per_section() * layout_.page_bytes;
  const bool kernel_half = (memmap >> 63) != 0 && memmap + bytes > memmap;
  if (!kernel_half || memmap % 8 != 0) return not_described;
  return std::optional{MemorySection{Pfn{first_page << layout_.frame_shift()}, GuestVirtual{memmap}}};
}

Result<std::vector<MemorySection>> read_from(const GuestMemory& memory, const PageTableRoot& tables,
                                             const PageLayout& layout, GuestVirtual roots) {
  SectionReader reader(memory, tables, layout, roots);
  std::vector<MemorySection> described;
  u64 next = 0;
  for (const PfnRange& range : memory.ram()) {
    const u64 end = (range.end() + layout.frames_per_section() - 1) / layout.frames_per_section();
    for (u64 section = std::max(next, range.first.value / layout.frames_per_section()); section < end;
         ++section) {
      VMSIEVE_ASSIGN(const auto found, reader.read(section));
      if (found) described.push_back(*found);
    }
    next = std::max(next, end);
  }
  return described;
}

}  // namespace

Result<std::vector<MemorySection>> read_memory_sections(const GuestMemory& memory,
                                                        const PageTableRoot& tables,
                                                        const PageLayout& layout) {
  VMSIEVE_ASSIGN(auto described, read_from(memory, tables, layout, layout.mem_section));
  if (!described.empty()) return described;
  // Before a0b1280368d1 (4.16) the address of the pointer was printed instead of its value.
  std::byte pointer[8];
  if (read_virtual(memory, tables, layout.mem_section, pointer).ok()) {
    VMSIEVE_ASSIGN(described, read_from(memory, tables, layout, GuestVirtual{load_le<u64>(pointer)}));
    if (!described.empty()) return described;
  }
  return make_error(ErrorKind::kUnsupported,
                    "the guest's table of memory sections at {:#x} describes no memory of this machine",
                    layout.mem_section.value);
}

}  // namespace vmsieve
