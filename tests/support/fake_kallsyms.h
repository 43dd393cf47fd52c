// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <string>
#include <vector>

#include "vmsieve/base/endian.h"
#include "vmsieve/guest/kallsyms.h"

namespace vmsieve::testing {

struct FakeSymbol {
  char type = 'T';  ///< as nm prints it
  std::string name;
  GuestVirtual address;
};

struct FakeKallsymsOptions {
  enum class Offsets { kBaseRelative, kAbsolutePerCpu, kPlaceRelative };
  Offsets offsets = Offsets::kBaseRelative;
  bool offsets_first = false;  ///< in front of the names, as before 6.4; else behind the tokens
  bool sequences = false;      ///< three bytes a symbol between markers and tokens (kallsyms_seqs_of_names)
  bool names_at_once = false;  ///< right behind their number, as since 7.0; else aligned to 8
  u64 alignment = 8;           ///< of each table; some since 7.0 have 4
  u64 fillers = 300;           ///< symbols that nobody asks for: with more than 256 there are two markers
};

/// The tables of scripts/kallsyms.c as it writes them, without the code under test: every table aligned,
/// names compressed with tokens of one character and some of several.
class FakeKallsyms {
 public:
  static constexpr u64 kRelativeBase = 0xffff'ffff'8100'0000;

  FakeKallsyms(std::vector<FakeSymbol> symbols, GuestVirtual at, FakeKallsymsOptions options = {})
      : at_(at), options_(options), symbols_(std::move(symbols)) {
    for (u64 i = 0; i < options.fillers; ++i)
      symbols_.push_back({'t', fmt::format("filler_{}", i), GuestVirtual{kRelativeBase + i * 16}});
    if (options_.offsets_first) add_offsets();
    place_.num_syms = here();
    append_le<u32>(bytes_, static_cast<u32>(symbols_.size()));
    add_names();
    add_tokens();
    if (!options_.offsets_first) add_offsets();
  }

  const std::vector<std::byte>& bytes() const { return bytes_; }
  const Kallsyms::Place& place() const { return place_; }
  u64 offset_of(GuestVirtual address) const { return address - at_; }

 private:
  GuestVirtual here() {
    bytes_.resize(round_up(bytes_.size(), options_.alignment));
    return at_ + bytes_.size();
  }

  // Tokens below the printable characters, as the best ones of a real table are.
  static std::string token(u8 code) {
    constexpr std::array<const char*, 6> longer{"linux_", "filler_", "__", "hugetlb_", "_cpu", "start"};
    if (code < longer.size()) return longer[code];
    if (code > ' ' && code <= '~') return std::string(1, static_cast<char>(code));
    return "";
  }

  static std::vector<std::byte> compress(std::string_view text) {
    std::vector<std::byte> out;
    while (!text.empty()) {
      u8 best = static_cast<u8>(text[0]);
      for (u8 code = 0; code < 6; ++code) {
        if (text.starts_with(token(code))) best = code;
      }
      out.push_back(std::byte{best});
      text.remove_prefix(token(best).size());
    }
    return out;
  }

  void add_names() {
    place_.names = options_.names_at_once ? at_ + bytes_.size() : here();
    const u64 begin = bytes_.size();
    std::vector<u32> markers;
    for (std::size_t i = 0; i < symbols_.size(); ++i) {
      if (i % 256 == 0) markers.push_back(static_cast<u32>(bytes_.size() - begin));
      // The type stands in front of the name and is compressed with it.
      const auto tokens = compress(symbols_[i].type + symbols_[i].name);
      if (tokens.size() < 0x80) {
        append_le<u8>(bytes_, static_cast<u8>(tokens.size()));
      } else {
        append_le<u8>(bytes_, static_cast<u8>(tokens.size() | 0x80));
        append_le<u8>(bytes_, static_cast<u8>(tokens.size() >> 7));
      }
      append_bytes(bytes_, tokens);
    }
    (void)here();
    for (const u32 marker : markers) append_le<u32>(bytes_, marker);
    if (!options_.sequences) return;
    (void)here();
    for (u64 i = 0; i < symbols_.size() * 3; ++i) append_le<u8>(bytes_, static_cast<u8>(i * 7 % 251));
  }

  void add_tokens() {
    place_.token_table = here();
    const u64 begin = bytes_.size();
    std::vector<u64> index;
    for (u64 code = 0; code < 256; ++code) {
      index.push_back(bytes_.size() - begin);
      append_bytes(bytes_, as_byte_span(token(static_cast<u8>(code))));
      append_le<u8>(bytes_, 0);
    }
    place_.token_index = here();
    for (const u64 entry : index) append_le<u16>(bytes_, static_cast<u16>(entry));
  }

  void add_offsets() {
    place_.offsets = here();
    for (const FakeSymbol& symbol : symbols_) append_le<u32>(bytes_, offset(symbol.address.value));
    if (options_.offsets == FakeKallsymsOptions::Offsets::kPlaceRelative) return;
    place_.relative_base = here();
    append_le<u64>(bytes_, kRelativeBase);
  }

  // kallsyms_sym_address() of kernel/kallsyms.c, backwards.
  u32 offset(u64 address) {
    switch (options_.offsets) {
      case FakeKallsymsOptions::Offsets::kBaseRelative: return static_cast<u32>(address - kRelativeBase);
      case FakeKallsymsOptions::Offsets::kAbsolutePerCpu:
        return static_cast<u32>(address < kRelativeBase ? address : kRelativeBase - 1 - address);
      case FakeKallsymsOptions::Offsets::kPlaceRelative:
        return static_cast<u32>(address - (at_.value + bytes_.size()));
    }
    return 0;
  }

  GuestVirtual at_;
  FakeKallsymsOptions options_;
  std::vector<FakeSymbol> symbols_;
  std::vector<std::byte> bytes_;
  Kallsyms::Place place_;
};

}  // namespace vmsieve::testing
