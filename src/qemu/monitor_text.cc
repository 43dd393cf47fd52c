// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/monitor_text.h"

#include <algorithm>
#include <limits>

#include "vmsieve/base/numbers.h"

namespace vmsieve {

namespace {

Error not_understood(std::string_view command, std::string_view line) {
  constexpr std::size_t kShown = 120;
  std::string shown;
  for (const char c : line.substr(0, kShown)) shown += c >= 0x20 && c < 0x7f ? c : '?';
  return make_error(ErrorKind::kDamaged, "cannot understand what QEMU printed for '{}': \"{}\"", command,
                    shown);
}

std::optional<u64> parse_0x(std::string_view text) {
  if (!text.starts_with("0x")) return std::nullopt;
  return parse_number(text.substr(2), 16);
}

/// Takes the next line off `text`, without CR and LF.
std::string_view take_line(std::string_view& text) {
  const std::size_t end = std::min(text.find('\n'), text.size());
  std::string_view line = text.substr(0, end);
  text.remove_prefix(std::min(end + 1, text.size()));
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line;
}

std::vector<std::string_view> split_words(std::string_view line) {
  std::vector<std::string_view> words;
  for (;;) {
    const std::size_t start = line.find_first_not_of(" \t");
    if (start == std::string_view::npos) return words;
    line.remove_prefix(start);
    const std::size_t end = std::min(line.find_first_of(" \t"), line.size());
    words.push_back(line.substr(0, end));
    line.remove_prefix(end);
  }
}

/// "4 KiB" as util/cutils.c, size_to_str prints it.
std::optional<u64> parse_size(std::string_view number, std::string_view unit) {
  constexpr std::string_view kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  const auto value = parse_number(number, 10);
  if (!value) return std::nullopt;
  for (std::size_t i = 0; i < std::size(kUnits); ++i) {
    const u64 shift = 10 * i;
    if (unit == kUnits[i] && *value <= std::numeric_limits<u64>::max() >> shift) return *value << shift;
  }
  return std::nullopt;
}

/// NAME PSIZE UNIT OFFSET USED TOTAL [HVA [RO]]; a name may hold spaces, so the sizes are looked for
/// from the right.
std::optional<RamblockLine> parse_ramblock_line(std::string_view line) {
  const std::vector<std::string_view> words = split_words(line);
  for (std::size_t i = words.size(); i-- > 0;) {
    if (words.size() - i < 5) continue;
    const auto page = parse_size(words[i], words[i + 1]);
    const auto offset = parse_0x(words[i + 2]);
    const auto used = parse_0x(words[i + 3]);
    const auto total = parse_0x(words[i + 4]);
    if (!page || !offset || !used || !total) continue;
    RamblockLine block;
    block.page_bytes = *page;
    block.used_bytes = *used;
    block.total_bytes = *total;
    if (i > 0) {
      const char* start = words.front().data();
      block.name.assign(start, words[i - 1].data() + words[i - 1].size());
    }
    if (i + 5 < words.size()) {
      const auto host = parse_0x(words[i + 5]);
      if (!host) return std::nullopt;
      block.host = HostVirtual{*host};
    }
    return block;
  }
  return std::nullopt;
}

bool is_sane(const RamblockLine& block) {
  const bool power_of_two = block.page_bytes != 0 && (block.page_bytes & (block.page_bytes - 1)) == 0;
  return power_of_two && block.page_bytes >= kPageSize && block.used_bytes <= block.total_bytes &&
         block.total_bytes <= u64{1} << 56;
}

/// "0000000000100000-00000000bfffffff (prio 0, ram): pc.ram @0000000000100000"
std::optional<FlatRange> parse_flat_range(std::string_view line) {
  const std::size_t start = line.find_first_not_of(' ');
  if (start == std::string_view::npos) return std::nullopt;
  line.remove_prefix(start);
  const std::size_t dash = line.find('-');
  const std::size_t space = line.find(" (prio ");
  const std::size_t comma = line.find(", ", space);
  const std::size_t close = line.find("): ", comma);
  if (dash == std::string_view::npos || space == std::string_view::npos || comma == std::string_view::npos ||
      close == std::string_view::npos || dash > space) {
    return std::nullopt;
  }
  const auto first = parse_number(line.substr(0, dash), 16);
  const auto last = parse_number(line.substr(dash + 1, space - dash - 1), 16);
  if (!first || !last || *first > *last) return std::nullopt;
  FlatRange range;
  range.first = GuestPhysical{*first};
  range.last = GuestPhysical{*last};
  range.kind = std::string{line.substr(comma + 2, close - comma - 2)};
  range.label = std::string{line.substr(close + 3)};
  return range;
}

/// Registers of one vCPU as they come; each must be there once it is complete.
struct RegisterSet {
  X86Vcpu state;
  std::optional<u64> cr0, cr3, cr4, efer, rip, cs_base, cpl, smm, hlt;

  bool complete() const { return cr0 && cr3 && cr4 && efer && rip && cs_base && cpl && smm && hlt; }
  void take_word(std::string_view word);
};

void RegisterSet::take_word(std::string_view word) {
  const std::size_t equals = word.find('=');
  if (equals == std::string_view::npos) return;
  const std::string_view name = word.substr(0, equals);
  const auto value = parse_number(word.substr(equals + 1), 16);
  if (name == "RIP" || name == "EIP") rip = value;
  if (name == "CR0") cr0 = value;
  if (name == "CR3") cr3 = value;
  if (name == "CR4") cr4 = value;
  if (name == "EFER") efer = value;
  if (name == "CPL") cpl = value;
  if (name == "SMM") smm = value;
  if (name == "HLT") hlt = value;
}

Result<X86Vcpu> finish(const RegisterSet& set) {
  if (!set.complete() || *set.cpl > 3) {
    return make_error(ErrorKind::kDamaged, "QEMU's 'info registers -a' lacks a control register of vCPU {}",
                      set.state.index);
  }
  X86Vcpu state = set.state;
  state.cr0 = *set.cr0;
  state.cr3 = *set.cr3;
  state.cr4 = *set.cr4;
  state.efer = *set.efer;
  state.rip = *set.rip;
  state.cs_base = *set.cs_base;
  state.cpl = static_cast<u32>(*set.cpl);
  state.smm = *set.smm != 0;
  state.halted = *set.hlt != 0;
  return state;
}

}  // namespace

Result<std::vector<RamblockLine>> parse_info_ramblock(std::string_view text) {
  constexpr std::string_view kCommand = "info ramblock";
  std::vector<RamblockLine> blocks;
  bool header = false;
  while (!text.empty()) {
    const std::string_view line = take_line(text);
    if (line.find_first_not_of(' ') == std::string_view::npos) continue;
    if (!header) {
      if (line.find("Block Name") == std::string_view::npos) return not_understood(kCommand, line);
      header = true;
      continue;
    }
    auto block = parse_ramblock_line(line);
    if (!block || !is_sane(*block)) return not_understood(kCommand, line);
    blocks.push_back(std::move(*block));
  }
  if (blocks.empty()) return make_error(ErrorKind::kDamaged, "QEMU's 'info ramblock' names no RAM block");
  return blocks;
}

Result<std::vector<FlatRange>> parse_info_mtree(std::string_view text) {
  constexpr std::string_view kCommand = "info mtree -f";
  std::vector<FlatRange> ranges;
  bool wanted = false;
  bool found = false;
  while (!text.empty()) {
    const std::string_view line = take_line(text);
    if (line.starts_with("FlatView #")) {
      if (found) break;
      wanted = false;
    }
    // The CPUs' views (cpu-memory-N, cpu-smm-N) may differ; "memory" is what devices and every
    // CPU outside SMM see (system/physmem.c, memory_map_init).
    if (line.starts_with(" AS \"memory\", root: ")) wanted = found = true;
    if (!wanted || !line.starts_with("  ") || line.starts_with("  No rendered")) continue;
    auto range = parse_flat_range(line);
    if (!range) return not_understood(kCommand, line);
    if (!ranges.empty() && range->first <= ranges.back().last) return not_understood(kCommand, line);
    ranges.push_back(std::move(*range));
  }
  if (!found) {
    return make_error(ErrorKind::kDamaged, "QEMU's 'info mtree -f' shows no address space \"memory\"");
  }
  return ranges;
}

std::optional<u64> offset_in_region(const FlatRange& range, std::string_view name) {
  std::string_view rest = range.label;
  if (name.empty() || !rest.starts_with(name)) return std::nullopt;
  rest.remove_prefix(name.size());
  if (!rest.empty() && rest.front() != ' ') return std::nullopt;
  const std::vector<std::string_view> words = split_words(rest);
  u64 offset = 0;
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (i == 0 && words[i].starts_with('@')) {
      const auto value = parse_number(words[i].substr(1), 16);
      if (!value) return std::nullopt;
      offset = *value;
      continue;
    }
    // Accelerators that hold the range too, "KVM" for example. Anything else is a longer name.
    const bool capitals =
        std::all_of(words[i].begin(), words[i].end(), [](char c) { return c >= 'A' && c <= 'Z'; });
    if (!capitals) return std::nullopt;
  }
  return offset;
}

Result<HostAnswer> parse_gpa2hva(std::string_view text) {
  constexpr std::string_view kStart = "Host virtual address for 0x";
  constexpr std::string_view kIs = ") is ";
  const std::string_view line = take_line(text);
  if (line.find("No memory is mapped") != std::string_view::npos ||
      line.find("is not RAM") != std::string_view::npos) {
    return make_error(ErrorKind::kNotFound, "QEMU's gpa2hva: {}", line);
  }
  const std::size_t open = line.find(" (");
  const std::size_t close = line.rfind(kIs);
  if (!line.starts_with(kStart) || open == std::string_view::npos || close == std::string_view::npos ||
      open + 2 > close) {
    return not_understood("gpa2hva", line);
  }
  const auto value = parse_0x(line.substr(close + kIs.size()));
  if (!value) return not_understood("gpa2hva", line);
  return HostAnswer{std::string{line.substr(open + 2, close - open - 2)}, HostVirtual{*value}};
}

Result<std::vector<X86Vcpu>> parse_info_registers(std::string_view text) {
  constexpr std::string_view kCpu = "CPU#";
  constexpr std::string_view kCs = "CS =";
  std::vector<X86Vcpu> vcpus;
  std::optional<RegisterSet> current;
  const auto close_current = [&]() -> Result<void> {
    if (!current) return {};
    VMSIEVE_ASSIGN(const X86Vcpu state, finish(*current));
    vcpus.push_back(state);
    return {};
  };
  while (!text.empty()) {
    const std::string_view line = take_line(text);
    if (line.starts_with(kCpu)) {
      VMSIEVE_TRY(close_current());
      const auto index = parse_number(line.substr(kCpu.size()), 10);
      if (!index || *index > std::numeric_limits<u32>::max())
        return not_understood("info registers -a", line);
      current.emplace();
      current->state.index = static_cast<u32>(*index);
      continue;
    }
    if (!current) continue;
    const std::vector<std::string_view> words = split_words(line);
    // "CS =0010 0000000000000000 ffffffff ...": selector, base, limit.
    if (line.starts_with(kCs) && words.size() > 2) current->cs_base = parse_number(words[2], 16);
    for (const std::string_view word : words) current->take_word(word);
  }
  VMSIEVE_TRY(close_current());
  if (vcpus.empty()) return make_error(ErrorKind::kDamaged, "QEMU's 'info registers -a' shows no vCPU");
  return vcpus;
}

}  // namespace vmsieve
