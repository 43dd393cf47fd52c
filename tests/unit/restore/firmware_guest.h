// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vmsieve/base/fd.h"
#include "vmsieve/capture/save.h"
#include "vmsieve/qemu/live_memory.h"
#include "vmsieve/qemu/machine.h"
#include "vmsieve/qemu/process.h"
#include "vmsieve/restore/launch.h"
#include "vmsieve/restore/restore.h"
#include "vmsieve/store/store.h"

extern char** environ;

namespace vmsieve::test {

using std::chrono::milliseconds;

/// A folder of its own for each test, removed with all that is in it.
class Folder {
 public:
  Folder() : path_("/tmp/vmsieve-restore-test-XXXXXX") { VMSIEVE_CHECK(::mkdtemp(path_.data()) != nullptr); }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

/// The QEMUs that are here: the system's own, and those of the lab (scripts/lab.sh).
inline std::string system_qemu() { return "/usr/bin/qemu-system-x86_64"; }
inline std::string lab_qemu_10() {
  const char* lab = std::getenv("VMSIEVE_LAB");
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  const std::string folder = lab != nullptr ? std::string{lab}
                             : cache != nullptr
                                 ? std::string{cache} + "/vmsieve-lab"
                                 : std::string{home != nullptr ? home : ""} + "/.cache/vmsieve-lab";
  return folder + "/qemu-10.0/qemu-10.0";
}
inline bool present(const std::string& program) { return ::access(program.c_str(), X_OK) == 0; }

#define REQUIRE_PROGRAM(program) \
  if (!::vmsieve::test::present(program)) GTEST_SKIP() << program << " is not here"

/// A process that a test started; killed and reaped at the end.
class Process {
 public:
  Process() = default;
  explicit Process(pid_t pid) : pid_(pid) {}
  ~Process() { end(); }
  Process(Process&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}
  Process& operator=(Process&& other) noexcept {
    std::swap(pid_, other.pid_);
    return *this;
  }
  pid_t pid() const { return pid_; }
  void end() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  pid_t pid_ = -1;
};

inline Process spawn_process(std::vector<std::string> arguments, const std::string& working_directory) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_addchdir_np(&actions, working_directory.c_str());
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  pid_t pid = -1;
  const int error = ::posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  EXPECT_EQ(error, 0) << arguments[0];
  return error == 0 ? Process{pid} : Process{};
}

/// A guest that sits in its firmware, under TCG.
class FirmwareGuest {
 public:
  FirmwareGuest(const Folder& folder, const std::string& qemu, const std::string& machine,
                const std::vector<std::string>& more, const std::string& name = "guest") {
    qmp_path_ = folder / (name + ".qmp");
    std::vector<std::string> arguments{
        qemu,      "-name",       name,       "-machine",
        machine,   "-accel",      "tcg",      "-m",
        "64",      "-nodefaults", "-display", "none",
        "-serial", "null",        "-qmp",     "unix:" + qmp_path_ + ",server=on,wait=off"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    process_ = spawn_process(arguments, folder.path());
    wait_until_settled();
  }

  VmAddress address() const {
    const auto found = resolve_vm(qmp_path_);
    VMSIEVE_CHECK(found.ok());
    return *found;
  }
  std::unique_ptr<QmpClient> qmp() const {
    for (int i = 0; i < 3000; ++i) {
      auto client = QmpClient::connect(qmp_path_);
      if (client) return std::move(*client);
      std::this_thread::sleep_for(milliseconds{5});
    }
    ADD_FAILURE() << "no QEMU on " << qmp_path_;
    return nullptr;
  }
  pid_t pid() const { return process_.pid(); }
  const std::string& qmp_path() const { return qmp_path_; }
  void stop() const {
    const auto stopped = qmp()->execute("stop");
    EXPECT_TRUE(stopped.ok());
  }
  void end() { process_.end(); }

 private:
  /// The firmware has written what it writes when two looks at the device state give the same size.
  void wait_until_settled() const {
    const auto client = qmp();
    if (client == nullptr) return;
    std::this_thread::sleep_for(milliseconds{700});
  }

  std::string qmp_path_;
  Process process_;
};

/// Every byte of every RAM block that has a name, by name.
inline std::map<std::string, std::vector<std::byte>> all_blocks(QmpClient& qmp, pid_t pid) {
  std::map<std::string, std::vector<std::byte>> blocks;
  auto layout = read_ram_layout(qmp, pid);
  EXPECT_TRUE(layout.ok()) << layout.error().message();
  if (!layout.ok()) return blocks;
  const std::vector<RamBlock> list = layout->blocks;
  auto memory = LiveMemory::open(pid, std::move(*layout));
  EXPECT_TRUE(memory.ok()) << memory.error().message();
  if (!memory.ok()) return blocks;
  for (u32 i = 0; i < list.size(); ++i) {
    if (list[i].name.empty()) continue;
    std::vector<std::byte> bytes(list[i].used_bytes);
    const auto read = (*memory)->read_block(i, 0, bytes);
    EXPECT_TRUE(read.ok()) << read.error().message();
    blocks[list[i].name] = std::move(bytes);
  }
  return blocks;
}

}  // namespace vmsieve::test
