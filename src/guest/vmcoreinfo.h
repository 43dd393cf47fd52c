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
/// 6.9 kernel/crash_core.c): lines KEY=VALUE, at most one page (VMCOREINFO_BYTES = PAGE_SIZE); what
/// does not fit is cut off in the middle of a line (vmcoreinfo_append_str).
class VmcoreInfo {
 public:
  /// More text than this is refused; a kernel with 4 KiB pages writes at most 4096 bytes.
  static constexpr u64 kMaxTextBytes = 16 * kKiB;

  /// Parses hostile text up to its end or its first NUL. Lines that are no KEY=VALUE are passed over,
  /// and so is a last line without its newline, whose value may have been cut. A key given twice
  /// with different values is kDamaged. Needs OSRELEASE: 1 to 64 printable characters (struct
  /// new_utsname), so that it may be shown to people.
  static Result<VmcoreInfo> parse(std::string_view text);

  const std::string& release() const { return release_; }
  /// The text up to its end or first NUL, an unfinished last line included.
  const std::string& text() const { return text_; }

  std::optional<std::string_view> string(std::string_view key) const;  ///< "OSRELEASE"
  std::optional<GuestVirtual> symbol(std::string_view name) const;     ///< SYMBOL(name)=hex, no 0x
  /// NUMBER(name)=signed decimal, or 0x and hex (two's complement) where the kernel prints it by
  /// hand (arm64, VMALLOC_START).
  std::optional<i64> number(std::string_view name) const;
  std::optional<u64> size(std::string_view name) const;      ///< SIZE(name)
  std::optional<u64> offset(std::string_view member) const;  ///< OFFSET(struct.member)
  std::optional<u64> length(std::string_view name) const;    ///< LENGTH(name)

 private:
  std::optional<std::string_view> value_of(std::string_view kind, std::string_view name) const;

  std::string text_;
  std::string release_;
  std::map<std::string, std::string, std::less<>> values_;
};

}  // namespace vmsieve
