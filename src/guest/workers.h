// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <system_error>
#include <thread>
#include <vector>

namespace vmsieve {

/// Calls `work()` on `threads` threads, the caller's own among them, and returns when every call
/// has. The calls share the work by a counter of their own; a thread that the system does not grant
/// is done without, so one call is all that is certain. At most 64 threads.
template <typename Work>
void run_workers(unsigned threads, const Work& work) {
  std::vector<std::thread> others;
  for (unsigned i = 1; i < std::min(threads, 64U); ++i) {
    try {
      others.emplace_back([&work] { work(); });
    } catch (const std::system_error&) {
      break;
    }
  }
  work();
  for (std::thread& thread : others) thread.join();
}

}  // namespace vmsieve
