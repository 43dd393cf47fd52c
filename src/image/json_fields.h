// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"

namespace vmsieve {

/// Reads the members of a JSON object that somebody else wrote. Nothing throws; the first thing that is wrong
/// (a member missing, of another type, out of range) is kept in `error` as kDamaged with the member's path,
/// and everything after that does nothing. So a reader states its members one after another and asks once.
/// References to the JSON value and to `error`: both must outlive this.
class JsonFields {
 public:
  using Json = nlohmann::json;

  /// `value` must be an object, or `error` is set. `path` names it in errors; empty at the top.
  JsonFields(const Json& value, std::string path, std::optional<Error>& error);

  void get(const char* name, bool& out) const;
  void get(const char* name, u64& out) const;
  void get(const char* name, u32& out) const;
  /// Any finite number.
  void get(const char* name, double& out) const;
  /// A string, or bytes that are no UTF-8: {"hex": "..."}.
  void get(const char* name, std::string& out) const;
  void get(const char* name, std::vector<std::string>& out) const;
  /// 16 lower-case hex digits.
  void get_hex(const char* name, u64& out) const;

  /// Is there such a member? For what later versions of this program added.
  bool has(const char* name) const { return !error_ && value_->is_object() && value_->contains(name); }
  JsonFields object(const char* name) const;
  /// Calls `read(fields)` for each element, every one an object.
  template <typename Read>
  void list(const char* name, Read read) const {
    const Json* elements = array(name);
    if (elements == nullptr) return;
    std::size_t i = 0;
    for (const Json& element : *elements) {
      const JsonFields fields{element, fmt::format("{}[{}]", path_of(name), i++), error_};
      if (error_) return;
      read(fields);
    }
  }

  /// Sets the error "manifest member PATH: what" if there is none yet.
  void fail(const char* name, std::string_view what) const;

 private:
  std::string path_of(const char* name) const;
  /// The member, or nullptr with `error` set; nullptr also when there was an error before.
  const Json* find(const char* name) const;
  const Json* array(const char* name) const;

  const Json* value_;
  std::string path_;
  std::optional<Error>& error_;
};

/// A text as the format writes it: a JSON string, or {"hex": "..."} when it is no UTF-8.
nlohmann::ordered_json json_text(std::string_view text);
nlohmann::ordered_json json_texts(const std::vector<std::string>& texts);

/// Does a JSON text nest deeper than `levels`? Asked before parsing: a value of a million levels costs a
/// hundred bytes per level.
bool json_deeper_than(std::string_view text, unsigned levels);

/// Exactly `digits` lower-case hex digits.
std::optional<u64> parse_hex(std::string_view text, std::size_t digits);

}  // namespace vmsieve
