// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"

namespace vmsieve {

/// The text that a Linux kernel writes about its own structures (kernel/vmcore_info.c, before
/// 6.9 kernel/crash_core.c): lines KEY=VALUE, at most one page.
class VmcoreInfo {
 public:
  /// Parses hostile text; lines that are no KEY=VALUE are passed over, a key given twice with different
  /// values is kDamaged. Needs OSRELEASE.
  static Result<VmcoreInfo> parse(std::string_view text);

  const std::string& release() const { return release_; }
  const std::string& text() const { return text_; }

  std::optional<std::string_view> string(std::string_view key) const;  ///< "OSRELEASE"
  std::optional<GuestVirtual> symbol(std::string_view name) const;     ///< SYMBOL(name)=hex
  std::optional<i64> number(std::string_view name) const;    ///< NUMBER(name)=signed decimal, or 0x hex
  std::optional<u64> size(std::string_view name) const;      ///< SIZE(name)
  std::optional<u64> offset(std::string_view member) const;  ///< OFFSET(struct.member)
  std::optional<u64> length(std::string_view name) const;    ///< LENGTH(name)

 private:
  std::string text_;
  std::string release_;
  std::map<std::string, std::string, std::less<>> values_;
};

}  // namespace vmsieve
