// SPDX-License-Identifier: Apache-2.0
#include "unit/qemu/real_qemu.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include <gtest/gtest.h>

#include "vmsieve/qemu/machine.h"

namespace vmsieve::test {

namespace {

std::string lab_folder() {
  if (const char* lab = std::getenv("VMSIEVE_LAB")) return lab;
  if (const char* cache = std::getenv("XDG_CACHE_HOME")) return std::string{cache} + "/vmsieve-lab";
  if (const char* home = std::getenv("HOME")) return std::string{home} + "/.cache/vmsieve-lab";
  return {};
}

}  // namespace

std::vector<QemuProgram> qemu_programs() {
  std::vector<QemuProgram> programs;
  const auto add = [&](const std::string& path, const std::string& label) {
    if (::access(path.c_str(), X_OK) == 0) programs.push_back({path, label});
  };
  add("/usr/bin/qemu-system-x86_64", "system");
  add(lab_folder() + "/qemu-10.0/qemu-10.0", "lab10");
  return programs;
}

TemporaryFolder::TemporaryFolder() {
  path_ = (std::filesystem::temp_directory_path() / "vmsieve-test-XXXXXX").string();
  if (::mkdtemp(path_.data()) == nullptr) std::abort();
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

RealQemu::RealQemu(const std::string& program, const std::vector<std::string>& arguments) {
  std::vector<std::string> all{program,
                               "-display",
                               "none",
                               "-nodefaults",
                               "-no-user-config",
                               "-accel",
                               "tcg",
                               "-qmp",
                               "unix:" + monitor() + ",server=on,wait=off",
                               "-qmp",
                               "unix:" + second_monitor() + ",server=on,wait=off"};
  all.insert(all.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& argument : all) argv.push_back(argument.data());
  argv.push_back(nullptr);

  const std::string log = folder_.path() + "/log";
  pid_ = ::fork();
  if (pid_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const int fd = ::open(log.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    ::dup2(fd, STDOUT_FILENO);
    ::dup2(fd, STDERR_FILENO);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  for (int i = 0; i < 2000; ++i) {
    if (::access(second_monitor().c_str(), F_OK) == 0 && QmpClient::connect(second_monitor())) return;
    if (::waitpid(pid_, nullptr, WNOHANG) == pid_) break;
    std::this_thread::sleep_for(std::chrono::milliseconds{5});
  }
  pid_ = -1;
  if (auto text = read_text_file(log, kMiB)) complaint_ = *text;
}

RealQemu::~RealQemu() { kill(); }

void RealQemu::kill() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

std::unique_ptr<QmpClient> must_connect(const std::string& path) {
  auto client = QmpClient::connect(path);
  if (!client) {
    ADD_FAILURE() << client.error().message();
    return nullptr;
  }
  return std::move(*client);
}

std::string status_of(const std::string& monitor) {
  const auto client = must_connect(monitor);
  if (!client) return {};
  const auto state = read_run_state(*client);
  if (!state) return state.error().message();
  return state->status;
}

}  // namespace vmsieve::test
