// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <utility>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"

namespace vmsieve {

/// Zeroed memory of its own (mmap(2)): what was touched goes back to the system at once when the object is
/// destroyed, which is not so of memory from the heap. Address space only until it is touched.
class AnonymousMemory {
 public:
  AnonymousMemory() = default;
  /// kIo when the system gives none. `bytes` is at least 1.
  static Result<AnonymousMemory> make(u64 bytes);
  ~AnonymousMemory();
  AnonymousMemory(AnonymousMemory&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  AnonymousMemory& operator=(AnonymousMemory&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  AnonymousMemory(const AnonymousMemory&) = delete;
  AnonymousMemory& operator=(const AnonymousMemory&) = delete;

  std::byte* data() const { return bytes_.data(); }
  u64 size() const { return bytes_.size(); }

 private:
  explicit AnonymousMemory(std::span<std::byte> bytes) : bytes_(bytes) {}

  std::span<std::byte> bytes_;
};

}  // namespace vmsieve
