// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/libvirt_domain.h"

#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include <fcntl.h>
#include <nlohmann/json.hpp>

#include "vmsieve/base/runtime_folder.h"
#include "vmsieve/qemu/qmp_wire.h"

namespace vmsieve {

namespace {

using Json = nlohmann::json;

constexpr const char* kProgram = "vmsieve-libvirt";
constexpr std::size_t kMaxReplyBytes = 16 * kMiB;
constexpr int kLibvirtMilliseconds = 30000;
constexpr int kEndMilliseconds = 2000;

struct Pipe {
  UniqueFd reading, writing;
};

Result<Pipe> make_pipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return errno_error(errno, "cannot make a pipe");
  return Pipe{UniqueFd{ends[0]}, UniqueFd{ends[1]}};
}

/// Writing to it when the program is gone raises no signal (MSG_NOSIGNAL).
Result<Pipe> make_lifeline() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
    return errno_error(errno, "cannot make a socket pair");
  return Pipe{UniqueFd{ends[0]}, UniqueFd{ends[1]}};
}

struct Child {
  pid_t pid = -1;
  UniqueFd input, output;
};

/// In a session of its own: what ends vmsieve from a terminal must not end it.
Result<Child> start(const std::vector<std::string>& arguments) {
  VMSIEVE_ASSIGN(std::string program, find_libvirt_program());
  VMSIEVE_ASSIGN(Pipe input, make_lifeline());
  VMSIEVE_ASSIGN(Pipe output, make_pipe());
  std::vector<std::string> texts = arguments;
  std::vector<char*> argv{program.data()};
  for (std::string& text : texts) argv.push_back(text.data());
  argv.push_back(nullptr);

  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&actions);
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigset_t all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawn_file_actions_adddup2(&actions, input.reading.get(), STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, output.writing.get(), STDOUT_FILENO);
  posix_spawn_file_actions_addclosefrom_np(&actions, STDERR_FILENO + 1);
  Child child;
  const int failed = ::posix_spawn(&child.pid, program.c_str(), &actions, &attributes, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (failed != 0) return errno_error(failed, fmt::format("cannot start {}", program));
  child.input = std::move(input.writing);
  child.output = std::move(output.reading);
  return child;
}

int wait_for(pid_t pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) return -1;
  }
  return status;
}

ErrorKind kind_of(const std::string& name) {
  if (name == "not-found") return ErrorKind::kNotFound;
  if (name == "permission") return ErrorKind::kPermission;
  if (name == "vanished") return ErrorKind::kVanished;
  if (name == "io") return ErrorKind::kIo;
  if (name == "incompatible") return ErrorKind::kIncompatible;
  if (name == "damaged") return ErrorKind::kDamaged;
  return ErrorKind::kRefused;
}

/// The one line that it prints. `patience` in milliseconds for each part of it; -1: for ever.
Result<Json> read_reply(int output, int patience) {
  std::string text;
  char chunk[65536];
  while (text.find('\n') == std::string::npos && text.size() < kMaxReplyBytes) {
    pollfd polled{output, POLLIN, 0};
    const int ready = ::poll(&polled, 1, patience);
    if (ready < 0 && errno == EINTR) continue;
    if (ready == 0) return Error(ErrorKind::kTimeout, "libvirt does not answer");
    const ssize_t n = ::read(output, chunk, sizeof chunk);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    text.append(chunk, static_cast<std::size_t>(n));
  }
  Json reply = Json::parse(text.substr(0, text.find('\n')), nullptr, false);
  if (!reply.is_object()) return make_error(ErrorKind::kVanished, "{} ended without an answer", kProgram);
  if (const std::string error = json_string(reply, "error"); !error.empty())
    return Error(kind_of(json_string(reply, "kind")), error);
  return reply;
}

std::vector<std::string> with_uri(std::vector<std::string> arguments, const std::string& uri) {
  if (!uri.empty()) arguments.push_back(uri);
  return arguments;
}

Result<void> send_all(int socket, const std::string& text) {
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t n = ::send(socket, text.data() + done, text.size() - done, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error(errno, fmt::format("{} does not read what it is asked", kProgram));
    done += static_cast<std::size_t>(n);
  }
  return {};
}

}  // namespace

Result<std::string> find_libvirt_program() {
  std::vector<std::filesystem::path> places;
  std::error_code error;
  const std::filesystem::path own = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) {
    places.push_back(own.parent_path());
    places.push_back(own.parent_path() / "../libexec/vmsieve");
  }
  const char* path = std::getenv("PATH");
  const std::string folders = path != nullptr ? path : "";
  for (std::size_t at = 0; at < folders.size();) {
    const std::size_t end = std::min(folders.find(':', at), folders.size());
    if (end > at) places.emplace_back(folders.substr(at, end - at));
    at = end + 1;
  }
  for (const auto& place : places) {
    const std::string program = (place / kProgram).lexically_normal();
    if (::access(program.c_str(), X_OK) == 0) return program;
  }
  return make_error(ErrorKind::kUnsupported,
                    "{} is not installed: it is built where libvirt's headers are (libvirt-dev)", kProgram);
}

Result<std::unique_ptr<LibvirtDomain>> LibvirtDomain::open(const std::string& name, const std::string& uri) {
  const std::string folder = runtime_folder();
  if (folder.empty()) return make_error(ErrorKind::kIo, "there is no place for a socket of {}", kProgram);
  static unsigned number = 0;
  std::unique_ptr<LibvirtDomain> domain{new LibvirtDomain};
  domain->qmp_path_ = fmt::format("{}/libvirt-{}-{}.qmp", folder, ::getpid(), number++);
  (void)::unlink(domain->qmp_path_.c_str());
  VMSIEVE_ASSIGN(Child child, start(with_uri({"serve", domain->qmp_path_, name}, uri)));
  domain->pid_ = child.pid;
  domain->lifeline_ = std::move(child.input);
  const auto answer = read_reply(child.output.get(), kLibvirtMilliseconds);
  if (!answer) {
    // It does not listen to us yet, and may never.
    (void)::kill(-child.pid, SIGKILL);
    return answer.error();
  }
  const Json& reply = *answer;
  domain->name_ = json_string(reply, "name");
  domain->uuid_ = json_string(reply, "uuid");
  domain->uri_ = json_string(reply, "uri");
  return domain;
}

LibvirtDomain::~LibvirtDomain() {
  if (pid_ < 0) return;
  // It ends at once when it is told so, else it waits for a guard.
  (void)::send(lifeline_.get(), "\n", 1, MSG_NOSIGNAL);
  lifeline_.reset();
  // Where libvirt does not answer, it stays to let the guest run on when it does.
  for (int waited = 0; waited < kEndMilliseconds && ::waitpid(pid_, nullptr, WNOHANG) == 0; ++waited)
    ::usleep(1000);
}

Result<std::string> read_domain_xml(QmpClient& qmp) {
  VMSIEVE_ASSIGN(const Json reply, qmp.execute("vmsieve-domain-xml"));
  return json_string(reply, "xml");
}

Result<std::string> put_overlays_into(const std::string& xml, const std::vector<DomainOverlay>& overlays) {
  Json disks = Json::array();
  for (const DomainOverlay& one : overlays) disks.push_back({{"chain", one.chain}, {"overlay", one.overlay}});
  const Json asked{{"xml", xml}, {"disks", std::move(disks)}};
  VMSIEVE_ASSIGN(Child child, start({"redisk"}));
  const auto sent = send_all(child.input.get(), asked.dump(-1, ' ', false, Json::error_handler_t::replace));
  child.input.reset();
  const auto reply = read_reply(child.output.get(), -1);
  (void)wait_for(child.pid);
  VMSIEVE_TRY(sent);
  if (!reply) return reply.error();
  return json_string(*reply, "xml");
}

Result<void> let_domain_go_on(QmpClient& qmp, const std::vector<DomainOverlay>& overlays) {
  Json disks = Json::array();
  for (const DomainOverlay& one : overlays) {
    for (const std::string& file : one.chain) disks.push_back({{"file", file}, {"overlay", one.overlay}});
  }
  VMSIEVE_TRY(qmp.execute("vmsieve-disk-go-on", Json{{"disks", std::move(disks)}}));
  return {};
}

Result<void> restore_libvirt_image(const std::string& path, bool running, const std::string& uri) {
  VMSIEVE_ASSIGN(Child child, start(with_uri({"restore", path, running ? "running" : "paused"}, uri)));
  const auto reply = read_reply(child.output.get(), -1);
  (void)wait_for(child.pid);
  if (!reply) return reply.error();
  return {};
}

}  // namespace vmsieve
