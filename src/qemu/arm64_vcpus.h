// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/vcpu.h"

namespace vmsieve {

/// `info registers -a` of an aarch64 machine (target/arm/cpu.c, aarch64_cpu_dump_state and
/// aarch32_cpu_dump_state): index, program counter and processor state of every vCPU, in order. System
/// registers are not printed. Hostile text: kDamaged when a vCPU lacks one of them, never a guess.
Result<std::vector<Arm64Vcpu>> parse_arm64_registers(std::string_view text);

/// `gva2gpa ADDRESS` (monitor/hmp-cmds-target.c): nothing when the vCPU's translation gives none.
std::optional<GuestPhysical> parse_gva2gpa(std::string_view text);

/// Adds the system registers, from the sections "cpu" of the device state (target/arm/machine.c,
/// vmstate_arm_cpu, version 22): what QEMU would give a new QEMU to go on from. Nothing but section headers
/// separates sections, so they are searched for, and believed only when there is exactly one for the
/// vCPU, whose fields fit together and whose program counter and processor state are those that `vcpus`
/// has. A vCPU without such a section, or without one of the registers, stays without system registers.
void add_arm64_system_registers(std::span<const std::byte> device_state, std::vector<Arm64Vcpu>& vcpus);

}  // namespace vmsieve
