// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/btf.h"
#include "vmsieve/guest/kallsyms.h"
#include "vmsieve/guest/linux_kernel.h"
#include "vmsieve/guest/memory.h"

namespace vmsieve {

/// Names and types of one kernel, out of its own memory: what VMCOREINFO is too short to say.
/// A copy: no reference to guest memory is kept.
class KernelSymbols {
 public:
  /// Kallsyms where VMCOREINFO says, else found in the kernel image; BTF between __start_BTF and
  /// __stop_BTF. Reads 10 MiB or so, up to the whole image: tens of milliseconds; call it while the guest
  /// runs. The tables are in read-only memory of the kernel, so they do not change afterwards. An error
  /// when either is missing: then nothing that needs names is known.
  static Result<KernelSymbols> read(const GuestMemory& memory, const LinuxKernel& kernel);

  /// BTF where `symbols` say that it is.
  static Result<KernelSymbols> read(const GuestMemory& memory, PageTableRoot tables, Kallsyms symbols);

  const Kallsyms& symbols() const { return symbols_; }
  const Btf& types() const { return types_; }

 private:
  KernelSymbols(Kallsyms symbols, Btf types) : symbols_(std::move(symbols)), types_(std::move(types)) {}

  Kallsyms symbols_;
  Btf types_;
};

/// What is added to the address of a per-CPU variable for each possible CPU, by CPU number
/// (__per_cpu_offset[], include/asm-generic/percpu.h). kUnsupported when it cannot be found.
Result<std::vector<u64>> read_cpu_offsets(const GuestMemory& memory, PageTableRoot tables,
                                          const KernelSymbols& symbols);

}  // namespace vmsieve
