// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/disks/qemu_img.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "vmsieve/base/fd.h"

extern char** environ;  // NOLINT: POSIX says that a program declares it itself

namespace vmsieve {

Result<std::string> run_qemu_img(const std::vector<std::string>& arguments) {
  constexpr u64 kMostWords = 64 << 10;
  VMSIEVE_ASSIGN(const UniqueFd words, make_memfd("qemu-img"));
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, words.get(), 1);
  posix_spawn_file_actions_adddup2(&actions, words.get(), 2);
  std::vector<std::string> all{"qemu-img"};
  all.insert(all.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& argument : all) argv.push_back(argument.data());
  argv.push_back(nullptr);
  pid_t pid = -1;
  const int failed = ::posix_spawnp(&pid, "qemu-img", &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed == ENOENT)
    return Error(ErrorKind::kUnsupported, "disks need the program qemu-img, which is not installed");
  if (failed != 0) return errno_error(failed, "cannot run qemu-img");
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  VMSIEVE_ASSIGN(const u64 size, file_size(words.get(), "qemu-img"));
  std::string text(std::min(size, kMostWords), '\0');
  VMSIEVE_TRY(pread_exact(words.get(), std::as_writable_bytes(std::span{text}), 0, "qemu-img"));
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return text;
  while (text.ends_with('\n')) text.pop_back();
  for (char& c : text) c = c == '\n' ? ';' : c;
  return make_error(ErrorKind::kRefused, "qemu-img {}: {}", arguments.empty() ? "" : arguments[0],
                    text.empty() ? "it ended without a word" : text);
}

}  // namespace vmsieve
