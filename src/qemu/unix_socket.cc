// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/unix_socket.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <cerrno>
#include <cstring>
#include <thread>

namespace vmsieve {

Result<UniqueFd> connect_unix(const std::string& path, std::chrono::steady_clock::time_point deadline) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  UniqueFd handle;
  std::string target = path;
  if (path.size() >= sizeof address.sun_path) {
    VMSIEVE_ASSIGN(handle, open_file(path, O_PATH));
    target = fmt::format("/proc/self/fd/{}", handle.get());
  }
  std::memcpy(address.sun_path, target.data(), target.size());

  UniqueFd socket{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  if (!socket.valid()) return errno_error(errno, "cannot make a UNIX socket");
  for (;;) {
    // connect(2) takes the address of any family as a sockaddr.
    if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
      return socket;
    }
    if (errno == EINTR) continue;
    if (errno == ECONNREFUSED) {
      return make_error(ErrorKind::kVanished, "nobody listens on {}: its process is gone", path);
    }
    if (errno != EAGAIN) return errno_error(errno, fmt::format("cannot connect to {}", path));
    // The listener's queue is full; a UNIX socket cannot be polled for room in it.
    if (std::chrono::steady_clock::now() >= deadline) {
      return make_error(ErrorKind::kBusy,
                        "{} takes no connection: other clients (a save of vmsieve, libvirt) hold this "
                        "monitor, which serves one at a time, or QEMU hangs",
                        path);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds{5});
  }
}

}  // namespace vmsieve
