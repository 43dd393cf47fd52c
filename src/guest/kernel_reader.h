// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <concepts>
#include <optional>
#include <string>

#include "vmsieve/base/endian.h"
#include "vmsieve/guest/memory.h"
#include "vmsieve/guest/page_tables.h"

namespace vmsieve {

/// Reads the kernel's variables by their virtual addresses. What cannot be read is no value: the guest may
/// be changing under the look, or lie.
class KernelReader {
 public:
  /// `memory` must outlive this.
  KernelReader(const GuestMemory& memory, PageTableRoot tables) : memory_(memory), tables_(tables) {}

  const GuestMemory& memory() const { return memory_; }
  PageTableRoot tables() const { return tables_; }

  template <std::unsigned_integral T>
  std::optional<T> number(GuestVirtual address) const {
    std::array<std::byte, sizeof(T)> bytes;
    if (!read_virtual(memory_, tables_, address, bytes).ok()) return std::nullopt;
    return load_le<T>(bytes.data());
  }

  /// A pointer into the kernel's half of the address space; anything else, null included, is no value.
  std::optional<GuestVirtual> pointer(GuestVirtual address) const {
    const auto value = number<u64>(address);
    if (!value || (*value >> 63) == 0) return std::nullopt;
    return GuestVirtual{*value};
  }

  /// Text up to its first NUL, at most `max_bytes` (and those to the end of its page at least). Characters
  /// that do not print become '?', so that it may be shown to people.
  std::optional<std::string> text(GuestVirtual address, u64 max_bytes) const;

 private:
  const GuestMemory& memory_;
  PageTableRoot tables_;
};

}  // namespace vmsieve
