// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"

namespace vmsieve {

/// Puts the bytes of a QMP stream together into lines: QEMU ends every message with CR LF and
/// puts none inside one (docs/interop/qmp-spec.rst, "General Definitions"). No I/O.
class LineAssembler {
 public:
  /// QEMU's own limit for one token (MAX_TOKEN_SIZE, qobject/json-lexer.c).
  static constexpr u64 kMaxLineBytes = 64 * kMiB;

  explicit LineAssembler(u64 max_line_bytes = kMaxLineBytes) : max_line_bytes_(max_line_bytes) {}

  /// Appends bytes as they came; kDamaged when a line grows beyond the limit.
  Result<void> feed(std::string_view bytes);
  /// The next complete line without its end, or nothing yet. Empty lines are skipped.
  std::optional<std::string> next_line();

 private:
  u64 max_line_bytes_;
  std::string buffer_;
  std::size_t start_ = 0;    ///< of the line that is being put together
  std::size_t scanned_ = 0;  ///< no line end in [start_, scanned_)
};

/// One message from QEMU.
struct QmpMessage {
  enum class Kind {
    kGreeting,  ///< body: the value of "QMP"
    kEvent,     ///< body: the whole event
    kReturn,    ///< body: the value of "return"
    kError,     ///< body: the value of "error"
  };
  Kind kind = Kind::kEvent;
  std::optional<u64> id;  ///< of the command answered; none when it was no number of ours
  nlohmann::json body;

  /// QEMU's own words of an error.
  std::string error_text() const;
};

/// Parses and classifies one line; kDamaged when it is no QMP message. Nesting is bounded before
/// parsing, and nothing throws.
Result<QmpMessage> parse_qmp_message(std::string_view line);

/// One line for QEMU: the command with its arguments and id, CR LF at the end. Bytes that are no
/// UTF-8 are replaced, since JSON cannot carry them.
std::string format_qmp_command(std::string_view command, const nlohmann::json& arguments, u64 id);

/// A string member of an object, or `fallback` when `object` has no such string.
std::string json_string(const nlohmann::json& object, const char* key, std::string fallback = {});

/// A non-negative integer member of an object, if there is one.
std::optional<u64> json_u64(const nlohmann::json& object, const char* key);

/// A member of an object that is `true`.
bool json_true(const nlohmann::json& object, const char* key);

/// Forces QEMU's JSON parser into its start state, whatever half command it was given before:
/// 0xFF ends every token with an error, and the line end ends the recovery from it
/// (qobject/json-lexer.c, IN_RECOVERY). QEMU answers with one error that has no id.
inline constexpr std::string_view kQmpResync = "\xFF\n";

}  // namespace vmsieve
