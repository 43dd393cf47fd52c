// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/process.h"

#include <dirent.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>

#include "vmsieve/base/numbers.h"
#include "vmsieve/qemu/process_monitors.h"
#include "vmsieve/qemu/qmp.h"
#include "vmsieve/qemu/unix_socket.h"

namespace vmsieve {

namespace {

using Clock = std::chrono::steady_clock;

constexpr u64 kCmdlineLimit = 8 * kMiB;
constexpr u64 kStatLimit = 4 * kKiB;
constexpr u64 kNetUnixLimit = 64 * kMiB;

Result<std::string> read_link(const std::string& path) {
  char target[4096];
  const ssize_t n = ::readlink(path.c_str(), target, sizeof target);
  if (n < 0) return errno_error(errno, fmt::format("cannot read the link {}", path));
  return std::string{target, static_cast<std::size_t>(n)};
}

std::string link_or_empty(const std::string& path) {
  auto target = read_link(path);
  return target ? std::move(*target) : std::string{};
}

/// Reading another process's command line waits for a lock on its address space, so only those
/// processes are asked whose program, by two lock-free files, may be QEMU.
bool may_be_qemu(const std::string& proc, const std::string& executable) {
  if (executable.find("qemu") != std::string::npos) return true;
  const auto comm = read_text_file(proc + "/comm", kStatLimit);
  return comm && comm->find("qemu") != std::string::npos;
}

/// Paths of a process in another mount namespace are reached through its root.
std::string root_prefix(const std::string& proc) {
  const std::string own = link_or_empty("/proc/self/ns/mnt");
  const std::string its = link_or_empty(proc + "/ns/mnt");
  return its.empty() || own == its ? std::string{} : proc + "/root";
}

std::optional<std::string> path_of_descriptor(const std::string& proc, u64 descriptor) {
  constexpr std::string_view kSocket = "socket:[";
  const std::string target = link_or_empty(fmt::format("{}/fd/{}", proc, descriptor));
  if (!target.starts_with(kSocket)) return std::nullopt;
  u64 inode = 0;
  const char* end = target.data() + target.size();
  if (std::from_chars(target.data() + kSocket.size(), end, inode).ec != std::errc{}) return std::nullopt;
  const auto net_unix = read_text_file(proc + "/net/unix", kNetUnixLimit);
  if (!net_unix) return std::nullopt;
  const auto paths = unix_socket_paths(*net_unix);
  const auto found = paths.find(inode);
  if (found == paths.end()) return std::nullopt;
  return found->second;
}

std::vector<std::string> qmp_paths(const std::string& proc, const QemuProcess& process) {
  std::vector<std::string> paths;
  const std::string prefix = root_prefix(proc);
  for (const MonitorSocket& socket : monitor_sockets(process.arguments)) {
    std::string path = socket.path;
    if (socket.descriptor) path = path_of_descriptor(proc, *socket.descriptor).value_or("");
    if (path.empty()) continue;
    if (path.front() != '/') path = process.working_directory + "/" + path;
    paths.push_back(prefix + std::filesystem::path{path}.lexically_normal().string());
  }
  return paths;
}

enum class Check { kName, kNone };

Result<QemuProcess> read_process(pid_t pid, Check check) {
  const std::string proc = fmt::format("/proc/{}", pid);
  const auto missing = [&] { return make_error(ErrorKind::kNotFound, "there is no process {}", pid); };
  const auto foreign = [&] {
    return make_error(ErrorKind::kUnsupported, "process {} is no QEMU system emulator", pid);
  };
  if (pid <= 0 || ::access(proc.c_str(), F_OK) != 0) return missing();

  QemuProcess process;
  process.pid = pid;
  process.executable = link_or_empty(proc + "/exe");
  if (check == Check::kName && !may_be_qemu(proc, process.executable)) return foreign();
  auto stat = read_text_file(proc + "/stat", kStatLimit);
  auto cmdline = read_text_file(proc + "/cmdline", kCmdlineLimit);
  if (!stat || !cmdline) {
    const Error& error = stat ? cmdline.error() : stat.error();
    return error.kind() == ErrorKind::kNotFound || error.kind() == ErrorKind::kVanished ? missing() : error;
  }
  process.arguments = split_cmdline(*cmdline);
  // A zombie has no command line.
  if (process.arguments.empty()) return foreign();
  if (check == Check::kName && !is_qemu_program(process.executable) &&
      !is_qemu_program(process.arguments.front())) {
    return foreign();
  }
  const auto start_ticks = start_ticks_of_stat(*stat);
  if (!start_ticks) return make_error(ErrorKind::kDamaged, "{}/stat has no start time", proc);
  process.start_ticks = *start_ticks;
  process.working_directory = link_or_empty(proc + "/cwd");
  process.name = guest_name(process.arguments);
  process.qmp_paths = qmp_paths(proc, process);
  return process;
}

std::string describe(const QemuProcess& process) {
  return process.name.empty() ? fmt::format("pid:{}", process.pid)
                              : fmt::format("{} (pid:{})", process.name, process.pid);
}

std::string describe(const std::vector<QemuProcess>& processes) {
  std::string text;
  for (const QemuProcess& process : processes) text += (text.empty() ? "" : ", ") + describe(process);
  return text.empty() ? "there is no QEMU process" : "there is " + text;
}

/// `-uuid`'s value; empty when not given.
std::string uuid_of(const QemuProcess& process) {
  const std::vector<std::string>& arguments = process.arguments;
  const auto uuid = std::find(arguments.begin(), arguments.end(), "-uuid");
  return uuid == arguments.end() || uuid + 1 == arguments.end() ? std::string{} : *(uuid + 1);
}

/// libvirt's API tells no process: it is the one QEMU that was given the domain's UUID.
Result<VmAddress> resolve_libvirt(const std::string& name) {
  VMSIEVE_ASSIGN(std::shared_ptr<const LibvirtDomain> domain, LibvirtDomain::open(name, ""));
  VMSIEVE_ASSIGN(std::vector<QemuProcess> processes, list_qemu_processes());
  std::erase_if(processes, [&](const QemuProcess& process) { return uuid_of(process) != domain->uuid(); });
  if (processes.size() != 1) {
    return make_error(processes.empty() ? ErrorKind::kNotFound : ErrorKind::kAmbiguous,
                      "libvirt:{}: {} QEMUs that can be seen from here have its UUID {}", name,
                      processes.size(), domain->uuid());
  }
  std::string qmp_path = domain->qmp_path();
  return VmAddress{std::move(processes.front()), std::move(qmp_path), std::move(domain)};
}

/// The first monitor that answers: others may be held by a management program for good.
Result<VmAddress> choose_monitor(QemuProcess process) {
  constexpr QmpClient::Milliseconds kProbe{300};
  if (started_by_libvirt(process)) return resolve_libvirt(uuid_of(process));
  if (process.qmp_paths.empty()) {
    return make_error(
        ErrorKind::kUnsupported,
        "{} has no QMP monitor on a UNIX socket: start it with -qmp unix:PATH,server=on,wait=off",
        describe(process));
  }
  std::string chosen = process.qmp_paths.front();
  if (process.qmp_paths.size() > 1) {
    const auto answers = [&](const std::string& path) { return QmpClient::connect(path, kProbe).ok(); };
    const auto first = std::find_if(process.qmp_paths.begin(), process.qmp_paths.end(), answers);
    if (first != process.qmp_paths.end()) chosen = *first;
  }
  return VmAddress{std::move(process), std::move(chosen)};
}

bool same_file(const struct stat& file, const std::string& path) {
  struct stat other {};
  return ::stat(path.c_str(), &other) == 0 && other.st_dev == file.st_dev && other.st_ino == file.st_ino;
}

/// Who listens on the socket: by the command lines, else by asking the kernel. The listener's
/// credentials are those of the process that called listen(2), which a management program may
/// have done for QEMU, so the command line comes first.
Result<VmAddress> resolve_socket(const std::string& path) {
  constexpr std::chrono::seconds kConnect{5};
  struct stat file {};
  if (::stat(path.c_str(), &file) != 0) return errno_error(errno, fmt::format("cannot find {}", path));
  if (!S_ISSOCK(file.st_mode)) return make_error(ErrorKind::kUsage, "{} is no UNIX socket", path);

  VMSIEVE_ASSIGN(std::vector<QemuProcess> processes, list_qemu_processes());
  std::erase_if(processes, [&](const QemuProcess& process) {
    return std::none_of(process.qmp_paths.begin(), process.qmp_paths.end(),
                        [&](const std::string& its) { return same_file(file, its); });
  });
  if (processes.size() == 1) return VmAddress{std::move(processes.front()), path};

  VMSIEVE_ASSIGN(const UniqueFd socket, connect_unix(path, Clock::now() + kConnect));
  ucred peer{};
  socklen_t length = sizeof peer;
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0 || peer.pid <= 0) {
    return make_error(ErrorKind::kUnsupported, "the process behind {} is outside this PID namespace", path);
  }
  auto process = read_process(peer.pid, Check::kNone);
  if (!process) return process.error().with_context(fmt::format("looking at who listens on {}", path));
  return VmAddress{std::move(*process), path};
}

Result<VmAddress> resolve_name(const std::string& name) {
  VMSIEVE_ASSIGN(std::vector<QemuProcess> all, list_qemu_processes());
  std::vector<QemuProcess> fitting;
  std::copy_if(all.begin(), all.end(), std::back_inserter(fitting),
               [&](const QemuProcess& process) { return process.name == name; });
  if (fitting.empty()) {
    return make_error(ErrorKind::kNotFound, "no QEMU has the name '{}': {}", name, describe(all));
  }
  if (fitting.size() > 1) {
    return make_error(ErrorKind::kAmbiguous, "several QEMUs have the name '{}': {}; say pid:N", name,
                      describe(fitting));
  }
  return choose_monitor(std::move(fitting.front()));
}

}  // namespace

Result<QemuProcess> read_qemu_process(pid_t pid) { return read_process(pid, Check::kName); }

bool started_by_libvirt(const QemuProcess& process) {
  const bool has_its_secret = std::ranges::any_of(process.arguments, [](const std::string& argument) {
    return argument.find("secret") != std::string::npos && argument.find("masterKey0") != std::string::npos;
  });
  const auto monitors = monitor_sockets(process.arguments);
  return has_its_secret && std::ranges::all_of(monitors, [](const MonitorSocket& socket) {
           return socket.descriptor.has_value();
         });
}

Result<UniqueFd> open_process(pid_t pid) {
  const long fd = ::syscall(SYS_pidfd_open, pid, 0);
  if (fd >= 0) return UniqueFd{static_cast<int>(fd)};
  if (errno == ESRCH) return make_error(ErrorKind::kVanished, "process {} is gone", pid);
  if (errno == ENOSYS) {
    return make_error(ErrorKind::kUnsupported, "the host's kernel has no pidfd_open (Linux 5.3)");
  }
  return errno_error(errno, fmt::format("cannot open process {}", pid));
}

bool has_ended(int process, std::chrono::milliseconds patience) {
  pollfd end{process, POLLIN, 0};
  return ::poll(&end, 1, static_cast<int>(patience.count())) > 0;
}

Result<std::vector<QemuProcess>> list_qemu_processes() {
  const std::unique_ptr<DIR, int (*)(DIR*)> folder{::opendir("/proc"), ::closedir};
  if (!folder) return errno_error(errno, "cannot list /proc");
  std::vector<QemuProcess> processes;
  while (const dirent* entry = ::readdir(folder.get())) {
    const auto pid = parse_number<pid_t>(entry->d_name);
    if (!pid) continue;
    if (auto process = read_qemu_process(*pid)) processes.push_back(std::move(*process));
  }
  std::sort(processes.begin(), processes.end(),
            [](const QemuProcess& a, const QemuProcess& b) { return a.pid < b.pid; });
  return processes;
}

Result<VmAddress> resolve_vm(const std::string& spec) {
  constexpr std::string_view kPid = "pid:";
  constexpr std::string_view kLibvirt = "libvirt:";
  if (spec.empty()) return make_error(ErrorKind::kUsage, "the name of a VM is empty");
  if (spec.starts_with(kLibvirt)) {
    return resolve_libvirt(spec.substr(kLibvirt.size()));
  }
  if (spec.starts_with(kPid)) {
    const auto pid = parse_number<pid_t>(spec.substr(kPid.size()));
    if (!pid) {
      return make_error(ErrorKind::kUsage, "'{}' names no process: pid:N wants a number", spec);
    }
    VMSIEVE_ASSIGN(QemuProcess process, read_qemu_process(*pid));
    return choose_monitor(std::move(process));
  }
  struct stat file {};
  const bool is_path =
      spec.find('/') != std::string::npos || (::stat(spec.c_str(), &file) == 0 && S_ISSOCK(file.st_mode));
  return is_path ? resolve_socket(spec) : resolve_name(spec);
}

}  // namespace vmsieve
