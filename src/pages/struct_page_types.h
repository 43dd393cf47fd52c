// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/kernel_symbols.h"
#include "vmsieve/guest/linux_kernel.h"
#include "vmsieve/guest/memory.h"
#include "vmsieve/guest/processes.h"
#include "vmsieve/pages/memory_sections.h"
#include "vmsieve/pages/page_classes.h"
#include "vmsieve/pages/page_layout.h"

namespace vmsieve {

/// What one struct page says by itself.
struct StructPage {
  bool tail = false;  ///< part of a larger page: it is what the last page that is no tail was
  PageClass page_class = PageClass::kKernelOther;
  bool swap_cache = false;
  u64 mapping = 0;  ///< address of the struct address_space, of pages of files
};

/// How this kernel writes into struct page what a page is (include/linux/page-flags.h).
class StructPageTypes {
 public:
  /// kUnsupported naming what the kernel's types do not show. The value that marks page tables was a macro
  /// before 6.11, so it is read off a page table of one of the `processes`.
  static Result<StructPageTypes> make(const GuestMemory& memory, const LinuxKernel& kernel,
                                      const KernelSymbols& symbols, const PageLayout& layout,
                                      const std::vector<MemorySection>& sections,
                                      const GuestProcesses& processes);

  /// `page` is a struct page with the next one behind it. Never answers kFree: that takes more than a look.
  StructPage read(const std::byte* page) const;

 private:
  explicit StructPageTypes(const PageLayout& layout) : layout_(layout) {}

  std::optional<PageClass> typed(u32 type) const;
  bool is_hugetlb(const std::byte* page) const;
  PageClass kernel_page(const std::byte* page, u64 flags) const;

  PageLayout layout_;
  u64 mapping_offset_ = 0;
  u64 head_offset_ = 0;                                         // compound_head, bit 0 of which marks a tail
  u64 reserved_bit_ = 0, dirty_bit_ = 0, swap_backed_bit_ = 0;  // masks of flags
  u64 slab_bit_ = 0, swap_cache_bit_ = 0, head_bit_ = 0;        // 0 where the kernel has no such flag
  u32 type_mask_ = ~u32{0};
  std::optional<u32> slab_type_, large_type_, table_type_, hugetlb_type_;
  // Before 6.9 the second structure of a huge page says that it is one: by the number of its destructor
  // (before 6.6), or by a flag.
  std::optional<u64> dtor_offset_;
  u8 hugetlb_dtor_ = 0;
  u64 second_hugetlb_bit_ = 0;
};

}  // namespace vmsieve
