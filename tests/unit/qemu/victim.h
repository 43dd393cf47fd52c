// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <functional>
#include <string>

#include <sys/types.h>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/units.h"

namespace vmsieve::test {

/// What a victim and its test both see (shared memory).
struct VictimBoard {
  std::atomic<u64> rounds{0};       ///< how often it has checked itself
  std::atomic<u64> faults{0};       ///< what it found wrong
  std::atomic<u64> interrupted{0};  ///< sleeps that returned EINTR
  std::atomic<u64> signals{0};      ///< handled
  std::atomic<i64> result{0};
  std::atomic<i64> error{0};
  std::atomic<u64> address{0};
  std::atomic<u64> order{0};  ///< what the test wants next
};

/// A forked process that runs `life`, killed and reaped with the object, and killed if the test dies.
class Victim {
 public:
  explicit Victim(const std::function<void(VictimBoard&)>& life);
  ~Victim();
  Victim(const Victim&) = delete;
  Victim& operator=(const Victim&) = delete;

  pid_t pid() const { return pid_; }
  VictimBoard& board() const { return *board_; }
  /// Not ended.
  bool alive() const;
  /// The letter of /proc/PID/status.
  char state() const;
  /// Waits up to two seconds for the letter.
  bool reaches_state(char wanted) const;
  /// Waits up to five seconds for so many further rounds.
  bool makes_rounds(u64 count) const;
  /// Waits up to five seconds for its end; the exit code, -1 when it was killed or has not ended.
  int exit_code();
  /// Descriptors that are open; only userfaultfds.
  std::size_t descriptors() const;
  std::size_t userfaultfds() const;

 private:
  pid_t pid_ = -1;
  VictimBoard* board_ = nullptr;
};

/// Fills the general, x87, SSE and (if there is one) AVX registers and the flags, spins for `spins` turns and
/// says whether everything is still there.
bool registers_survive(u64 spins);

}  // namespace vmsieve::test
