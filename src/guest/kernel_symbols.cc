// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/kernel_symbols.h"

#include <array>

#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

constexpr u64 kMaxCpus = 8192;  // CONFIG_NR_CPUS of MAXSMP kernels

}  // namespace

Result<KernelSymbols> KernelSymbols::read(const GuestMemory& memory, PageTableRoot tables, Kallsyms symbols) {
  constexpr std::array<std::string_view, 2> ends{"__start_BTF", "__stop_BTF"};
  const auto found = symbols.addresses(ends);
  if (!found[0] || !found[1]) return Error(ErrorKind::kNotFound, "the kernel has no BTF");
  if (*found[1] <= *found[0] || *found[1] - *found[0] > Btf::kMaxBytes)
    return make_error(ErrorKind::kDamaged, "BTF from {:#x} to {:#x} makes no sense", found[0]->value,
                      found[1]->value);
  std::vector<std::byte> bytes(*found[1] - *found[0]);
  VMSIEVE_TRY(read_virtual(memory, tables, *found[0], bytes));
  VMSIEVE_ASSIGN(Btf types, Btf::parse(std::move(bytes)));
  return KernelSymbols(std::move(symbols), std::move(types));
}

Result<KernelSymbols> KernelSymbols::read(const GuestMemory& memory, const LinuxKernel& kernel) {
  auto symbols = Kallsyms::read(memory, kernel.page_tables(), kernel.vmcoreinfo());
  if (!symbols.ok()) symbols = Kallsyms::search(memory, kernel.page_tables());
  if (!symbols.ok()) return symbols.error();
  return read(memory, kernel.page_tables(), *std::move(symbols));
}

Result<std::vector<u64>> read_cpu_offsets(const GuestMemory& memory, PageTableRoot tables,
                                          const KernelSymbols& symbols) {
  constexpr std::array<std::string_view, 2> names{"__per_cpu_offset", "__cpu_possible_mask"};
  const auto found = symbols.symbols().addresses(names);
  const auto mask = symbols.types().size_of("cpumask");
  if (!found[0] || !found[1] || !mask || *mask > kMaxCpus / 8)
    return Error(ErrorKind::kUnsupported, "the kernel does not show where its per-CPU variables are");
  std::vector<std::byte> possible(*mask);
  VMSIEVE_TRY(read_virtual(memory, tables, *found[1], possible));
  std::vector<u64> offsets;
  for (u64 cpu = 0; cpu < possible.size() * 8; ++cpu) {
    if (((static_cast<u8>(possible[cpu / 8]) >> (cpu % 8)) & 1) == 0) continue;
    std::array<std::byte, 8> bytes;
    VMSIEVE_TRY(read_virtual(memory, tables, *found[0] + cpu * 8, bytes));
    offsets.push_back(load_le<u64>(bytes.data()));
  }
  if (offsets.empty()) return Error(ErrorKind::kUnsupported, "the kernel shows no CPU");
  return offsets;
}

}  // namespace vmsieve
