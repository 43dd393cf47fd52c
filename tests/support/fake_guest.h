// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "support/fake_memory.h"
#include "support/fake_tables.h"
#include "vmsieve/guest/linux_kernel.h"

namespace vmsieve::testing {

struct FakeZone {
  u32 node = 0;
  u32 index = 0;
  PfnRange span;  ///< in the kernel's own pages
};

struct FakeGuestOptions {
  u32 levels = 4;
  std::optional<Arm64Translation> arm64{};  ///< an arm64 guest; none: an x86-64 guest with `levels`
  bool small_vmemmap_pages = false;         ///< vmemmap mapped by 4 KiB entries
  bool new_usage_layout = true;             ///< a struct rcu_head before the subsection bitmap
  bool mem_section_by_pointer = false;      ///< SYMBOL(mem_section) is the pointer's address
  u64 section_shift = 24;
  u64 page_bytes = 64;
  u32 buddy_type = 0xf000'0000;
  std::vector<FakeZone> zones{{0, 0, {Pfn{0x1}, 0xfff}}, {0, 1, {Pfn{0x1000}, 0x2000}}};
  std::vector<PfnRange> ram{{Pfn{0}, 0xa0}, {Pfn{0x100}, 0x2f00}};  // 48 MiB with a hole below 1 MiB
};

/// An arm64 guest of 48 MiB: its zones in its own pages.
inline FakeGuestOptions arm64_options(Arm64Translation translation = {}) {
  FakeGuestOptions options;
  options.arm64 = translation;
  const u64 shift = translation.page_shift - kPageShift;
  options.small_vmemmap_pages = shift != 0;
  if (translation.page_shift == 16) options.section_shift = 26;  // the longest free block must fit
  options.zones = {{0, 0, {Pfn{0x100U >> shift}, 0xf00U >> shift}},
                   {0, 2, {Pfn{0x1000U >> shift}, 0x2000U >> shift}}};
  options.ram = {{Pfn{0x100}, 0x2f00}};
  return options;
}

/// A Linux kernel made by hand in 48 MiB of fake guest memory: VMCOREINFO as data page and as note,
/// page tables, memory sections, struct pages, nodes and zones, all consistent. Pages are in use
/// until a test frees them; tests then break one thing at a time.
class FakeGuest {
 public:
  explicit FakeGuest(FakeGuestOptions options = {}) : options_(std::move(options)), memory_(options_.ram) {
    // Kernel text and data, then everything that boot would have allocated.
    if (options_.arm64) {
      tables_ = std::make_unique<FakeTables>(memory_, *options_.arm64, Pfn{kTopPfn}, Pfn{0x1300});
    } else {
      tables_ = std::make_unique<FakeTables>(memory_, options_.levels, Pfn{kTopPfn}, Pfn{0x1300});
    }
    // Blocks of 2 MiB are what x86 and arm64 with 4 KiB pages have; other granules get single pages.
    const u32 shift = page_shift() == 12 ? 21 : page_shift();
    tables_->map_range(image(GuestPhysical{kPhysBase + 0x100'0000}), GuestPhysical{kPhysBase + 0x100'0000},
                       4 * kMiB, shift);
    tables_->map_range(direct(GuestPhysical{0}), GuestPhysical{0}, 48 * kMiB, shift);
    tables_->map_range(vmemmap(), kStructPages, 2 * kMiB, options_.small_vmemmap_pages ? page_shift() : 21);
    if (options_.arm64) tables_->map(kVectors, kVectorsPage, page_shift());
    make_struct_pages();
    make_sections();
    make_nodes();
    make_keys();
    make_processes();
    write_vmcoreinfo();
  }

  // ---- where things are ----
  static constexpr u64 kStartKernelMap = 0xffff'ffff'8000'0000;
  static constexpr u64 kPhysBase = 0x20'0000;
  static constexpr u64 kTopPfn = 0x1210;                  // swapper_pg_dir, inside the kernel image
  static constexpr GuestPhysical kDataPage{0x110'0000};   // vmcoreinfo_data
  static constexpr GuestPhysical kNotePages{0x111'0000};  // vmcoreinfo_note, two pages
  static constexpr GuestPhysical kNodeData{0x112'0000};
  static constexpr GuestPhysical kNodes{0x113'0000};  // 8 KiB each
  static constexpr GuestPhysical kRoots{0x115'0000};
  static constexpr GuestPhysical kSections{0x115'1000};
  static constexpr GuestPhysical kRootsPointer{0x115'2000};
  static constexpr GuestPhysical kUsages{0x115'3000};       // 64 bytes each
  static constexpr GuestPhysical kStructPages{0x240'0000};  // up to 2 MiB, aligned to them
  static constexpr GuestPhysical kProcessTop{0x116'0000};   // an even and an odd page
  static constexpr u64 kZoneBytes = 1024, kNodeBytes = 4160, kFreeAreaBytes = 72, kFreeAreaOffset = 128;

  // arm64: where the exception vectors are mapped by the kernel's tables and by tramp_pg_dir.
  static constexpr GuestVirtual kVectors{0xffff'fdff'fe00'0000};
  static constexpr GuestPhysical kVectorsPage{0x121'0000 + 0x10'0000};
  static constexpr u64 kImageOffset = 0xffff'8000'1000'0000;  // arm64, kimage_voffset

  u32 page_shift() const { return options_.arm64 ? options_.arm64->page_shift : 12; }
  GuestVirtual image(GuestPhysical physical) const {
    return GuestVirtual{physical.value + (options_.arm64 ? kImageOffset : kStartKernelMap - kPhysBase)};
  }
  GuestVirtual direct(GuestPhysical physical) const {
    if (options_.arm64) return GuestVirtual{0xffff'0000'0000'0000 + physical.value};
    return GuestVirtual{(options_.levels == 5 ? 0xff11'0000'0000'0000 : 0xffff'8880'0000'0000) +
                        physical.value};
  }
  GuestVirtual vmemmap() const {
    if (options_.arm64) return GuestVirtual{0xffff'fc00'0000'0000};
    return GuestVirtual{options_.levels == 5 ? 0xffd4'0000'0000'0000 : 0xffff'ea00'0000'0000};
  }
  GuestPhysical struct_page(u64 pfn) const { return kStructPages + pfn * options_.page_bytes; }
  GuestPhysical section_entry(u64 section) const { return kSections + section * 16; }
  GuestPhysical node(u32 node) const { return kNodes + node * 8192; }
  GuestPhysical zone(std::size_t i) const {
    return node(options_.zones[i].node) + options_.zones[i].index * kZoneBytes;
  }
  GuestPhysical nr_free(std::size_t i, u64 order) const {
    return zone(i) + kFreeAreaOffset + order * kFreeAreaBytes + 64;
  }

  GuestPhysical free_list(std::size_t i, u64 order, u64 type) const {
    return zone(i) + kFreeAreaOffset + order * kFreeAreaBytes + type * 16;
  }

  FakeMemory& memory() { return memory_; }
  FakeTables& tables() { return *tables_; }
  const FakeGuestOptions& options() const { return options_; }

  // ---- what a test changes ----
  /// Marks [pfn, pfn + 2^order) (in the kernel's pages) as a free block, counts it in its zone and links
  /// it into one of the zone's free lists.
  void free_block(u64 pfn, u64 order) {
    flag_block(pfn, order);
    for (std::size_t i = 0; i < options_.zones.size(); ++i) {
      if (!options_.zones[i].span.contains(Pfn{pfn})) continue;
      memory_.write_le(nr_free(i, order), memory_.read_u64(nr_free(i, order)) + 1);
      link(struct_page(pfn) + 8, free_list(i, order, pfn % 3));
      return;
    }
  }
  /// The same without counting it.
  void flag_block(u64 pfn, u64 order) {
    for (u64 i = 0; i < u64{1} << order; ++i) set_page(pfn + i, 0, ~u32{0}, 0);
    set_page(pfn, 0, options_.buddy_type, order);
  }
  void set_page(u64 pfn, u32 refcount, u32 type, u64 private_value, u64 flags = 0) {
    memory_.write_le(struct_page(pfn), flags);
    memory_.write_le(struct_page(pfn) + 40, private_value);
    memory_.write_le(struct_page(pfn) + 48, type);
    memory_.write_le(struct_page(pfn) + 52, refcount);
  }

  /// Replaces the value of a key, or with an empty value removes the line, and writes the text anew.
  void set_key(const std::string& key, const std::string& value) {
    std::erase_if(keys_, [&](const auto& entry) { return entry.first == key; });
    if (!value.empty()) keys_.emplace_back(key, value);
    write_vmcoreinfo();
  }
  std::string text() const {
    std::string text;
    for (const auto& [key, value] : keys_) text += key + "=" + value + "\n";
    return text;
  }
  void write_data_page(GuestPhysical page, const std::string& text) {
    std::vector<std::byte> bytes(kPageSize);
    std::memcpy(bytes.data(), text.data(), std::min<std::size_t>(text.size(), bytes.size()));
    memory_.write(page, bytes);
  }
  void write_note(GuestPhysical pages, const std::string& text) {
    std::vector<std::byte> bytes;
    append_le<u32>(bytes, 11);
    append_le<u32>(bytes, static_cast<u32>(text.size()));
    append_le<u32>(bytes, 0);
    append_bytes(bytes, as_byte_span(std::string_view("VMCOREINFO\0\0", 12)));
    append_bytes(bytes, as_byte_span(text));
    memory_.write(pages, bytes);
  }

  // ---- what the code under test is given ----
  /// A vCPU in user mode under a process's tables; of a pair when page-table isolation is on.
  X86Vcpu vcpu(u32 index = 0) const {
    VMSIEVE_CHECK(!options_.arm64);
    X86Vcpu state;
    state.index = index;
    state.cr0 = 0x8005'0033;
    state.cr3 = kProcessTop.value | 0x5;  // a PCID
    state.cr4 = options_.levels == 5 ? 0x1000 | 0x6f0 : 0x6f0;
    state.efer = 0xd01;
    state.rip = 0x40'1000;
    state.cpl = 3;
    return state;
  }
  /// The same of an arm64 guest, without page-table isolation.
  Arm64Vcpu arm64_vcpu(u32 index = 0) const {
    const Arm64Translation& t = *options_.arm64;
    const u64 tg1 = t.page_shift == 12 ? 2 : t.page_shift == 14 ? 1 : 3;
    Arm64System system;
    system.sctlr_el1 = 0x3'4f4d'91d;
    system.tcr_el1 = 16 | u64{64 - t.va_bits} << 16 | tg1 << 30 | u64{5} << 32 | u64{t.lpa2} << 59;
    system.ttbr1_el1 = (kTopPfn << kPageShift) | u64{0x1b} << 48 | 1;
    system.vbar_el1 = image(GuestPhysical{kPhysBase + 0x100'0800}).value;
    return {index, 0x40'1000, 0, std::nullopt, system};
  }
  LinuxKernel kernel() const {
    auto info = VmcoreInfo::parse(text());
    VMSIEVE_CHECK(info.ok());
    auto kernel = LinuxKernel::from_vmcoreinfo(*std::move(info), kDataPage);
    VMSIEVE_CHECK(kernel.ok());
    return *std::move(kernel);
  }

 private:
  void make_struct_pages();
  void make_sections();
  void make_nodes();
  void make_keys();
  void make_processes();
  void write_vmcoreinfo() {
    write_data_page(kDataPage, text());
    write_note(kNotePages, text());
  }
  /// list_add() at the physical address of a list_head.
  void link(GuestPhysical entry, GuestPhysical head) {
    const GuestVirtual next{memory_.read_u64(head)};
    memory_.write_le(entry, next.value);
    memory_.write_le(entry + 8, list_virtual(head).value);
    memory_.write_le(list_physical(next) + 8, list_virtual(entry).value);
    memory_.write_le(head, list_virtual(entry).value);
  }
  GuestVirtual list_virtual(GuestPhysical at) const {
    return at >= kStructPages ? vmemmap() + (at - kStructPages) : direct(at);
  }
  GuestPhysical list_physical(GuestVirtual at) const {
    if (at >= vmemmap() && at - vmemmap() < 2 * kMiB) return kStructPages + (at - vmemmap());
    return GuestPhysical{at - direct(GuestPhysical{0})};
  }
  void make_architecture_keys();
  std::string hex(GuestVirtual address) const { return fmt::format("{:x}", address.value); }

  FakeGuestOptions options_;
  FakeMemory memory_;
  std::unique_ptr<FakeTables> tables_;
  std::vector<std::pair<std::string, std::string>> keys_;
};

inline void FakeGuest::make_struct_pages() {
  // Every test makes such a guest: by copies of the first one.
  const u64 pages = (48 * kMiB) >> page_shift();
  set_page(0, 1, ~u32{0}, 0);
  std::vector<std::byte> structs(pages * options_.page_bytes);
  const std::span first = std::span{structs}.first(options_.page_bytes);
  VMSIEVE_CHECK(memory_.read(struct_page(0), first).ok());
  for (u64 pfn = 1; pfn < pages; ++pfn)
    std::memcpy(&structs[pfn * options_.page_bytes], first.data(), first.size());
  memory_.write(struct_page(0), structs);
}

inline void FakeGuest::make_sections() {
  const u64 sections = (48 * kMiB) >> options_.section_shift;
  for (u64 i = 0; i < std::max<u64>(sections, 1); ++i) {
    memory_.write_le(section_entry(i), vmemmap().value | 0xf);
    memory_.write_le(section_entry(i) + 8, direct(kUsages + i * 64).value);
    // A subsection is 2 MiB; a section as long as x86's has 64 of them.
    memory_.write_le(kUsages + i * 64 + (options_.new_usage_layout ? 16 : 0), ~u64{0});
  }
  memory_.write_le(kRoots, direct(kSections).value);
  memory_.write_le(kRootsPointer, direct(kRoots).value);
}

inline void FakeGuest::make_nodes() {
  for (std::size_t i = 0; i < options_.zones.size(); ++i) {
    const FakeZone& z = options_.zones[i];
    memory_.write_le(kNodeData + z.node * 8, direct(node(z.node)).value);
    memory_.write_le(zone(i) + 80, z.span.first.value);
    memory_.write_le(zone(i) + 88, z.span.count / 2);   // managed
    memory_.write_le(zone(i) + 96, z.span.count);       // spanned
    memory_.write_le(zone(i) + 104, z.span.count - 1);  // present
    for (u64 order = 0; order < 11; ++order) {
      for (u64 type = 0; type < 4; ++type) {
        const GuestPhysical list = free_list(i, order, type);
        memory_.write_le(list, direct(list).value);
        memory_.write_le(list + 8, direct(list).value);
      }
    }
    u64 start = ~u64{0};
    u64 end = 0;
    u32 highest = 0;
    for (const FakeZone& other : options_.zones) {
      if (other.node != z.node) continue;
      start = std::min(start, other.span.first.value);
      end = std::max(end, other.span.end());
      highest = std::max(highest, other.index);
    }
    memory_.write_le(node(z.node) + 4096, highest + 1);
    memory_.write_le(node(z.node) + 4104, start);
    memory_.write_le(node(z.node) + 4120, end - start);
    memory_.write_le(node(z.node) + 4128, z.node);
  }
}

inline void FakeGuest::make_keys() {
  keys_ = {
      {"OSRELEASE", "6.12.0-fake"},
      {"PAGESIZE", std::to_string(u64{1} << page_shift())},
      {"SYMBOL(swapper_pg_dir)", hex(image(Pfn{kTopPfn}.address()))},
      {"SYMBOL(_stext)", hex(image(GuestPhysical{kPhysBase + 0x100'0000}))},
      {"SYMBOL(mem_section)", hex(direct(options_.mem_section_by_pointer ? kRootsPointer : kRoots))},
      {"LENGTH(mem_section)", "2048"},
      {"SIZE(mem_section)", "16"},
      {"OFFSET(mem_section.section_mem_map)", "0"},
      {"NUMBER(SECTION_SIZE_BITS)", std::to_string(options_.section_shift)},
      {"SIZE(page)", std::to_string(options_.page_bytes)},
      {"SIZE(pglist_data)", std::to_string(kNodeBytes)},
      {"SIZE(zone)", std::to_string(kZoneBytes)},
      {"SIZE(free_area)", std::to_string(kFreeAreaBytes)},
      {"SIZE(list_head)", "16"},
      {"OFFSET(page.flags)", "0"},
      {"OFFSET(page._refcount)", "52"},
      {"OFFSET(page._mapcount)", "48"},
      {"OFFSET(page.private)", "40"},
      {"OFFSET(page.lru)", "8"},
      {"OFFSET(pglist_data.node_zones)", "0"},
      {"OFFSET(pglist_data.nr_zones)", "4096"},
      {"OFFSET(pglist_data.node_start_pfn)", "4104"},
      {"OFFSET(pglist_data.node_spanned_pages)", "4120"},
      {"OFFSET(pglist_data.node_id)", "4128"},
      {"OFFSET(zone.free_area)", std::to_string(kFreeAreaOffset)},
      {"OFFSET(zone.spanned_pages)", "96"},
      {"LENGTH(zone.free_area)", "11"},
      {"LENGTH(free_area.free_list)", "4"},
      {"NUMBER(PG_lru)", "5"},
      {"NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)", std::to_string(static_cast<std::int32_t>(options_.buddy_type))},
  };
  make_architecture_keys();
}

inline void FakeGuest::make_architecture_keys() {
  const auto add = [&](const char* key, std::string value) { keys_.emplace_back(key, std::move(value)); };
  if (options_.arm64) {
    add("NUMBER(VA_BITS)", std::to_string(options_.arm64->va_bits));
    add("NUMBER(kimage_voffset)", fmt::format("{:#x}", kImageOffset));
    add("NUMBER(TCR_EL1_T1SZ)", fmt::format("{:#x}", 64 - options_.arm64->va_bits));
    return;
  }
  add("NUMBER(phys_base)", std::to_string(kPhysBase));
  add("NUMBER(pgtable_l5_enabled)", options_.levels == 5 ? "1" : "0");
  add("SYMBOL(node_data)", hex(direct(kNodeData)));
  add("LENGTH(node_data)", "64");
  add("NUMBER(sme_mask)", "0");
}

// The kernel half of the lower page is swapper's; the upper page, which user mode runs under with
// page-table isolation, has a table of its own in its place.
inline void FakeGuest::make_processes() {
  if (options_.arm64) return;
  for (u64 i = 256; i < 512; ++i) {
    memory_.write_le(kProcessTop + i * 8, memory_.read_u64(tables_->root().top + i * 8));
  }
  memory_.write_le(kProcessTop + kPageSize + 511 * 8, u64{0x117'0000} | 0x63);
}

}  // namespace vmsieve::testing
