// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/forked_child.h"

#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>
#include <algorithm>
#include <cstring>

namespace vmsieve {

namespace {

// Set once, by main().
char* shown_command_line = nullptr;
std::size_t shown_bytes = 0;

/// In our copy of the memory only.
void show(const char* name) noexcept {
  if (shown_bytes == 0) return;
  std::memset(shown_command_line, 0, shown_bytes);
  std::copy_n(name, std::min(std::strlen(name), shown_bytes - 1), shown_command_line);
}

/// Closes [first, end).
void close_between(unsigned first, unsigned end) {
  if (first >= end || ::close_range(first, end - 1, 0) == 0) return;
  // Before Linux 5.9: one by one, as far as descriptors are usually numbered.
  constexpr unsigned kUsual = 65536;
  for (unsigned fd = first; fd < end && fd < kUsual; ++fd) ::close(static_cast<int>(fd));
}

}  // namespace

void let_children_rename(int argc, char** argv) noexcept {
  if (argc < 1) return;
  shown_command_line = argv[0];
  for (int i = 0; i < argc && argv[i] == shown_command_line + shown_bytes; ++i)
    shown_bytes += std::strlen(argv[i]) + 1;
}

long now_milliseconds() noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void enter_own_life(const char* name, int* kept, unsigned count) noexcept {
  ::setsid();
  ::prctl(PR_SET_NAME, name);
  show(name);
  for (unsigned i = 1; i < count; ++i) {
    for (unsigned j = i; j > 0 && kept[j] < kept[j - 1]; --j) {
      const int larger = kept[j - 1];
      kept[j - 1] = kept[j];
      kept[j] = larger;
    }
  }
  unsigned first = 0;
  for (unsigned i = 0; i < count; ++i) {
    if (kept[i] < 0) continue;
    close_between(first, static_cast<unsigned>(kept[i]));
    first = static_cast<unsigned>(kept[i]) + 1;
  }
  close_between(first, ~0U);
}

}  // namespace vmsieve
