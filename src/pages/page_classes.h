// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <string>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/kernel_symbols.h"
#include "vmsieve/guest/linux_kernel.h"
#include "vmsieve/guest/memory.h"
#include "vmsieve/guest/processes.h"
#include "vmsieve/pages/free_pages.h"

namespace vmsieve {

/// What a page of the guest is used for. Every page of RAM has exactly one.
enum class PageClass : u8 {
  kFree,          ///< nobody's, and proved so: FreePages
  kUnused,        ///< nobody's by its own structure, but on no list that proves it
  kOffline,       ///< given to a balloon or unplugged, PageOffline
  kAnonymous,     ///< memory of processes, and copies of it in the swap cache
  kShared,        ///< shared memory and tmpfs
  kCacheClean,    ///< pages of files that are the same on disk
  kCacheDirty,    ///< pages of files that are not yet on disk; all pages of ramfs
  kHugetlb,       ///< pages of hugetlb pools that are in use
  kSlab,          ///< kernel objects, those too large for the slab caches included
  kPageTables,    ///< of processes
  kKernelStacks,  ///< of threads
  kVmalloc,       ///< the kernel's virtually mapped memory, modules included
  kKernelImage,   ///< text and data of the kernel itself
  kPageStructs,   ///< struct pages
  kReserved,      ///< set aside at boot: firmware's, ACPI's, the kernel's early allocations
  kKernelOther,   ///< other pages that the kernel took: drivers, networking, per-CPU memory
  kUnmanaged,     ///< RAM that the kernel does not describe
};
inline constexpr std::size_t kPageClasses = 17;
/// A stable lower-case word: "free", "cache-clean", ...
std::string_view to_string(PageClass page_class);

/// A run of page frames of one class.
struct PageClassRun {
  Pfn first;
  u64 count = 0;
  PageClass page_class = PageClass::kUnmanaged;
};

/// The page cache of one file.
struct CachedFile {
  std::string name;  ///< "ext4:/usr/bin/bash": file system type and path in it; "" when it has no name left
  u64 pages = 0;
  u64 dirty = 0;
  bool shared = false;  ///< tmpfs or shared memory
};

/// A node or zone of the guest, for drawing borders.
struct ZoneSpan {
  std::string name;
  PfnRange span;
};

struct PageClasses {
  std::vector<PageClassRun> runs;         ///< ascending, all of memory.ram(), adjacent ones differ
  std::array<u64, kPageClasses> pages{};  ///< by class
  u64 buffers = 0;                        ///< of the page cache: pages of block devices
  u64 swap_cache = 0;                     ///< of the anonymous pages: also in swap
  std::vector<CachedFile> files;          ///< the largest ones, most pages first, at most `max_files`
  std::vector<ZoneSpan> zones;

  u64 of(PageClass c) const { return pages[static_cast<std::size_t>(c)]; }
};

/// Says of each page what it is. `free` are the pages that are proved free at the same moment,
/// `processes` tells kernel stacks from other virtually mapped memory. On a running guest single pages may
/// be told wrongly. Reads every struct page and the page tables of the kernel: about 15 ms per GiB.
/// kUnsupported when the kernel's types do not show how.
Result<PageClasses> classify_pages(const GuestMemory& memory, const LinuxKernel& kernel,
                                   const KernelSymbols& symbols, const FreePages& free,
                                   const GuestProcesses& processes, std::size_t max_files);

}  // namespace vmsieve
