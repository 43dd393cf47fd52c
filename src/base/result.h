// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include <fmt/format.h>

namespace vmsieve {

/// What went wrong, as far as a caller can act on it. The command line maps each kind to a
/// documented exit code; the text of the error is for people.
enum class ErrorKind {
  kUsage,         ///< the caller asked for something that makes no sense
  kNotFound,      ///< no such VM, checkpoint, file
  kAmbiguous,     ///< several VMs or checkpoints fit the name
  kPermission,    ///< the kernel or QEMU refuses us
  kIo,            ///< reading or writing failed (full disk, lost mount, ...)
  kDamaged,       ///< stored or received bytes are not what they must be
  kUnsupported,   ///< well-formed, but this program does not handle it
  kIncompatible,  ///< checkpoint and target QEMU, host or options do not fit each other
  kRefused,       ///< QEMU refused (migration blocker, command error)
  kVanished,      ///< the peer process went away
  kTimeout,       ///< the peer did not answer in time
  kBusy,          ///< held by somebody else
};

/// Stable lower-case name, as used in `--json` errors.
std::string_view to_string(ErrorKind kind);

/// An error: its kind and one sentence that says what was being done, on what (path, address and
/// length in hex), and errno or the peer's own words.
class Error {
 public:
  Error(ErrorKind kind, std::string message) : kind_(kind), message_(std::move(message)) {}

  ErrorKind kind() const { return kind_; }
  const std::string& message() const { return message_; }

  /// The same error with what was being done put in front: "context: message".
  Error with_context(std::string_view context) const {
    return {kind_, fmt::format("{}: {}", context, message_)};
  }

 private:
  ErrorKind kind_;
  std::string message_;
};

template <typename... Args>
Error make_error(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
  return {kind, fmt::format(format, std::forward<Args>(args)...)};
}

/// An error from `errno_value`: EACCES and EPERM become kPermission, ENOENT kNotFound, ESRCH
/// kVanished, everything else kIo. The system's own words are put behind the message.
Error errno_error(int errno_value, std::string message);

/// A value or an Error. Using the value of a failed Result ends the process: check first, or pass
/// the error on with VMSIEVE_TRY.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  T& value() & { return require(), *std::get_if<0>(&state_); }
  const T& value() const& { return require(), *std::get_if<0>(&state_); }
  T&& value() && { return require(), std::move(*std::get_if<0>(&state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  const Error& error() const {
    if (ok()) std::abort();
    return *std::get_if<1>(&state_);
  }

 private:
  void require() const {
    if (!ok()) std::abort();
  }

  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::in_place_index<1>, std::move(error)) {}

  bool ok() const { return error_.index() == 0; }
  explicit operator bool() const { return ok(); }
  const Error& error() const {
    if (ok()) std::abort();
    return *std::get_if<1>(&error_);
  }

 private:
  std::variant<std::monostate, Error> error_;
};

}  // namespace vmsieve

#define VMSIEVE_CONCAT_INNER(a, b) a##b
#define VMSIEVE_CONCAT(a, b) VMSIEVE_CONCAT_INNER(a, b)

/// Passes an error on: `VMSIEVE_TRY(file.write(...));`
#define VMSIEVE_TRY(expression)             \
  do {                                      \
    auto vmsieve_try_result = (expression); \
    if (!vmsieve_try_result.ok()) {         \
      return vmsieve_try_result.error();    \
    }                                       \
  } while (false)

/// Passes an error on, or binds the value: `VMSIEVE_ASSIGN(auto size, file.size());`
#define VMSIEVE_ASSIGN(target, expression) \
  VMSIEVE_ASSIGN_INNER(VMSIEVE_CONCAT(vmsieve_result_, __LINE__), target, expression)
#define VMSIEVE_ASSIGN_INNER(temporary, target, expression) \
  auto temporary = (expression);                            \
  if (!temporary.ok()) return temporary.error();            \
  target = std::move(*temporary)

/// A broken invariant of our own: ends the process, in release builds too.
#define VMSIEVE_CHECK(condition)                                               \
  do {                                                                         \
    if (!(condition)) ::vmsieve::check_failed(#condition, __FILE__, __LINE__); \
  } while (false)

namespace vmsieve {
[[noreturn]] void check_failed(const char* condition, const char* file, int line);
}  // namespace vmsieve
