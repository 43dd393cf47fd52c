// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/kernel_description.h"

#include <algorithm>
#include <array>
#include <span>

#include "vmsieve/guest/kernel_reader.h"

namespace vmsieve {
namespace {

// The structures and members that kernel/vmcore_info.c and arch/x86 print, as far as they are used here.
constexpr std::array<std::string_view, 6> kStructures{"page",      "pglist_data", "zone",
                                                      "free_area", "list_head",   "mem_section"};
struct MemberName {
  std::string_view structure;
  std::string_view member;
  bool needed = true;
};
constexpr std::array<MemberName, 18> kMembers{{
    {"page", "flags"},
    {"page", "_refcount"},
    {"page", "_mapcount"},
    {"page", "private"},
    {"page", "lru", false},
    {"page", "mapping", false},
    {"page", "compound_head", false},  // to 6.x
    {"page", "compound_info", false},  // later
    {"page", "compound_dtor", false},  // to 6.5
    {"folio", "_folio_dtor", false},   // 6.5
    {"pglist_data", "node_zones"},
    {"pglist_data", "nr_zones"},
    {"pglist_data", "node_start_pfn"},
    {"pglist_data", "node_spanned_pages"},
    {"pglist_data", "node_id", false},
    {"zone", "free_area"},
    {"zone", "spanned_pages"},
    {"mem_section", "section_mem_map"},
}};
constexpr u64 kMaxBannerBytes = 512;

// Adds lines to VMCOREINFO's text, but none that it has.
class Lines {
 public:
  explicit Lines(const VmcoreInfo* written) : written_(written) {
    if (written == nullptr) return;
    // A last line without its end may have been cut anywhere.
    const std::string& text = written->text();
    text_ = text.substr(0, text.rfind('\n') == std::string::npos ? 0 : text.rfind('\n') + 1);
  }

  const std::string& text() const { return text_; }

  void add(std::string_view key, std::string_view value) {
    if (written_ != nullptr && written_->string(key)) return;
    text_ += fmt::format("{}={}\n", key, value);
  }
  void number(std::string_view name, i64 value) {
    add(fmt::format("NUMBER({})", name), std::to_string(value));
  }
  void count(std::string_view kind, std::string_view name, u64 value) {
    add(fmt::format("{}({})", kind, name), std::to_string(value));
  }
  void symbol(std::string_view name, GuestVirtual address) {
    add(fmt::format("SYMBOL({})", name), fmt::format("{:x}", address.value));
  }

 private:
  const VmcoreInfo* written_;
  std::string text_;
};

void add_structures(const Btf& types, Lines& lines) {
  for (const std::string_view name : kStructures) {
    if (const auto size = types.size_of(name)) lines.count("SIZE", name, *size);
  }
  for (const MemberName& name : kMembers) {
    if (const auto offset = types.offset_of(name.structure, name.member))
      lines.count("OFFSET", fmt::format("{}.{}", name.structure, name.member), *offset);
  }
  if (const auto areas = types.member("zone", "free_area"))
    lines.count("LENGTH", "zone.free_area", areas->elements);
  if (const auto lists = types.member("free_area", "free_list"))
    lines.count("LENGTH", "free_area.free_list", lists->elements);
}

// Types of pages: an enumeration of the top byte since 6.11 (PGTY_*), of bits that are cleared in 6.10
// (PG_*, not to be taken for the flag of that name), before that macros.
void add_page_types(const Btf& types, Lines& lines) {
  struct PageType {
    std::string_view name;
    std::string_view key;
    std::optional<i64> before;  // the bit that is cleared, where types do not tell
  };
  constexpr std::array<PageType, 4> kTypes{{{"buddy", "PAGE_BUDDY_MAPCOUNT_VALUE", 0x80},
                                            {"offline", "PAGE_OFFLINE_MAPCOUNT_VALUE", 0x100},
                                            {"slab", "PAGE_SLAB_MAPCOUNT_VALUE", {}},
                                            {"hugetlb", "PAGE_HUGETLB_MAPCOUNT_VALUE", {}}}};
  constexpr i64 kMaxFlags = 64;
  for (const PageType& type : kTypes) {
    const auto top = types.enumerator(fmt::format("PGTY_{}", type.name));
    auto bit = types.enumerator(fmt::format("PG_{}", type.name));
    if (bit && *bit < kMaxFlags) bit = std::nullopt;
    if (!bit) bit = type.before;
    if (top && *top >= 0 && *top <= 0xff) {
      lines.number(type.key, static_cast<int32_t>(static_cast<u32>(*top) << 24));
    } else if (bit) {
      lines.number(type.key, ~*bit);
    }
  }
  for (const std::string_view flag : {"PG_lru", "PG_slab", "PG_hugetlb", "HUGETLB_PAGE_DTOR"}) {
    const auto value = types.enumerator(flag);
    if (value && *value >= 0 && *value < kMaxFlags) lines.number(flag, *value);
  }
}

// arch/x86/include/asm/sparsemem.h and include/linux/mmzone.h: mem_section has a pointer for as many
// sections as fit into a page of them.
void add_sections(const Btf& types, u32 levels, Lines& lines) {
  constexpr u64 kSectionBits = 27;
  const u64 physical_bits = levels == 5 ? 52 : 46;
  const auto bytes = types.size_of("mem_section");
  lines.number("SECTION_SIZE_BITS", kSectionBits);
  if (!bytes || *bytes == 0 || *bytes > kPageSize) return;
  const u64 per_root = kPageSize / *bytes;
  const u64 sections = u64{1} << (physical_bits - kSectionBits);
  lines.count("LENGTH", "mem_section", (sections + per_root - 1) / per_root);
}

// MAX_NUMNODES: a list of zones has one entry for each zone of each node and one more (struct zonelist,
// include/linux/mmzone.h).
void add_nodes(const Btf& types, Lines& lines) {
  const auto entries = types.member("zonelist", "_zonerefs");
  const auto zones = types.member("pglist_data", "node_zones");
  if (entries && zones && zones->elements > 0 && entries->elements > 1)
    lines.count("LENGTH", "node_data", (entries->elements - 1) / zones->elements);
}

}  // namespace

bool describes_kernel(const VmcoreInfo& info) {
  return info.string("PAGESIZE") && info.symbol("_stext") && info.number("phys_base") &&
         (info.symbol("swapper_pg_dir") || info.symbol("init_top_pgt")) && info.symbol("mem_section") &&
         info.length("mem_section") && info.length("zone.free_area") && info.number("PG_lru") &&
         info.number("PAGE_BUDDY_MAPCOUNT_VALUE") && info.length("free_area.free_list") &&
         std::all_of(kStructures.begin(), kStructures.end(),
                     [&](std::string_view name) { return info.size(name).has_value(); }) &&
         std::all_of(kMembers.begin(), kMembers.end(), [&](const MemberName& name) {
           return !name.needed || info.offset(fmt::format("{}.{}", name.structure, name.member));
         });
}

Result<VmcoreInfo> describe_kernel(const GuestMemory& memory, const PageTableRoot& tables,
                                   const KernelSymbols& symbols, const VmcoreInfo* written) {
  constexpr std::array<std::string_view, 7> kNames{
      "linux_banner", "phys_base", "_stext", "init_top_pgt", "mem_section", "node_data", "contig_page_data"};
  const auto addresses = symbols.symbols().addresses(kNames);
  const KernelReader reader(memory, tables);
  const auto banner = addresses[0] ? reader.text(*addresses[0], kMaxBannerBytes) : std::nullopt;
  if (!banner || !banner->starts_with(kLinuxBanner))
    return Error(ErrorKind::kNotFound, "the kernel has no banner");
  const auto phys_base = addresses[1] ? reader.number<u64>(*addresses[1]) : std::nullopt;
  if (!phys_base) return Error(ErrorKind::kNotFound, "the kernel does not show its phys_base");

  Lines lines(written);
  const std::string_view release = std::string_view(*banner).substr(kLinuxBanner.size());
  lines.add("OSRELEASE", release.substr(0, release.find(' ')));
  lines.add("PAGESIZE", "4096");
  lines.number("phys_base", static_cast<i64>(*phys_base));
  lines.number("pgtable_l5_enabled", tables.format.depth == 5 ? 1 : 0);
  // Where modules begin with a randomized image; RANDOMIZE_BASE is x86-64's default.
  lines.number("KERNEL_IMAGE_SIZE", static_cast<i64>(kGiB));
  for (std::size_t i = 2; i < kNames.size(); ++i) {
    if (addresses[i]) lines.symbol(kNames[i], *addresses[i]);
  }
  add_sections(symbols.types(), tables.format.depth, lines);
  add_nodes(symbols.types(), lines);
  add_structures(symbols.types(), lines);
  add_page_types(symbols.types(), lines);
  return VmcoreInfo::parse(lines.text());
}

}  // namespace vmsieve
