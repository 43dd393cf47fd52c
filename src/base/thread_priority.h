// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace vmsieve {

/// How far threads that nobody waits for stand back behind a guest's own (nice(2)): its vCPUs may need every
/// core that there is.
inline constexpr int kBackgroundNice = 10;
/// The same of threads for which the guest may have to wait in the end.
inline constexpr int kBesideGuestNice = 5;

/// Lowers the calling thread's priority; for good, since only the privileged may raise it again. Linux: the
/// nice value is a thread's own.
inline void lower_priority(int nice) {
  if (nice > 0) ::setpriority(PRIO_PROCESS, static_cast<id_t>(::syscall(SYS_gettid)), nice);
}

}  // namespace vmsieve
