// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/base/units.h"

namespace vmsieve {

/// The BPF Type Format: the kernel's own description of its structures, of one kernel image
/// (Documentation/bpf/btf.rst, include/uapi/linux/btf.h). Hostile bytes: every index is checked where
/// it is used, every chain of types is cut after a few steps, and every search ends.
class Btf {
 public:
  static constexpr u64 kMaxBytes = 64 * kMiB;  ///< Debian's kernels have 5 MiB
  static constexpr u64 kMaxTypes = 0xf'ffff;   ///< BTF_MAX_TYPE

  /// Takes the bytes from the header (magic 0xeb9f, little-endian) on. kDamaged when they are no BTF.
  static Result<Btf> parse(std::vector<std::byte> bytes);

  Btf(Btf&&) = default;
  Btf& operator=(Btf&&) = default;
  Btf(const Btf&) = delete;  // structs_ points into bytes_
  Btf& operator=(const Btf&) = delete;

  /// Size in bytes of `struct name` or `union name`.
  std::optional<u64> size_of(std::string_view name) const;

  /// A member of a structure. Members of anonymous structures and unions belong to the outer one.
  struct Member {
    u64 offset = 0;    ///< bytes
    u64 size = 0;      ///< bytes; 0 when not known
    u64 elements = 1;  ///< of an array: how many; `size` is that of all of them
  };
  /// `path` is one member or several with dots: "free_area", "host.i_sb" goes through structures that
  /// are embedded, not through pointers. Bit fields have no answer.
  std::optional<Member> member(std::string_view structure, std::string_view path) const;
  std::optional<u64> offset_of(std::string_view structure, std::string_view path) const {
    const auto found = member(structure, path);
    return found ? std::optional(found->offset) : std::nullopt;
  }

  /// The value of an enumerator of any enumeration; none when two of that name differ.
  std::optional<i64> enumerator(std::string_view name) const;

 private:
  struct Type {
    u32 name = 0;
    u32 info = 0;
    u32 size_or_type = 0;
    u64 extra = 0;  // offset of what follows the common part

    u32 kind() const { return (info >> 24) & 0x1f; }
    u32 vlen() const { return info & 0xffff; }
    bool kind_flag() const { return (info >> 31) != 0; }
  };
  struct Found {
    Member member;
    u32 type = 0;
  };

  std::optional<Type> type(u32 id) const;
  std::optional<Type> resolved(u32 id) const;
  std::string_view name_at(u32 offset) const;
  bool is_named(u32 offset, std::string_view name) const;  // without measuring the name first
  std::optional<u64> size_of_type(u32 id, int depth) const;
  std::optional<Found> find_member(const Type& structure, std::string_view name, int depth,
                                   u64& budget) const;
  bool is_bit_field(u32 type_id) const;
  std::optional<u32> find_struct(std::string_view name) const;
  void describe(Found& found) const;

  Btf() = default;

  std::vector<std::byte> bytes_;
  u64 strings_ = 0;                                    // offset in bytes_
  u64 strings_size_ = 0;                               // the last byte is NUL
  std::vector<u32> types_;                             // type i + 1 begins at this offset in bytes_
  std::unordered_map<std::string_view, u32> structs_;  // views into bytes_; 0 for names that are not unique
};

}  // namespace vmsieve
