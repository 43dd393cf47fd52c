// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/qmp_place.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <filesystem>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "vmsieve/base/runtime_folder.h"
#include "vmsieve/qemu/process_monitors.h"
#include "vmsieve/qemu/unix_socket.h"
#include "vmsieve/restore/obstacles.h"

namespace vmsieve {

namespace {

constexpr int kClaimAttempts = 100;
constexpr std::chrono::milliseconds kConnectPatience{200};
constexpr std::size_t kMaxNameBytes = 32;

bool is_folder(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

Result<void> check_path(const std::string& path) {
  constexpr std::size_t kMaxPathBytes = sizeof(sockaddr_un::sun_path) - 1;
  if (path.size() > kMaxPathBytes) {
    return make_error(ErrorKind::kUsage,
                      "{} is longer than a UNIX socket's path can be ({} bytes): give another with --qmp",
                      path, kMaxPathBytes);
  }
  const std::size_t slash = path.rfind('/');
  if (!path.starts_with('/') || !is_folder(path.substr(0, slash + 1))) {
    return make_error(
        ErrorKind::kUsage,
        "the QMP socket {} cannot be made: give an absolute path in a folder that is there with "
        "--qmp",
        path);
  }
  struct stat info {};
  if (::lstat(path.c_str(), &info) == 0 && !S_ISSOCK(info.st_mode)) {
    return make_error(ErrorKind::kUsage, "{} is there and is no socket: give another path with --qmp", path);
  }
  return {};
}

Result<void> check_nobody_listens(const std::string& path) {
  const auto connected = connect_unix(path, std::chrono::steady_clock::now() + kConnectPatience);
  if (connected || connected.error().kind() == ErrorKind::kBusy) {
    return make_error(ErrorKind::kBusy, "another process listens on {}: give another path with --qmp", path);
  }
  const ErrorKind kind = connected.error().kind();
  if (kind == ErrorKind::kNotFound || kind == ErrorKind::kVanished) return {};
  return connected.error();
}

/// Opens and locks the log; a symbolic link is not followed. Its owner removes it when the restore fails:
/// a lock on a file that is no longer the one at the path means nothing, so look again.
Result<UniqueFd> lock_log(const std::string& path) {
  for (int attempt = 0; attempt < kClaimAttempts; ++attempt) {
    VMSIEVE_ASSIGN(UniqueFd log, open_file(path, O_RDWR | O_CREAT | O_APPEND | O_NOFOLLOW, 0600));
    if (::flock(log.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) return errno_error(errno, fmt::format("cannot lock {}", path));
      return make_error(ErrorKind::kBusy, "{} belongs to another restored QEMU: give another path with --qmp",
                        path);
    }
    struct stat ours {};
    struct stat there {};
    if (::fstat(log.get(), &ours) == 0 && ::lstat(path.c_str(), &there) == 0 && ours.st_dev == there.st_dev &&
        ours.st_ino == there.st_ino) {
      return log;
    }
  }
  return make_error(ErrorKind::kBusy, "{} is made and removed all the time by others", path);
}

std::string file_name(const std::string& vm_name, const std::string& checkpoint_id) {
  std::string name = vm_name.empty() ? "vm" : vm_name.substr(0, kMaxNameBytes);
  std::ranges::replace_if(
      name,
      [](char c) {
        return !((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
                 c == '_');
      },
      '_');
  return name + "-" + checkpoint_id;
}

/// A folder that others cannot write to.
Result<std::string> folder_for_sockets() {
  std::string folder = runtime_folder();
  if (!folder.empty()) return folder;
  folder = "/tmp/vmsieve-XXXXXX";
  if (::mkdtemp(folder.data()) == nullptr)
    return errno_error(errno, fmt::format("cannot make the folder {}", folder));
  return folder;
}

/// Removes what QEMUs left in the folder that have ended: their sockets, and empty logs and those of more
/// than a day. QEMU holds the lock on its log as long as it lives.
void sweep(const std::string& folder) {
  constexpr std::time_t kLogSeconds = 86400;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator{folder, ignored}) {
    const std::string log_path = entry.path().string();
    constexpr std::string_view kLogSuffix = ".qmp.log";
    if (!log_path.ends_with(kLogSuffix)) continue;
    const auto log = open_file(log_path, O_RDWR | O_NOFOLLOW);
    if (!log || ::flock(log->get(), LOCK_EX | LOCK_NB) != 0) continue;
    const std::string socket_path = log_path.substr(0, log_path.size() - 4);
    if (!check_nobody_listens(socket_path)) continue;
    (void)::unlink(socket_path.c_str());
    struct stat info {};
    if (::fstat(log->get(), &info) != 0) continue;
    const bool old = std::time(nullptr) - info.st_mtime > kLogSeconds;
    if (info.st_size == 0 || old) (void)::unlink(log_path.c_str());
  }
}

}  // namespace

Result<QmpPlace> claim_qmp_place(const std::string& path) {
  VMSIEVE_TRY(check_path(path));
  QmpPlace place{path, path + ".log", {}};
  VMSIEVE_ASSIGN(place.log, lock_log(place.log_path));
  VMSIEVE_TRY(check_nobody_listens(path));
  if (::ftruncate(place.log.get(), 0) != 0)
    return errno_error(errno, fmt::format("cannot empty {}", place.log_path));
  return place;
}

Result<QmpPlace> claim_default_qmp_place(const std::vector<std::string>& command_line,
                                         const std::string& working_directory, const std::string& vm_name,
                                         const std::string& checkpoint_id) {
  for (const MonitorSocket& monitor : monitor_sockets(command_line)) {
    if (monitor.descriptor || monitor.path.empty()) continue;
    auto place = claim_qmp_place(resolve_path(monitor.path, working_directory));
    if (place) return place;
  }
  VMSIEVE_ASSIGN(const std::string folder, folder_for_sockets());
  sweep(folder);
  const std::string name = folder + "/" + file_name(vm_name, checkpoint_id);
  for (int number = 1; number <= kClaimAttempts; ++number) {
    auto place = claim_qmp_place(number == 1 ? name + ".qmp" : fmt::format("{}-{}.qmp", name, number));
    if (place || place.error().kind() != ErrorKind::kBusy) return place;
  }
  return make_error(ErrorKind::kBusy,
                    "{} restored QEMUs of checkpoint {} run already: give a path with --qmp", kClaimAttempts,
                    checkpoint_id);
}

}  // namespace vmsieve
