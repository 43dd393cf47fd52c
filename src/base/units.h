// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <compare>
#include <cstdint>

namespace vmsieve {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i64 = std::int64_t;

inline constexpr u64 kKiB = 1024;
inline constexpr u64 kMiB = 1024 * kKiB;
inline constexpr u64 kGiB = 1024 * kMiB;

/// The unit in which pages are classified, stored and restored, whatever page size the guest or
/// the host use for mapping: 4096 bytes (x86-64 PAGE_SIZE, QEMU's TARGET_PAGE_SIZE).
inline constexpr u64 kPageShift = 12;
inline constexpr u64 kPageSize = u64{1} << kPageShift;

/// An address that says in its type which space it belongs to. Only addresses of one space
/// compare and subtract; adding bytes keeps the space.
template <typename Space>
struct Address {
  u64 value = 0;

  constexpr Address() = default;
  constexpr explicit Address(u64 v) : value(v) {}
  friend constexpr auto operator<=>(Address, Address) = default;
  friend constexpr Address operator+(Address a, u64 bytes) { return Address{a.value + bytes}; }
  friend constexpr u64 operator-(Address a, Address b) { return a.value - b.value; }
};

using GuestPhysical = Address<struct GuestPhysicalSpace>;
using GuestVirtual = Address<struct GuestVirtualSpace>;
/// An address in the QEMU process, not in ours.
using HostVirtual = Address<struct HostVirtualSpace>;

/// A guest page frame number: guest-physical address / 4096.
struct Pfn {
  u64 value = 0;

  constexpr Pfn() = default;
  constexpr explicit Pfn(u64 v) : value(v) {}
  constexpr explicit Pfn(GuestPhysical a) : value(a.value >> kPageShift) {}
  constexpr GuestPhysical address() const { return GuestPhysical{value << kPageShift}; }
  friend constexpr auto operator<=>(Pfn, Pfn) = default;
};

/// Half-open range of page frame numbers: [first, first + count).
struct PfnRange {
  Pfn first;
  u64 count = 0;

  constexpr u64 end() const { return first.value + count; }
  constexpr bool contains(Pfn p) const { return p.value >= first.value && p.value - first.value < count; }
  friend constexpr bool operator==(const PfnRange&, const PfnRange&) = default;
};

constexpr u64 round_up(u64 value, u64 multiple) { return (value + multiple - 1) / multiple * multiple; }
constexpr u64 round_down(u64 value, u64 multiple) { return value / multiple * multiple; }

}  // namespace vmsieve
