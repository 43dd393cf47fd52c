// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/arm64_kernel.h"

#include <algorithm>
#include <optional>

#include "vmsieve/guest/arm64_paging.h"

namespace vmsieve {
namespace {

// SCTLR_EL1, Arm ARM D24.2.175.
constexpr u64 kMmuOn = u64{1} << 0;
constexpr u64 kBigEndian = u64{1} << 25;  // EE: table walks at EL1 are big-endian
// HCR_EL2, D24.2.70: a second stage of translation (VM, DC), a host at EL2 (TGE, E2H).
constexpr u64 kSecondStage = u64{1} << 0 | u64{1} << 12;
constexpr u64 kHost = u64{1} << 27 | u64{1} << 34;
// TCR_EL1, D24.2.206.
constexpr u64 kEpd1 = u64{1} << 23;  // no walks by TTBR1_EL1
constexpr u64 kDs = u64{1} << 59;    // 52-bit addresses with granules of 4 and 16 KiB
constexpr u32 kT1szShift = 16;
constexpr u32 kTg1Shift = 30;
constexpr u32 kIpsShift = 32;
constexpr u64 kIps52Bits = 6;

constexpr u32 kEl0 = 0;
constexpr u32 kEl1 = 1;

Error refuse(const Arm64Vcpu& vcpu, std::string_view what) {
  return make_error(ErrorKind::kIncompatible, "vCPU {} {}", vcpu.index, what);
}

bool powered_off(const Arm64Vcpu& vcpu) { return vcpu.system && vcpu.system->powered_off; }

Result<void> check_mode(const Arm64Vcpu& vcpu) {
  const u32 level = vcpu.exception_level();
  if (level != kEl0 && level != kEl1) {
    return refuse(vcpu, fmt::format("runs at exception level {}: a hypervisor, firmware, or a kernel with "
                                    "virtualization host extensions, which is not understood",
                                    level));
  }
  if (vcpu.aarch32() && level != kEl0) return refuse(vcpu, "runs privileged code in AArch32 state");
  if (vcpu.system) {
    if ((vcpu.system->sctlr_el1 & kMmuOn) == 0) {
      return refuse(vcpu, "runs with address translation off: firmware or a boot loader");
    }
    if ((vcpu.system->sctlr_el1 & kBigEndian) != 0) return refuse(vcpu, "runs a big-endian kernel");
    if ((vcpu.system->hcr_el2 & kSecondStage) != 0) {
      return refuse(vcpu, "is under a second stage of address translation: in a nested guest");
    }
    if ((vcpu.system->hcr_el2 & kHost) != 0) {
      return refuse(vcpu, "runs a program of a kernel at exception level 2, which is not understood");
    }
  }
  if (level == kEl1 && (vcpu.pc >> 63) == 0) {
    return refuse(vcpu, fmt::format("runs privileged code at {:#x}, outside the kernel's half of the address "
                                    "space: firmware, a boot loader or a kernel being replaced",
                                    vcpu.pc));
  }
  return {};
}

// How TCR_EL1 has addresses of the kernel's half translated.
Arm64Translation translation_of(u64 tcr) {
  constexpr u32 kGranule[] = {0, 14, 12, 16};  // TG1; 0 is reserved
  return {.page_shift = kGranule[(tcr >> kTg1Shift) & 3],
          .va_bits = 64 - static_cast<u32>((tcr >> kT1szShift) & 0x3f),
          .lpa2 = (tcr & kDs) != 0};
}

// TTBR1_EL1, D24.2.212: BADDR in 47:1, aligned to the table; with 52-bit output addresses its bits 5:2
// are bits 51:48 of the address and the table is aligned to at least 64 bytes. Bit 0 is CnP.
GuestPhysical top_of(const Arm64System& system, const Arm64Translation& translation) {
  const bool wide =
      ((system.tcr_el1 >> kIpsShift) & 7) == kIps52Bits && (translation.lpa2 || translation.page_shift == 16);
  const u64 alignment = std::max<u64>(arm64_top_table_bytes(translation), wide ? 64 : 2);
  u64 top = system.ttbr1_el1 & 0x0000'ffff'ffff'ffff & ~(alignment - 1);
  if (wide) top |= (system.ttbr1_el1 & 0x3c) << 46;
  return GuestPhysical{top};
}

// Both tables must give the same bytes.
Result<void> check_same(const GuestMemory& memory, const PageTableRoot& own, const KernelImage& image,
                        const Arm64Vcpu& vcpu, u64 address, std::string_view what, std::string_view release) {
  const auto by_vcpu = translate(memory, own, GuestVirtual{address});
  const auto by_kernel = translate(memory, image.page_tables, GuestVirtual{address});
  for (const auto& result : {by_vcpu, by_kernel}) {
    const bool guest_says_so = result.ok() || result.error().kind() == ErrorKind::kNotFound ||
                               result.error().kind() == ErrorKind::kDamaged;
    if (!guest_says_so) return result.error();
  }
  if (by_vcpu.ok() && by_kernel.ok() && *by_vcpu == *by_kernel) return {};
  return refuse(vcpu, fmt::format("(TTBR1_EL1 {:#x}, {} at {:#x}) does not run under the page tables of {}",
                                  vcpu.system->ttbr1_el1, what, address, release));
}

Result<void> check_proof(const GuestMemory& memory, const KernelImage& image, std::string_view release,
                         const Arm64Vcpu& vcpu) {
  const Arm64System& system = *vcpu.system;
  const Arm64Translation translation = translation_of(system.tcr_el1);
  if ((system.tcr_el1 & kEpd1) != 0 || !translation.possible() ||
      translation.page_shift != image.page_shift) {
    return refuse(vcpu, fmt::format("(TCR_EL1 {:#x}) does not translate addresses as {} does", system.tcr_el1,
                                    release));
  }
  const PageTableRoot own = arm64_page_tables(top_of(system, translation), translation);
  VMSIEVE_TRY(check_same(memory, own, image, vcpu, system.vbar_el1, "exception vectors", release));
  if (vcpu.exception_level() == kEl0) return {};
  return check_same(memory, own, image, vcpu, vcpu.pc, "program counter", release);
}

Result<void> check_hint(const GuestMemory& memory, const KernelImage& image, std::string_view release,
                        const Arm64Vcpu& vcpu) {
  if (vcpu.exception_level() == kEl0 || !vcpu.pc_physical) return {};
  const auto by_kernel = translate(memory, image.page_tables, GuestVirtual{vcpu.pc});
  if (by_kernel.ok() && *by_kernel == *vcpu.pc_physical) return {};
  return refuse(vcpu, fmt::format("(program counter at {:#x}) does not run under the page tables of {}",
                                  vcpu.pc, release));
}

}  // namespace

Result<KernelImage> arm64_kernel_image(const VmcoreInfo& info) {
  const auto offset = info.number("kimage_voffset");
  if (!offset) return Error(ErrorKind::kUnsupported, "VMCOREINFO without NUMBER(kimage_voffset)");
  const auto configured = info.number("VA_BITS");
  if (!configured) return Error(ErrorKind::kUnsupported, "VMCOREINFO without NUMBER(VA_BITS)");

  Arm64Translation translation;
  const auto page_size = info.string("PAGESIZE").value_or("");
  translation.page_shift = page_size == "4096"    ? 12
                           : page_size == "16384" ? 14
                           : page_size == "65536" ? 16
                                                  : 0;
  // Kernels made for 52 bits run with fewer where the processor lacks them; TCR_EL1_T1SZ, since 5.9,
  // tells. Not so with 64 KiB pages, whose swapper_pg_dir is laid out for 52 bits even then (only the
  // value of TTBR1_EL1 is moved up: c812026c54cf).
  i64 va_bits = *configured;
  if (const auto t1sz = info.number("TCR_EL1_T1SZ"); t1sz && translation.page_shift != 16)
    va_bits = 64 - *t1sz;
  translation.va_bits = va_bits > 0 && va_bits <= 64 ? static_cast<u32>(va_bits) : 0;
  // With 4 and 16 KiB pages, 52 bits of address exist only together with LPA2 (352b0395b505).
  translation.lpa2 = translation.page_shift != 16 && translation.va_bits == 52;
  if (!translation.possible()) {
    return make_error(ErrorKind::kUnsupported,
                      "a kernel with pages of {} bytes and {} address bits, which is not understood ({})",
                      page_size.empty() ? "unknown" : page_size, va_bits, info.release());
  }

  KernelImage image;
  image.page_shift = translation.page_shift;
  const auto voffset = static_cast<u64>(*offset);
  // swapper_pg_dir has a page of its own (arch/arm64/kernel/vmlinux.lds.S).
  VMSIEVE_ASSIGN(const GuestPhysical top,
                 image_physical(info, "swapper_pg_dir", voffset, u64{1} << translation.page_shift));
  VMSIEVE_ASSIGN(image.text, need_symbol(info, "_stext"));
  VMSIEVE_ASSIGN(image.text_physical, image_physical(info, "_stext", voffset, 1));
  image.page_tables = arm64_page_tables(top, translation);
  return image;
}

Result<void> check_arm64_modes(std::span<const Arm64Vcpu> vcpus) {
  if (vcpus.empty()) return Error(ErrorKind::kIncompatible, "the guest shows no vCPU");
  if (std::all_of(vcpus.begin(), vcpus.end(), powered_off)) {
    return Error(ErrorKind::kIncompatible, "all vCPUs are powered off");
  }
  std::optional<Error> refusal;
  bool any_in_order = false;
  for (const Arm64Vcpu& vcpu : vcpus) {
    if (powered_off(vcpu)) continue;
    const auto checked = check_mode(vcpu);
    if (checked.ok()) {
      any_in_order = true;
    } else if (vcpu.system) {
      return checked.error();
    } else if (!refusal) {
      refusal = checked.error();  // unless it is off
    }
  }
  if (!any_in_order && refusal) return *refusal;
  return {};
}

Result<void> check_arm64_vcpus(const GuestMemory& memory, const KernelImage& image, std::string_view release,
                               std::span<const Arm64Vcpu> vcpus) {
  for (const Arm64Vcpu& vcpu : vcpus) {
    if (powered_off(vcpu)) continue;
    if (!vcpu.system && !check_mode(vcpu).ok()) continue;  // maybe it is off
    VMSIEVE_TRY(vcpu.system ? check_proof(memory, image, release, vcpu)
                            : check_hint(memory, image, release, vcpu));
  }
  return {};
}

}  // namespace vmsieve
