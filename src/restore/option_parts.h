// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace vmsieve {

/// The parts of an option's value between single commas, as written: a doubled comma, which
/// stands for one inside a value, stays doubled (QEMU util/qemu-option.c, util/keyval.c).
std::vector<std::string> split_parts(std::string_view value);
std::string join_parts(const std::vector<std::string>& parts);

/// The key of a part: what stands before '='; of a part without '=', `implied` if it is the first
/// and there is one, else the part itself.
std::string_view part_key(std::string_view part, bool first, std::string_view implied);

/// `text` with every comma doubled, fit to stand inside a value.
std::string escape_commas(std::string_view text);

/// Key and value pairs of an option's value, in order, in plain text: KEY=VALUE parts between
/// commas, or a JSON object (`-device`, `-object`, `-blockdev`, `-netdev`), whose members are
/// flattened with dots and whose true and false become on and off. A part without '=' is "on".
/// What is no JSON although it begins like it has no properties.
class OptionProperties {
 public:
  OptionProperties(std::string_view value, std::string_view implied);

  /// The last value of `key`.
  std::optional<std::string> get(std::string_view key) const;
  /// get() is "on", "yes", "true" or "y" (QEMU qapi_bool_parse).
  bool on(std::string_view key) const;
  const std::vector<std::pair<std::string, std::string>>& all() const { return properties_; }

 private:
  std::vector<std::pair<std::string, std::string>> properties_;
};

}  // namespace vmsieve
