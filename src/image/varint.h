// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <optional>
#include <span>

#include "vmsieve/base/units.h"

namespace vmsieve {

/// The longest LEB128 form of a u64.
inline constexpr std::size_t kMaxVarintBytes = 10;

/// Writes `value` to `out`, which must have room for kMaxVarintBytes, and returns the end.
inline std::byte* write_varint(std::byte* out, u64 value) {
  while (value >= 0x80) {
    *out++ = static_cast<std::byte>(value | 0x80);
    value >>= 7;
  }
  *out++ = static_cast<std::byte>(value);
  return out;
}

/// Reads a varint off the front of `in`. Nothing when it is cut off, is wider than 64 bits, or is not of the
/// shortest form; `in` is then unspecified.
inline std::optional<u64> read_varint(std::span<const std::byte>& in) {
  u64 value = 0;
  for (unsigned i = 0; i < in.size() && i < kMaxVarintBytes; ++i) {
    const u64 bits = static_cast<u64>(in[i]) & 0x7f;
    const bool last = (static_cast<u64>(in[i]) & 0x80) == 0;
    if (i == kMaxVarintBytes - 1 && bits > 1) return std::nullopt;
    value |= bits << (7 * i);
    if (last) {
      if (bits == 0 && i > 0) return std::nullopt;
      in = in.subspan(i + 1);
      return value;
    }
  }
  return std::nullopt;
}

/// Small numbers of either sign as small unsigned ones; the two's complement of `value` is meant.
constexpr u64 zigzag(u64 value) { return (value << 1) ^ (value >> 63 != 0 ? ~u64{0} : 0); }
constexpr u64 unzigzag(u64 value) { return (value >> 1) ^ ((value & 1) != 0 ? ~u64{0} : 0); }

}  // namespace vmsieve
