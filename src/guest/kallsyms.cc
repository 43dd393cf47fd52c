// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/kallsyms.h"

#include <algorithm>
#include <bitset>
#include <unordered_map>

#include "vmsieve/base/endian.h"
#include "vmsieve/guest/kallsyms_search.h"

namespace vmsieve {
namespace {

constexpr u64 kTokenTableBytes = 16 * kKiB;  // at most 512 tokens' worth of text is ever written

Result<std::vector<std::byte>> read_bytes(const GuestMemory& memory, PageTableRoot tables,
                                          GuestVirtual address, u64 bytes) {
  std::vector<std::byte> out(bytes);
  VMSIEVE_TRY(read_virtual(memory, tables, address, out));
  return out;
}

// As much of [address, address + bytes) as is mapped, cut at a page.
std::vector<std::byte> read_mapped(const GuestMemory& memory, PageTableRoot tables, GuestVirtual address,
                                   u64 bytes) {
  std::vector<std::byte> out;
  while (out.size() < bytes) {
    const GuestVirtual at = address + out.size();
    const u64 piece = std::min(bytes - out.size(), kPageSize - at.value % kPageSize);
    const auto read = read_bytes(memory, tables, at, piece);
    if (!read.ok()) break;
    append_bytes(out, *read);
  }
  return out;
}

// One entry of the names: its tokens, and where the next entry begins.
struct NameEntry {
  std::span<const std::byte> tokens;
  u64 next = 0;
};

// A length with its top bit set goes on in the next byte since 6.1 (73bbb94466fd); before, no name had
// more than 127 tokens.
std::optional<NameEntry> name_at(std::span<const std::byte> names, u64 at) {
  if (at >= names.size()) return std::nullopt;
  u64 length = static_cast<u8>(names[at++]);
  if ((length & 0x80) != 0) {
    if (at >= names.size()) return std::nullopt;
    length = (length & 0x7f) | u64{static_cast<u8>(names[at++])} << 7;
  }
  if (length == 0 || length > Kallsyms::kMaxNameBytes || length > names.size() - at) return std::nullopt;
  return NameEntry{names.subspan(at, length), at + length};
}

// The addresses that symbols of one name have.
struct Found {
  std::optional<u64> address;
  bool ambiguous = false;

  void add(u64 value) {
    ambiguous = ambiguous || (address && *address != value);
    address = value;
  }
};
struct Wanted {
  Found global;
  Found local;
};

}  // namespace

Result<void> Kallsyms::parse_tokens(std::span<const std::byte> table, std::span<const std::byte> index) {
  for (u64 i = 0; i < kTokens; ++i) {
    const u64 begin = load_le<u16>(&index[i * 2]);
    if (begin >= table.size())
      return make_error(ErrorKind::kDamaged, "kallsyms: token {} is at {}", i, begin);
    const auto text = table.subspan(begin);
    const auto end = std::find(text.begin(), text.end(), std::byte{0});
    if (end == text.end() || static_cast<u64>(end - text.begin()) > kMaxNameBytes)
      return make_error(ErrorKind::kDamaged, "kallsyms: token {} has no end", i);
    tokens_[i].clear();
    for (auto c = text.begin(); c != end; ++c) tokens_[i].push_back(static_cast<char>(*c));
    token_bytes_[i] = static_cast<u16>(tokens_[i].size());
    token_ends_[i] = tokens_[i].empty() ? 0 : static_cast<u8>(tokens_[i].back());
  }
  return {};
}

GuestVirtual Kallsyms::value(u64 symbol) const {
  const u32 raw = load_le<u32>(&offsets_[symbol * 4]);
  const u64 extended = static_cast<u64>(static_cast<i64>(static_cast<int32_t>(raw)));
  switch (encoding_) {
    case Encoding::kBaseRelative: return GuestVirtual{relative_base_ + raw};
    case Encoding::kAbsolutePerCpu:
      return GuestVirtual{static_cast<int32_t>(raw) >= 0 ? u64{raw} : relative_base_ - 1 - extended};
    case Encoding::kPlaceRelative: return GuestVirtual{offsets_at_.value + symbol * 4 + extended};
  }
  return {};
}

Result<Kallsyms> Kallsyms::read_at(const GuestMemory& memory, PageTableRoot tables, const Place& place) {
  Kallsyms result;
  VMSIEVE_ASSIGN(const auto count_bytes, read_bytes(memory, tables, place.num_syms, 4));
  const u64 count = load_le<u32>(count_bytes.data());
  if (count == 0 || count > kMaxSymbols)
    return make_error(ErrorKind::kDamaged, "kallsyms has {} symbols, which cannot be right", count);
  VMSIEVE_ASSIGN(const auto index, read_bytes(memory, tables, place.token_index, kTokens * 2));
  const auto table = read_mapped(memory, tables, place.token_table, kTokenTableBytes);
  VMSIEVE_TRY(result.parse_tokens(table, index));
  VMSIEVE_ASSIGN(result.offsets_, read_bytes(memory, tables, place.offsets, count * 4));
  result.offsets_at_ = place.offsets;
  if (place.relative_base) {
    VMSIEVE_ASSIGN(const auto base, read_bytes(memory, tables, *place.relative_base, 8));
    result.relative_base_ = load_le<u64>(base.data());
  }

  // The tables stand in the order num_syms, names, markers, token_table: names end before the tokens.
  const u64 room = place.token_table.value - place.names.value;
  if (place.token_table <= place.names || room > kMaxNamesBytes)
    return Error(ErrorKind::kDamaged, "kallsyms: the tokens do not stand behind the names");
  VMSIEVE_ASSIGN(result.names_, read_bytes(memory, tables, place.names, room));
  u64 end = 0;
  for (u64 i = 0; i < count; ++i) {
    const auto entry = name_at(result.names_, end);
    if (!entry) return make_error(ErrorKind::kDamaged, "kallsyms: name {} of {} cannot be right", i, count);
    end = entry->next;
  }
  result.names_.resize(end);

  for (const Encoding encoding :
       {Encoding::kAbsolutePerCpu, Encoding::kBaseRelative, Encoding::kPlaceRelative}) {
    if ((encoding == Encoding::kPlaceRelative) == place.relative_base.has_value()) continue;
    result.encoding_ = encoding;
    const auto banner = result.address("linux_banner");
    if (!banner) continue;
    const auto text = read_bytes(memory, tables, *banner, kLinuxBanner.size());
    if (text.ok() && std::ranges::equal(*text, as_byte_span(kLinuxBanner))) return result;
  }
  return Error(ErrorKind::kDamaged, "kallsyms: its linux_banner is not where the kernel's banner is");
}

Result<Kallsyms> Kallsyms::read(const GuestMemory& memory, PageTableRoot tables, const VmcoreInfo& info) {
  const auto need = [&](std::string_view name) { return info.symbol(name); };
  const auto num_syms = need("kallsyms_num_syms");
  const auto names = need("kallsyms_names");
  const auto token_table = need("kallsyms_token_table");
  const auto token_index = need("kallsyms_token_index");
  const auto offsets = need("kallsyms_offsets");
  if (!num_syms || !names || !token_table || !token_index || !offsets)
    return Error(ErrorKind::kNotFound, "VMCOREINFO does not say where kallsyms is");
  return read_at(
      memory, tables,
      {*num_syms, *names, *token_table, *token_index, *offsets, info.symbol("kallsyms_relative_base")});
}

Result<Kallsyms> Kallsyms::search(const GuestMemory& memory, PageTableRoot tables) {
  for (const Place& place : find_kallsyms_at_once(memory, tables)) {
    auto found = read_at(memory, tables, place);
    if (found.ok()) return found;
  }
  VMSIEVE_ASSIGN(const auto places, find_kallsyms(memory, tables));
  Error last(ErrorKind::kNotFound, "the kernel image holds no kallsyms");
  for (const Place& place : places) {
    auto found = read_at(memory, tables, place);
    if (found.ok()) return found;
    last = found.error();
  }
  return Error(ErrorKind::kNotFound, last.message());
}

std::vector<std::optional<GuestVirtual>> Kallsyms::addresses(std::span<const std::string_view> names) const {
  std::unordered_map<std::string_view, Wanted> wanted;
  // Most names are told from all of the wanted by their last character, and most others by their length too,
  // neither of which takes decoding.
  std::bitset<256> last_characters;
  std::bitset<kMaxNameBytes + 1> lengths;
  for (const std::string_view name : names) {
    wanted.try_emplace(name);
    if (name.empty() || name.size() > kMaxNameBytes) continue;
    last_characters.set(static_cast<u8>(name.back()));
    lengths.set(name.size());
  }

  std::string name;
  u64 at = 0;
  for (u64 i = 0; i < size(); ++i) {
    const auto entry = name_at(names_, at);
    if (!entry) break;
    at = entry->next;
    if (!last_characters.test(token_ends_[static_cast<u8>(entry->tokens.back())])) continue;
    u64 length = 0;
    for (const std::byte token : entry->tokens) length += token_bytes_[static_cast<u8>(token)];
    // The first character is the type, as nm prints it: upper case for global.
    if (length < 2 || length - 1 > kMaxNameBytes || !lengths.test(length - 1)) continue;
    name.clear();
    for (const std::byte token : entry->tokens) name += tokens_[static_cast<u8>(token)];
    const auto found = wanted.find(std::string_view(name).substr(1));
    if (found == wanted.end()) continue;
    const bool global = name[0] >= 'A' && name[0] <= 'Z';
    (global ? found->second.global : found->second.local).add(value(i).value);
  }

  std::vector<std::optional<GuestVirtual>> result(names.size());
  for (std::size_t i = 0; i < names.size(); ++i) {
    const Wanted& w = wanted.at(names[i]);
    const Found& chosen = w.global.address ? w.global : w.local;
    if (chosen.address && !chosen.ambiguous) result[i] = GuestVirtual{*chosen.address};
  }
  return result;
}

}  // namespace vmsieve
