// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/formats/decompressor.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cerrno>

namespace vmsieve {

namespace {

const char* program_of(LibvirtStream stream) {
  switch (stream) {
    case LibvirtStream::kRaw: break;
    case LibvirtStream::kGzip: return "gzip";
    case LibvirtStream::kBzip2: return "bzip2";
    case LibvirtStream::kXz: return "xz";
    case LibvirtStream::kLzop: return "lzop";
    case LibvirtStream::kZstd: return "zstd";
  }
  return "cat";
}

}  // namespace

Result<Decompressor> Decompressor::start(LibvirtStream stream, int file, u64 offset) {
  const char* name = program_of(stream);
  if (::lseek(file, static_cast<off_t>(offset), SEEK_SET) < 0) return errno_error(errno, "cannot seek");
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return errno_error(errno, "cannot make a pipe");
  UniqueFd reading{ends[0]};
  const UniqueFd writing{ends[1]};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, file, STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, writing.get(), STDOUT_FILENO);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_addclosefrom_np(&actions, STDERR_FILENO + 1);
  std::string program = name;
  std::string option = "-dc";
  char* const argv[] = {program.data(), option.data(), nullptr};
  pid_t pid = -1;
  const int failed = ::posix_spawnp(&pid, name, &actions, nullptr, argv, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed != 0)
    return make_error(ErrorKind::kUnsupported, "the image is compressed, and {} cannot be run", name);
  return Decompressor(pid, std::move(reading), name);
}

Decompressor::Decompressor(Decompressor&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)), output_(std::move(other.output_)), name_(other.name_) {}

Decompressor::~Decompressor() {
  if (pid_ < 0) return;
  (void)::kill(pid_, SIGKILL);
  (void)finish();
}

Result<std::size_t> Decompressor::read(std::span<std::byte> out) {
  for (;;) {
    const ssize_t n = ::read(output_.get(), out.data(), out.size());
    if (n >= 0) return static_cast<std::size_t>(n);
    if (errno != EINTR) return errno_error(errno, fmt::format("cannot read what {} writes", name_));
  }
}

Result<void> Decompressor::finish() {
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
  return make_error(ErrorKind::kDamaged, "{} cannot decompress the image", name_);
}

}  // namespace vmsieve
