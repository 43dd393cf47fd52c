// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/formats/libvirt_fifo.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>
#include <array>
#include <cerrno>

#include "vmsieve/base/clock.h"
#include "vmsieve/base/runtime_folder.h"

namespace vmsieve {

namespace {

constexpr int kPollMilliseconds = 20;
constexpr double kPatienceMs = 5000;

Error nobody_reads() { return Error(ErrorKind::kVanished, "libvirt does not read what it is to restore"); }

}  // namespace

Result<std::unique_ptr<LibvirtFifo>> LibvirtFifo::make() {
  const std::string folder = runtime_folder();
  if (folder.empty()) return Error(ErrorKind::kIo, "there is no place for a FIFO");
  UniqueFd events{::inotify_init1(IN_NONBLOCK | IN_CLOEXEC)};
  if (!events.valid()) return errno_error(errno, "cannot watch a FIFO");
  std::unique_ptr<LibvirtFifo> fifo{
      new LibvirtFifo(fmt::format("{}/libvirt-restore-{}", folder, ::getpid()), std::move(events))};
  (void)::unlink(fifo->path_.c_str());
  if (::mkfifo(fifo->path_.c_str(), 0600) != 0)
    return errno_error(errno, fmt::format("cannot make {}", fifo->path_));
  if (::inotify_add_watch(fifo->events_.get(), fifo->path_.c_str(), IN_CLOSE_NOWRITE) < 0)
    return errno_error(errno, fmt::format("cannot watch {}", fifo->path_));
  return fifo;
}

LibvirtFifo::~LibvirtFifo() { (void)::unlink(path_.c_str()); }

Result<UniqueFd> LibvirtFifo::wait_for_reader() const {
  while (!given_up_) {
    // Without O_NONBLOCK nothing but a reader would end it.
    UniqueFd fd{::open(path_.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC)};
    if (fd.valid()) {
      if (::fcntl(fd.get(), F_SETFL, 0) != 0) return errno_error(errno, fmt::format("cannot use {}", path_));
      return fd;
    }
    if (errno != ENXIO && errno != EINTR) return errno_error(errno, fmt::format("cannot open {}", path_));
    ::poll(nullptr, 0, 1);
  }
  return nobody_reads();
}

/// Since it was asked last.
bool LibvirtFifo::reader_has_left() const {
  std::array<std::byte, 4096> events;
  bool left = false;
  while (::read(events_.get(), events.data(), events.size()) > 0) left = true;
  return left;
}

/// Waits for a reader first.
Result<void> LibvirtFifo::write_head(int fd, std::span<const std::byte> head) const {
  while (!given_up_) {
    const ssize_t n = ::write(fd, head.data(), head.size());
    if (n >= 0) head = head.subspan(static_cast<std::size_t>(n));
    if (head.empty()) return {};
    if (n >= 0 || errno == EINTR) continue;
    if (errno != EPIPE) return errno_error(errno, fmt::format("cannot write to {}", path_));
    ::poll(nullptr, 0, 1);
  }
  return nobody_reads();
}

Result<UniqueFd> LibvirtFifo::serve_head(std::span<const std::byte> head,
                                         const std::function<bool()>& is_loading) {
  VMSIEVE_ASSIGN(UniqueFd fd, wait_for_reader());
  VMSIEVE_TRY(write_head(fd.get(), head));
  for (Stopwatch since; since.ms() < kPatienceMs;) {
    if (given_up_) return nobody_reads();
    // In this order: all who read only the head have closed the file before QEMU is started.
    const bool loading = is_loading();
    if (reader_has_left()) {
      VMSIEVE_TRY(write_head(fd.get(), head));
      since = {};
    } else if (loading) {
      break;
    }
    pollfd event{events_.get(), POLLIN, 0};
    ::poll(&event, 1, kPollMilliseconds);
  }
  return fd;
}

}  // namespace vmsieve
