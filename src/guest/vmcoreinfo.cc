// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/vmcoreinfo.h"

#include <algorithm>
#include <bit>

#include "vmsieve/base/numbers.h"

namespace vmsieve {
namespace {

constexpr u64 kMaxReleaseBytes = 64;  // __NEW_UTS_LEN, include/uapi/linux/utsname.h

bool printable(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c <= '~'; });
}

}  // namespace

Result<VmcoreInfo> VmcoreInfo::parse(std::string_view text) {
  text = text.substr(0, text.find('\0'));
  if (text.size() > kMaxTextBytes) {
    return make_error(ErrorKind::kDamaged, "VMCOREINFO text of {} bytes: at most {} are possible",
                      text.size(), kMaxTextBytes);
  }
  VmcoreInfo info;
  info.text_ = text;
  for (std::string_view rest = text;;) {
    const std::size_t newline = rest.find('\n');
    if (newline == std::string_view::npos) break;
    const std::string_view line = rest.substr(0, newline);
    rest.remove_prefix(newline + 1);
    const std::size_t equals = line.find('=');
    if (equals == std::string_view::npos || equals == 0) continue;
    const auto [entry, inserted] = info.values_.emplace(line.substr(0, equals), line.substr(equals + 1));
    if (!inserted && entry->second != line.substr(equals + 1)) {
      // Only a key that is safe to print is named.
      return make_error(ErrorKind::kDamaged, "VMCOREINFO gives {} twice, with different values",
                        printable(entry->first) ? entry->first : "a key");
    }
  }
  const auto release = info.string("OSRELEASE");
  if (!release) return Error(ErrorKind::kDamaged, "VMCOREINFO without OSRELEASE");
  if (release->empty() || release->size() > kMaxReleaseBytes || !printable(*release)) {
    return make_error(ErrorKind::kDamaged, "VMCOREINFO's OSRELEASE is not 1 to {} printable characters",
                      kMaxReleaseBytes);
  }
  info.release_ = *release;
  return info;
}

std::optional<std::string_view> VmcoreInfo::string(std::string_view key) const {
  const auto entry = values_.find(key);
  if (entry == values_.end()) return std::nullopt;
  return entry->second;
}

std::optional<std::string_view> VmcoreInfo::value_of(std::string_view kind, std::string_view name) const {
  return string(fmt::format("{}({})", kind, name));
}

std::optional<GuestVirtual> VmcoreInfo::symbol(std::string_view name) const {
  const auto text = value_of("SYMBOL", name);
  const auto value = text ? parse_number(*text, 16) : std::nullopt;
  if (!value) return std::nullopt;
  return GuestVirtual{*value};
}

std::optional<i64> VmcoreInfo::number(std::string_view name) const {
  const auto text = value_of("NUMBER", name);
  if (!text) return std::nullopt;
  if (text->starts_with("0x")) {
    const auto value = parse_number(text->substr(2), 16);
    if (!value) return std::nullopt;
    return std::bit_cast<i64>(*value);
  }
  return parse_number<i64>(*text);
}

std::optional<u64> VmcoreInfo::size(std::string_view name) const {
  const auto text = value_of("SIZE", name);
  return text ? parse_number(*text, 10) : std::nullopt;
}

std::optional<u64> VmcoreInfo::offset(std::string_view member) const {
  const auto text = value_of("OFFSET", member);
  return text ? parse_number(*text, 10) : std::nullopt;
}

std::optional<u64> VmcoreInfo::length(std::string_view name) const {
  const auto text = value_of("LENGTH", name);
  return text ? parse_number(*text, 10) : std::nullopt;
}

}  // namespace vmsieve
