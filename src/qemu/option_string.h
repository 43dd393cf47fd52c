// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace vmsieve {

/// A QEMU option argument such as `socket,id=mon0,path=/run/a,,b,server=on`: KEY=VALUE parts between
/// commas, a doubled comma standing for one inside a value (util/qemu-option.c,
/// opts_do_parse). A part without '=' is a flag, stored as "on" ("nofoo" stays "nofoo"); the first
/// part without '=' is the value of the option's implied key.
class OptionString {
 public:
  OptionString(std::string_view text, std::string_view implied_key);

  /// The last value given for `key`, as QEMU takes it.
  std::optional<std::string> get(std::string_view key) const;

 private:
  std::vector<std::pair<std::string, std::string>> parts_;
};

}  // namespace vmsieve
