// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "vmsieve/base/result.h"
#include "vmsieve/guest/memory.h"
#include "vmsieve/guest/page_tables.h"
#include "vmsieve/guest/vmcoreinfo.h"

namespace vmsieve {

/// What linux_banner begins with (init/version.c).
inline constexpr std::string_view kLinuxBanner = "Linux version ";

/// The tables that a Linux kernel carries to name its own addresses (kernel/kallsyms.c, written by
/// scripts/kallsyms.c at build time): names compressed with 256 tokens, and a 32-bit offset for each.
/// A copy: no reference to guest memory is kept.
class Kallsyms {
 public:
  /// Tokens that names are compressed with, one for each byte.
  static constexpr u64 kTokens = 256;
  /// More symbols than this are refused; a kernel with all of its drivers built in has a million.
  static constexpr u64 kMaxSymbols = u64{1} << 22;
  /// KSYM_NAME_LEN has been 128, then 512 (include/linux/kallsyms.h).
  static constexpr u64 kMaxNameBytes = 512;
  /// Names longer than this in all, compressed, are refused: a million symbols make 20 MiB.
  static constexpr u64 kMaxNamesBytes = 64 * kMiB;

  /// Where the tables are, in guest-virtual addresses.
  struct Place {
    GuestVirtual num_syms;     ///< u32
    GuestVirtual names;        ///< per symbol: length (one byte, or two since 6.1), that many tokens
    GuestVirtual token_table;  ///< 256 NUL-terminated strings
    GuestVirtual token_index;  ///< u16[256]: where each begins
    GuestVirtual offsets;      ///< s32[num_syms]
    std::optional<GuestVirtual> relative_base;  ///< u64; gone where offsets are relative to their place
  };

  /// The tables where VMCOREINFO says that they are (since 6.0); kNotFound when it does not.
  static Result<Kallsyms> read(const GuestMemory& memory, PageTableRoot tables, const VmcoreInfo& info);

  /// The tables found by their content in the kernel image that `tables` map (x86-64): for kernels whose
  /// VMCOREINFO lacks the keys, or that have none. Reads the image's pages once, at most 1 GiB;
  /// kNotFound when there are none.
  static Result<Kallsyms> search(const GuestMemory& memory, PageTableRoot tables);

  /// The tables at `place`. Which of the three known encodings of offsets it is, is decided by where
  /// linux_banner must then be: at the text "Linux version ". kDamaged when none fits.
  static Result<Kallsyms> read_at(const GuestMemory& memory, PageTableRoot tables, const Place& place);

  u64 size() const { return static_cast<u64>(offsets_.size() / 4); }

  /// The addresses of `names`, in their order: one pass over all names, a few milliseconds. Of several
  /// symbols with one name the global one counts; without a single global one, or when several local
  /// ones differ, there is no answer.
  std::vector<std::optional<GuestVirtual>> addresses(std::span<const std::string_view> names) const;
  std::optional<GuestVirtual> address(std::string_view name) const { return addresses({&name, 1}).front(); }

 private:
  enum class Encoding { kBaseRelative, kAbsolutePerCpu, kPlaceRelative };

  Result<void> parse_tokens(std::span<const std::byte> table, std::span<const std::byte> index);
  GuestVirtual value(u64 symbol) const;

  std::vector<std::byte> names_;
  std::vector<std::byte> offsets_;
  std::array<std::string, kTokens> tokens_;
  std::array<u16, kTokens> token_bytes_{};
  std::array<u8, kTokens>
      token_ends_{};  ///< their last characters; no name of a kernel's ends with an empty one
  GuestVirtual offsets_at_;
  u64 relative_base_ = 0;
  Encoding encoding_ = Encoding::kBaseRelative;
};

}  // namespace vmsieve
