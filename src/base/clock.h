// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <string>

namespace vmsieve {

/// Milliseconds since it was made, by the monotonic clock.
class Stopwatch {
 public:
  double ms() const {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// Now, in UTC, ISO 8601 with milliseconds: "2026-01-31T12:34:56.789Z".
std::string utc_now();

}  // namespace vmsieve
