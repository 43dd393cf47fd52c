// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/arm64_vcpus.h"

#include <algorithm>
#include <limits>

#include "vmsieve/base/endian.h"
#include "vmsieve/base/numbers.h"

namespace vmsieve {

namespace {

// ---- what the monitor prints ----

/// The number behind "NAME=", which stands at the line's start or behind a blank.
std::optional<u64> value_of(std::string_view line, std::string_view name) {
  for (std::size_t at = line.find(name); at != std::string_view::npos; at = line.find(name, at + 1)) {
    if (at != 0 && line[at - 1] != ' ') continue;
    const std::string_view rest = line.substr(at + name.size());
    if (!rest.starts_with('=')) continue;
    return parse_number(rest.substr(1, rest.find_first_of(" \r\t", 1) - 1), 16);
  }
  return std::nullopt;
}

/// Registers of one vCPU as they come. In AArch32 state they are called R15 and PSR.
struct PrintedRegisters {
  u32 index = 0;
  std::optional<u64> pc, pstate;

  void take_line(std::string_view line) {
    for (const std::string_view name : {"PC", "R15"}) {
      if (const auto value = value_of(line, name); value && !pc) pc = value;
    }
    for (const std::string_view name : {"PSTATE", "PSR"}) {
      if (const auto value = value_of(line, name); value && !pstate) pstate = value;
    }
  }
};

// ---- the device state ----

constexpr std::string_view kSectionName{
    "\x03"
    "cpu",
    4};
constexpr std::byte kFullSection{0x04};  // QEMU_VM_SECTION_FULL, migration/savevm.h
constexpr u64 kHeaderBefore = 5;         // section type, u32 section id
constexpr u32 kCpuSectionVersion = 22;

// The fields of vmstate_arm_cpu, all big-endian, up to the array of system registers.
constexpr u64 kRegsBytes = u64{16} * 4;
constexpr u64 kXregsBytes = u64{32} * 8;
constexpr u64 kBankedBytes = 4 + 8 * 8 + 8 * 4 + 8 * 4 + 5 * 4 + 5 * 4 + 4 * 8 + 4 * 8;
// Behind it: exclusive monitor, features, exception, two timers.
constexpr u64 kBehindBytes = 3 * 8 + 8 + 4 + 4 + 8 + 2 * 8;
constexpr u64 kMaxSystemRegisters = 8192;
constexpr u64 kR15Offset = u64{15} * 4;

/// How QEMU numbers 64-bit system registers (Linux asm/kvm.h ARM64_SYS_REG, target/arm/kvm-consts.h).
constexpr u64 sysreg(u64 op0, u64 op1, u64 crn, u64 crm, u64 op2) {
  return 0x6030'0000'0013'0000 | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2;
}
constexpr u64 kSctlrEl1 = sysreg(3, 0, 1, 0, 0);
constexpr u64 kTtbr1El1 = sysreg(3, 0, 2, 0, 1);
constexpr u64 kTcrEl1 = sysreg(3, 0, 2, 0, 2);
constexpr u64 kVbarEl1 = sysreg(3, 0, 12, 0, 0);
constexpr u64 kHcrEl2 = sysreg(3, 4, 1, 1, 0);

struct CpuSection {
  u32 instance = 0;
  u64 pc = 0;
  u32 pstate = 0;
  std::optional<Arm64System> system;
};

/// Takes big-endian integers off the front; once there is too little, `ok` is false for good.
struct Reader {
  std::span<const std::byte> bytes;
  bool ok = true;

  bool skip(u64 count) {
    ok = ok && count <= bytes.size();
    if (ok) bytes = bytes.subspan(count);
    return ok;
  }
  template <typename T>
  T take() {
    const std::byte* const at = bytes.data();
    return skip(sizeof(T)) ? load_be<T>(at) : T{0};
  }
};

/// `indexes` and `values`: `count` u64 each, the indexes ascending.
std::optional<Arm64System> find_registers(std::span<const std::byte> indexes,
                                          std::span<const std::byte> values) {
  const auto value_of_register = [&](u64 wanted) -> std::optional<u64> {
    for (u64 i = 0; i * 8 < indexes.size(); ++i) {
      if (load_be<u64>(&indexes[i * 8]) == wanted) return load_be<u64>(&values[i * 8]);
    }
    return std::nullopt;
  };
  const auto sctlr = value_of_register(kSctlrEl1);
  const auto tcr = value_of_register(kTcrEl1);
  const auto ttbr1 = value_of_register(kTtbr1El1);
  const auto vbar = value_of_register(kVbarEl1);
  if (!sctlr || !tcr || !ttbr1 || !vbar) return std::nullopt;
  return Arm64System{.sctlr_el1 = *sctlr,
                     .tcr_el1 = *tcr,
                     .ttbr1_el1 = *ttbr1,
                     .vbar_el1 = *vbar,
                     .hcr_el2 = value_of_register(kHcrEl2).value_or(0)};
}

bool ascending(std::span<const std::byte> indexes) {
  for (u64 at = 8; at + 8 <= indexes.size(); at += 8) {
    if (load_be<u64>(&indexes[at - 8]) >= load_be<u64>(&indexes[at])) return false;
  }
  return true;
}

/// `bytes` begin behind the section's name. None when it is no such section.
std::optional<CpuSection> parse_section(std::span<const std::byte> bytes) {
  Reader reader{bytes};
  CpuSection section;
  section.instance = reader.take<u32>();
  if (reader.take<u32>() != kCpuSectionVersion) return std::nullopt;
  const std::span<const std::byte> regs = reader.bytes;
  if (!reader.skip(kRegsBytes + kXregsBytes)) return std::nullopt;
  section.pc = reader.take<u64>();
  section.pstate = reader.take<u32>();
  if ((section.pstate & 0x10) != 0) section.pc = load_be<u32>(&regs[kR15Offset]);
  reader.skip(kBankedBytes);
  const u32 count = reader.take<u32>();
  if (!reader.ok || count == 0 || count > kMaxSystemRegisters) return std::nullopt;
  const std::span<const std::byte> arrays = reader.bytes;
  reader.skip(u64{count} * 16 + kBehindBytes);
  const u8 off = reader.take<u8>();
  const u8 next = reader.take<u8>();  // a subsection, a section footer, another section or the end
  if (!reader.ok || off > 1 || (next > 8 && next != 0x7e)) return std::nullopt;
  const auto indexes = arrays.first(u64{count} * 8);
  if (!ascending(indexes)) return std::nullopt;
  section.system = find_registers(indexes, arrays.subspan(u64{count} * 8, u64{count} * 8));
  if (section.system) section.system->powered_off = off == 1;
  return section;
}

std::vector<CpuSection> find_sections(std::span<const std::byte> state) {
  std::vector<CpuSection> sections;
  const auto name = as_byte_span(kSectionName);
  for (auto at = state.begin();;) {
    at = std::search(at, state.end(), name.begin(), name.end());
    if (at == state.end()) return sections;
    const auto offset = static_cast<u64>(at - state.begin());
    ++at;
    if (offset < kHeaderBefore || state[offset - kHeaderBefore] != kFullSection) continue;
    if (const auto section = parse_section(state.subspan(offset + name.size()))) sections.push_back(*section);
  }
}

}  // namespace

Result<std::vector<Arm64Vcpu>> parse_arm64_registers(std::string_view text) {
  constexpr std::string_view kCpu = "CPU#";
  std::vector<PrintedRegisters> sets;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (!line.starts_with(kCpu)) {
      if (!sets.empty()) sets.back().take_line(line);
      continue;
    }
    const auto index = parse_number(line.substr(kCpu.size()), 10);
    if (!index || *index > std::numeric_limits<u32>::max()) {
      return Error(ErrorKind::kDamaged,
                   "cannot understand QEMU's 'info registers -a': a vCPU without a number");
    }
    sets.push_back({static_cast<u32>(*index), {}, {}});
  }
  if (sets.empty()) return make_error(ErrorKind::kDamaged, "QEMU's 'info registers -a' shows no vCPU");
  std::vector<Arm64Vcpu> vcpus;
  for (const PrintedRegisters& set : sets) {
    if (!set.pc || !set.pstate || *set.pstate > std::numeric_limits<u32>::max()) {
      return make_error(ErrorKind::kDamaged,
                        "QEMU's 'info registers -a' lacks program counter or processor state of vCPU {}",
                        set.index);
    }
    vcpus.push_back({set.index, *set.pc, static_cast<u32>(*set.pstate), {}, {}});
  }
  return vcpus;
}

std::optional<GuestPhysical> parse_gva2gpa(std::string_view text) {
  constexpr std::string_view kStart = "gpa: 0x";
  if (!text.starts_with(kStart)) return std::nullopt;
  text.remove_prefix(kStart.size());
  const auto value = parse_number(text.substr(0, text.find_first_of("\r\n")), 16);
  if (!value) return std::nullopt;
  return GuestPhysical{*value};
}

void add_arm64_system_registers(std::span<const std::byte> device_state, std::vector<Arm64Vcpu>& vcpus) {
  const std::vector<CpuSection> sections = find_sections(device_state);
  for (Arm64Vcpu& vcpu : vcpus) {
    const auto is_its = [&](const CpuSection& section) { return section.instance == vcpu.index; };
    const auto section = std::find_if(sections.begin(), sections.end(), is_its);
    if (section == sections.end() || std::count_if(sections.begin(), sections.end(), is_its) != 1) continue;
    if (section->pc == vcpu.pc && section->pstate == vcpu.pstate) vcpu.system = section->system;
  }
}

}  // namespace vmsieve
