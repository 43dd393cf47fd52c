// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/base/result.h"

#include <cerrno>
#include <cstdio>
#include <system_error>

namespace vmsieve {

std::string_view to_string(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kUsage: return "usage";
    case ErrorKind::kNotFound: return "not-found";
    case ErrorKind::kAmbiguous: return "ambiguous";
    case ErrorKind::kPermission: return "permission";
    case ErrorKind::kIo: return "io";
    case ErrorKind::kDamaged: return "damaged";
    case ErrorKind::kUnsupported: return "unsupported";
    case ErrorKind::kIncompatible: return "incompatible";
    case ErrorKind::kRefused: return "refused";
    case ErrorKind::kVanished: return "vanished";
    case ErrorKind::kTimeout: return "timeout";
    case ErrorKind::kBusy: return "busy";
  }
  return "unknown";
}

Error errno_error(int errno_value, std::string message) {
  ErrorKind kind = ErrorKind::kIo;
  if (errno_value == EACCES || errno_value == EPERM) kind = ErrorKind::kPermission;
  if (errno_value == ENOENT) kind = ErrorKind::kNotFound;
  if (errno_value == ESRCH) kind = ErrorKind::kVanished;
  return {kind, fmt::format("{}: {}", message, std::generic_category().message(errno_value))};
}

void check_failed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "vmsieve: broken invariant at %s:%d: %s\n", file, line, condition);
  std::abort();
}

}  // namespace vmsieve
