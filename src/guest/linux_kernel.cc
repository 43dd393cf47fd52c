// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/linux_kernel.h"

#include <algorithm>

#include "vmsieve/guest/vcpu_tables.h"
#include "vmsieve/guest/vmcoreinfo_search.h"

namespace vmsieve {
namespace {

// __START_KERNEL_map, arch/x86/include/asm/page_64_types.h: kernel text and data are mapped at it
// plus their physical address minus phys_base (__phys_addr_nodebug(), page_64.h).
constexpr u64 kStartKernelMap = 0xffff'ffff'8000'0000;
constexpr u64 kPhysicalLimit = u64{1} << 52;
constexpr unsigned kSearchThreads = 2;
constexpr std::size_t kReasonsShown = 3;

Result<GuestVirtual> need_symbol(const VmcoreInfo& info, std::string_view name) {
  const auto symbol = info.symbol(name);
  if (!symbol) return make_error(ErrorKind::kDamaged, "VMCOREINFO without SYMBOL({})", name);
  return *symbol;
}

// Where the kernel says that an address of its image lies.
Result<GuestPhysical> image_physical(const VmcoreInfo& info, std::string_view symbol) {
  VMSIEVE_ASSIGN(const GuestVirtual address, need_symbol(info, symbol));
  const auto phys_base = info.number("phys_base");
  if (!phys_base)
    return Error(ErrorKind::kUnsupported, "VMCOREINFO without NUMBER(phys_base): not an x86-64 kernel");
  const u64 physical = address.value - kStartKernelMap + static_cast<u64>(*phys_base);
  if (address.value < kStartKernelMap || physical >= kPhysicalLimit) {
    return make_error(ErrorKind::kDamaged,
                      "VMCOREINFO's {} at {:#x}, phys_base {:#x}, is not in a kernel image", symbol,
                      address.value, static_cast<u64>(*phys_base));
  }
  return GuestPhysical{physical};
}

// Check A again: the text that was found is still there.
Result<void> check_text(const GuestMemory& memory, const LinuxKernel& kernel) {
  const std::string& text = kernel.vmcoreinfo().text();
  std::string now(text.size(), '\0');
  const auto read = memory.read(kernel.vmcoreinfo_address(), std::as_writable_bytes(std::span{now}));
  if (!read.ok()) return read.error().with_context("reading VMCOREINFO again");
  if (now != text) {
    return make_error(ErrorKind::kIncompatible, "VMCOREINFO of {} is no longer at {:#x}", kernel.release(),
                      kernel.vmcoreinfo_address().value);
  }
  return {};
}

// Check B: the kernel's own tables map its text where its own numbers say.
Result<void> check_own_tables(const GuestMemory& memory, const LinuxKernel& kernel) {
  VMSIEVE_ASSIGN(const GuestVirtual text, need_symbol(kernel.vmcoreinfo(), "_stext"));
  VMSIEVE_ASSIGN(const GuestPhysical expected, image_physical(kernel.vmcoreinfo(), "_stext"));
  const auto found = translate(memory, kernel.page_tables(), text);
  if (!found.ok()) {
    return make_error(ErrorKind::kIncompatible, "the page tables of {} do not map its text: {}",
                      kernel.release(), found.error().message());
  }
  if (*found != expected) {
    return make_error(ErrorKind::kIncompatible, "the page tables of {} map its text at {:#x}, not at {:#x}",
                      kernel.release(), found->value, expected.value);
  }
  return {};
}

// Check C, second half. A vCPU whose top-level entry for kernel text points to the same next table
// as the kernel's own entry translates every address of kernel text as the kernel does (check B).
Result<void> check_vcpus(const GuestMemory& memory, const LinuxKernel& kernel,
                         std::span<const VcpuTables> vcpus) {
  VMSIEVE_ASSIGN(const GuestVirtual text, need_symbol(kernel.vmcoreinfo(), "_stext"));
  VMSIEVE_ASSIGN(const GuestPhysical table, top_level_table(memory, kernel.page_tables(), text));
  for (const VcpuTables& vcpu : vcpus) {
    if (vcpu.levels != kernel.page_tables().levels) {
      return make_error(ErrorKind::kIncompatible, "vCPU {} uses page tables of {} levels, {} those of {}",
                        vcpu.index, vcpu.levels, kernel.release(), kernel.page_tables().levels);
    }
    if (!vcpu.reaches(table)) {
      return make_error(ErrorKind::kIncompatible,
                        "vCPU {} (CR3 {:#x}) does not run under the page tables of {}", vcpu.index, vcpu.cr3,
                        kernel.release());
    }
  }
  return {};
}

// What is wrong with a kernel is one kind of error, failing to read the guest another.
Error as_incompatible(const Error& error) {
  const bool guest_says_so = error.kind() == ErrorKind::kNotFound || error.kind() == ErrorKind::kDamaged;
  return guest_says_so ? Error(ErrorKind::kIncompatible, error.message()) : error;
}

Result<void> prove(const GuestMemory& memory, const LinuxKernel& kernel, std::span<const VcpuTables> vcpus) {
  for (const auto& result : {check_text(memory, kernel), check_own_tables(memory, kernel)}) {
    if (!result.ok()) return as_incompatible(result.error());
  }
  const auto result = check_vcpus(memory, kernel, vcpus);
  if (!result.ok()) return as_incompatible(result.error());
  return {};
}

Result<LinuxKernel> try_candidate(const GuestMemory& memory, const VmcoreInfoCandidate& candidate,
                                  std::span<const VcpuTables> vcpus) {
  VMSIEVE_ASSIGN(VmcoreInfo info, VmcoreInfo::parse(candidate.text));
  VMSIEVE_ASSIGN(LinuxKernel kernel, LinuxKernel::from_vmcoreinfo(std::move(info), candidate.address));
  VMSIEVE_TRY(prove(memory, kernel, vcpus));
  return kernel;
}

// The data page holds at most the beginning of what the note holds.
bool same_text(std::string_view a, std::string_view b) { return a.starts_with(b) || b.starts_with(a); }

Error none_alive(const GuestMemory& memory, const std::vector<std::string>& reasons) {
  if (reasons.empty()) {
    u64 pages = 0;
    for (const PfnRange& range : memory.ram()) pages += range.count;
    return make_error(ErrorKind::kNotFound,
                      "no VMCOREINFO in {} MiB of guest memory: not Linux, or not started yet",
                      pages * kPageSize / kMiB);
  }
  std::string text;
  for (std::size_t i = 0; i < std::min(reasons.size(), kReasonsShown); ++i) {
    text += (i == 0 ? "" : "; ") + reasons[i];
  }
  if (reasons.size() > kReasonsShown) text += fmt::format("; and {} more", reasons.size() - kReasonsShown);
  return make_error(ErrorKind::kNotFound, "no live Linux kernel: {}", text);
}

}  // namespace

Result<LinuxKernel> LinuxKernel::from_vmcoreinfo(VmcoreInfo info, GuestPhysical address) {
  const auto page_size = info.string("PAGESIZE");
  if (page_size != "4096") {
    return make_error(ErrorKind::kUnsupported, "a kernel whose page size is not 4096 bytes ({})",
                      info.release());
  }
  // With memory encryption, addresses in the tables carry the C-bit and content is ciphertext.
  if (info.number("sme_mask").value_or(0) != 0) {
    return make_error(ErrorKind::kUnsupported, "{} encrypts its memory (sme_mask)", info.release());
  }
  // swapper_pg_dir is init_top_pgt (arch/x86/include/asm/pgtable_64.h); both are printed.
  const char* top_name = info.symbol("swapper_pg_dir") ? "swapper_pg_dir" : "init_top_pgt";
  VMSIEVE_ASSIGN(const GuestPhysical top, image_physical(info, top_name));
  VMSIEVE_ASSIGN([[maybe_unused]] const GuestPhysical text, image_physical(info, "_stext"));
  if (top.value % kPageSize != 0) {
    return make_error(ErrorKind::kDamaged, "VMCOREINFO's {} at {:#x} is not page-aligned", top_name,
                      top.value);
  }
  const u32 levels = info.number("pgtable_l5_enabled").value_or(0) != 0 ? 5 : 4;
  return LinuxKernel(std::move(info), PageTableRoot{top, levels}, address);
}

Result<void> LinuxKernel::prove_live(const GuestMemory& memory, std::span<const VcpuState> vcpus) const {
  VMSIEVE_ASSIGN(const auto tables, read_vcpu_tables(memory, vcpus, GuestVirtual{kStartKernelMap}));
  return prove(memory, *this, tables);
}

Result<LinuxKernel> find_linux_kernel(const GuestMemory& memory, std::span<const VcpuState> vcpus) {
  const auto tables = read_vcpu_tables(memory, vcpus, GuestVirtual{kStartKernelMap});
  if (!tables.ok()) {
    return make_error(ErrorKind::kNotFound, "no live Linux kernel: {}", tables.error().message());
  }
  VMSIEVE_ASSIGN(const auto candidates, search_vmcoreinfo(memory, kSearchThreads));
  std::optional<LinuxKernel> live;
  std::vector<std::string> reasons;
  for (const VmcoreInfoCandidate& candidate : candidates) {
    auto kernel = try_candidate(memory, candidate, *tables);
    if (!kernel.ok()) {
      reasons.push_back(
          fmt::format("{} (VMCOREINFO at {:#x})", kernel.error().message(), candidate.address.value));
    } else if (!live) {
      live = *std::move(kernel);
    } else if (!same_text(live->vmcoreinfo().text(), kernel->vmcoreinfo().text())) {
      return make_error(ErrorKind::kNotFound,
                        "two different kernels seem to be alive, {} (VMCOREINFO at {:#x}) and {} (at {:#x})",
                        live->release(), live->vmcoreinfo_address().value, kernel->release(),
                        candidate.address.value);
    }
  }
  if (!live) return none_alive(memory, reasons);
  return *std::move(live);
}

}  // namespace vmsieve
