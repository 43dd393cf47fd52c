// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/x86_kernel.h"

#include "vmsieve/guest/x86_paging.h"

namespace vmsieve {
namespace {

// __START_KERNEL_map, arch/x86/include/asm/page_64_types.h: kernel text and data are mapped at it
// plus their physical address minus phys_base (__phys_addr_nodebug(), page_64.h). All of the image
// shares one top-level entry.
constexpr u64 kStartKernelMap = 0xffff'ffff'8000'0000;
constexpr u64 kPageBytes = 4096;

// CR3 bits 51:12; 11:0 are PCID or caching bits, 61 and 62 linear address masking (Intel SDM volume
// 3, section 2.5), 63 never reads as set.
constexpr u64 kCr3AddressMask = 0x000f'ffff'ffff'f000;
constexpr u64 kPtiUserBit = u64{1} << 12;
constexpr u32 kRing3 = 3;

Error refuse(const X86Vcpu& vcpu, std::string_view what) {
  return make_error(ErrorKind::kIncompatible, "vCPU {} {}", vcpu.index, what);
}

// Whether it is a vCPU to look at (true), or one that waits to be started (false).
Result<bool> check_mode(const X86Vcpu& vcpu) {
  if (vcpu.smm) return refuse(vcpu, "is in system management mode");
  if (!vcpu.paging()) {
    if (vcpu.halted) return false;
    return refuse(vcpu, "runs with paging off: firmware or a boot loader");
  }
  if (!vcpu.long_mode()) return refuse(vcpu, "is not in 64-bit mode: no x86-64 kernel runs on it");
  if (vcpu.cpl == kRing3) return true;
  if (vcpu.cpl != 0)
    return refuse(vcpu, fmt::format("runs at privilege level {}, which Linux does not use", vcpu.cpl));
  if ((vcpu.rip >> 63) == 0) {
    return refuse(vcpu, fmt::format("runs privileged code at {:#x}, outside the kernel's half of the address "
                                    "space: firmware, a boot loader or a kernel being replaced",
                                    vcpu.rip));
  }
  return true;
}

std::optional<GuestPhysical> next_table(const GuestMemory& memory, GuestPhysical top, u32 levels) {
  const auto table = top_level_table(memory, x86_page_tables(top, levels), GuestVirtual{kStartKernelMap});
  if (!table.ok()) return std::nullopt;
  return *table;
}

}  // namespace

Result<KernelImage> x86_kernel_image(const VmcoreInfo& info) {
  if (info.string("PAGESIZE") != "4096") {
    return make_error(ErrorKind::kUnsupported, "a kernel whose page size is not 4096 bytes ({})",
                      info.release());
  }
  // With memory encryption, addresses in the tables carry the C-bit and content is ciphertext.
  if (info.number("sme_mask").value_or(0) != 0) {
    return make_error(ErrorKind::kUnsupported, "{} encrypts its memory (sme_mask)", info.release());
  }
  const auto phys_base = info.number("phys_base");
  if (!phys_base) return Error(ErrorKind::kUnsupported, "VMCOREINFO without NUMBER(phys_base)");
  const u64 offset = kStartKernelMap - static_cast<u64>(*phys_base);
  // swapper_pg_dir is init_top_pgt (arch/x86/include/asm/pgtable_64.h); both are printed.
  const char* top_name = info.symbol("swapper_pg_dir") ? "swapper_pg_dir" : "init_top_pgt";
  VMSIEVE_ASSIGN(const GuestPhysical top, image_physical(info, top_name, offset, kPageBytes));
  KernelImage image;
  VMSIEVE_ASSIGN(image.text, need_symbol(info, "_stext"));
  VMSIEVE_ASSIGN(image.text_physical, image_physical(info, "_stext", offset, 1));
  if (image.text.value < kStartKernelMap) {
    return make_error(ErrorKind::kDamaged, "VMCOREINFO's _stext at {:#x} is not in an x86-64 kernel image",
                      image.text.value);
  }
  const u32 levels = info.number("pgtable_l5_enabled").value_or(0) != 0 ? 5 : 4;
  image.page_tables = x86_page_tables(top, levels);
  return image;
}

std::vector<PageTableRoot> VcpuTables::roots() const {
  const GuestPhysical top{cr3 & kCr3AddressMask};
  std::vector<PageTableRoot> roots{x86_page_tables(top, levels)};
  if ((top.value & kPtiUserBit) != 0)
    roots.push_back(x86_page_tables(GuestPhysical{top.value & ~kPtiUserBit}, levels));
  return roots;
}

Result<std::vector<VcpuTables>> read_vcpu_tables(const GuestMemory& memory, std::span<const X86Vcpu> vcpus) {
  if (vcpus.empty()) return Error(ErrorKind::kIncompatible, "the guest shows no vCPU");
  std::vector<VcpuTables> tables;
  for (const X86Vcpu& vcpu : vcpus) {
    VMSIEVE_ASSIGN(const bool started, check_mode(vcpu));
    if (!started) continue;
    const u32 levels = vcpu.la57() ? 5 : 4;
    const GuestPhysical top{vcpu.cr3 & kCr3AddressMask};
    const GuestPhysical kernel_top{top.value & ~kPtiUserBit};
    tables.push_back({vcpu.index, vcpu.cr3, levels, next_table(memory, top, levels),
                      next_table(memory, kernel_top, levels)});
  }
  if (tables.empty())
    return Error(ErrorKind::kIncompatible, "all vCPUs are halted with paging off: firmware");
  return tables;
}

Result<void> check_x86_vcpus(const GuestMemory& memory, const KernelImage& image, std::string_view release,
                             std::span<const VcpuTables> vcpus) {
  VMSIEVE_ASSIGN(const GuestPhysical table,
                 top_level_table(memory, image.page_tables, GuestVirtual{kStartKernelMap}));
  const u32 levels = image.page_tables.format.depth;
  for (const VcpuTables& vcpu : vcpus) {
    if (vcpu.levels != levels) {
      return make_error(ErrorKind::kIncompatible, "vCPU {} uses page tables of {} levels, {} those of {}",
                        vcpu.index, vcpu.levels, levels, release);
    }
    if (!vcpu.reaches(table)) {
      return make_error(ErrorKind::kIncompatible,
                        "vCPU {} (CR3 {:#x}) does not run under the page tables of {}", vcpu.index, vcpu.cr3,
                        release);
    }
  }
  return {};
}

}  // namespace vmsieve
