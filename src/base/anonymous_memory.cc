// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/base/anonymous_memory.h"

#include <sys/mman.h>

#include <cerrno>

namespace vmsieve {

Result<AnonymousMemory> AnonymousMemory::make(u64 bytes) {
  void* const memory =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return errno_error(errno, fmt::format("cannot map {} bytes", bytes));
  return AnonymousMemory({static_cast<std::byte*>(memory), bytes});
}

AnonymousMemory::~AnonymousMemory() {
  if (!bytes_.empty()) ::munmap(bytes_.data(), bytes_.size());
}

}  // namespace vmsieve
