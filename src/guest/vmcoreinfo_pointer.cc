// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/vmcoreinfo_pointer.h"

#include "vmsieve/guest/kernel_reader.h"

namespace vmsieve {

Result<VmcoreInfoCandidate> follow_vmcoreinfo_pointer(const GuestMemory& memory, const PageTableRoot& tables,
                                                      const Kallsyms& symbols) {
  const auto variable = symbols.address("vmcoreinfo_data");
  const auto data = variable ? KernelReader(memory, tables).pointer(*variable) : std::nullopt;
  if (!data) return Error(ErrorKind::kNotFound, "the kernel has no VMCOREINFO");
  VMSIEVE_ASSIGN(const GuestPhysical address, translate(memory, tables, *data));
  std::string text(kPageSize - address.value % kPageSize, '\0');
  VMSIEVE_TRY(memory.read(address, std::as_writable_bytes(std::span{text})));
  text.resize(text.find('\0') == std::string::npos ? text.size() : text.find('\0'));
  if (!text.starts_with("OSRELEASE=")) return Error(ErrorKind::kNotFound, "the kernel's VMCOREINFO is empty");
  return VmcoreInfoCandidate{address, std::move(text), false};
}

}  // namespace vmsieve
