// SPDX-License-Identifier: Apache-2.0
// What the human monitor prints: the first byte chooses the command whose answer the rest is.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "vmsieve/base/endian.h"
#include "vmsieve/base/result.h"
#include "vmsieve/qemu/arm64_vcpus.h"
#include "vmsieve/qemu/monitor_text.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vmsieve;
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 6) {
    case 0:
      if (const auto lines = parse_info_ramblock(text); lines.ok()) {
        for (const RamblockLine& line : *lines) VMSIEVE_CHECK(line.name.size() <= text.size());
      }
      break;
    case 1:
      if (const auto ranges = parse_info_mtree(text); ranges.ok()) {
        for (std::size_t i = 0; i < ranges->size(); ++i) {
          VMSIEVE_CHECK((*ranges)[i].first <= (*ranges)[i].last);
          VMSIEVE_CHECK(i == 0 || (*ranges)[i - 1].last < (*ranges)[i].first);
        }
      }
      break;
    case 2: (void)parse_gpa2hva(text); break;
    case 3:
      (void)parse_gva2gpa(text);
      if (auto vcpus = parse_arm64_registers(text); vcpus.ok()) {
        for (const Arm64Vcpu& vcpu : *vcpus) VMSIEVE_CHECK(vcpu.exception_level() <= 3 && !vcpu.system);
      }
      break;
    case 4: {
      // The device state, for vCPUs at the start of the address space.
      std::vector<Arm64Vcpu> vcpus{{}, {}};
      vcpus[1].index = 1;
      add_arm64_system_registers(as_byte_span(text), vcpus);
      break;
    }
    default:
      if (const auto vcpus = parse_info_registers(text); vcpus.ok()) {
        for (const X86Vcpu& vcpu : *vcpus) VMSIEVE_CHECK(vcpu.cpl <= 3);
      }
  }
  return 0;
}
