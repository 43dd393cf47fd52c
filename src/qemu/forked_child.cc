// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/forked_child.h"

#include <sys/prctl.h>
#include <unistd.h>

namespace vmsieve {

namespace {

/// Closes [first, end).
void close_between(unsigned first, unsigned end) {
  if (first >= end || ::close_range(first, end - 1, 0) == 0) return;
  // Before Linux 5.9: one by one, as far as descriptors are usually numbered.
  constexpr unsigned kUsual = 65536;
  for (unsigned fd = first; fd < end && fd < kUsual; ++fd) ::close(static_cast<int>(fd));
}

}  // namespace

void enter_own_life(const char* name, int kept, int also_kept) noexcept {
  ::setsid();
  ::prctl(PR_SET_NAME, name);
  const auto low = static_cast<unsigned>(kept < also_kept ? kept : also_kept);
  const auto high = static_cast<unsigned>(kept < also_kept ? also_kept : kept);
  close_between(0, low);
  close_between(low + 1, high);
  close_between(high + 1, ~0U);
}

}  // namespace vmsieve
