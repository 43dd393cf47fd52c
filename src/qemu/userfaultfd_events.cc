// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/userfaultfd_events.h"

#include <linux/userfaultfd.h>
#include <poll.h>
#include <unistd.h>
#include <array>
#include <cerrno>

namespace vmsieve {

namespace {

constexpr std::size_t kMessagesPerRead = 64;

}  // namespace

Result<std::vector<u64>> wait_for_pages(int userfaultfd, int timeout_ms) {
  std::vector<u64> pages;
  pollfd poll{userfaultfd, POLLIN, 0};
  const int ready = ::poll(&poll, 1, timeout_ms);
  if (ready < 0 && errno != EINTR) return errno_error(errno, "cannot wait for page faults");
  if (ready <= 0) return pages;
  std::array<uffd_msg, kMessagesPerRead> messages;
  const ssize_t got = ::read(userfaultfd, messages.data(), sizeof messages);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return pages;
  if (got < 0) return errno_error(errno, "cannot read from a userfaultfd");
  // POLLHUP or POLLERR: the other process's address space is gone.
  if (got == 0) return Error(ErrorKind::kVanished, "the process has gone");
  for (std::size_t i = 0; i < static_cast<std::size_t>(got) / sizeof(uffd_msg); ++i) {
    if (messages[i].event == UFFD_EVENT_PAGEFAULT)
      pages.push_back(round_down(messages[i].arg.pagefault.address, kPageSize));
  }
  return pages;
}

}  // namespace vmsieve
