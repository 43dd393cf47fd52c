// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/kallsyms_search.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "vmsieve/base/endian.h"
#include "vmsieve/guest/mappings.h"

namespace vmsieve {
namespace {

constexpr GuestVirtual kImageBegin{0xffff'ffff'8000'0000};
constexpr u64 kImageBytes = kGiB;
constexpr u64 kBufferBytes = 2 * kMiB;
constexpr u64 kTokens = Kallsyms::kTokens;
constexpr u64 kAlignment = 8;       // ALGN of scripts/kallsyms.c on 64 bits
constexpr u64 kLeastAlignment = 4;  // of tables as 7.2.13 has them, without a relative base
constexpr u64 kSymbolsPerMarker = 256;
constexpr u64 kMaxEntryBytes = 514;
constexpr u64 kSequenceBytes = 3;
constexpr u64 kMaxTables = 1024;  // 512 lowest ones map the image's GiB

// What a distribution's kernel has before the tokens (150,000 names and their markers, 3 MiB) and behind
// them (their offsets, 600 KiB), with room to spare.
constexpr u64 kWindowBefore = 8 * kMiB;
constexpr u64 kWindowBehind = 4 * kMiB;
constexpr std::size_t kMostWindows = 4;

// What is looked at in one image at most, whatever it holds: in a kernel the ten digits stand in a row
// once or twice, and there is one table of tokens with its index.
struct Budget {
  u64 digits = 4096;
  u64 tables = 16;  // each costs up to 16,448 places where names may begin, 256 names at each
};

void append_piece(std::vector<ImagePiece>& pieces, GuestVirtual address, std::span<const std::byte> bytes) {
  if (pieces.empty() || pieces.back().address + pieces.back().bytes.size() != address)
    pieces.push_back({address, {}});
  append_bytes(pieces.back().bytes, bytes);
}

// Tokens that are single characters are in the table at their own code (scripts/kallsyms.c
// insert_real_symbols_in_table()), and all ten digits occur in some symbol of every kernel.
constexpr std::string_view kDigits(
    "0\0"
    "1\0"
    "2\0"
    "3\0"
    "4\0"
    "5\0"
    "6\0"
    "7\0"
    "8\0"
    "9\0",
    20);

// Where the ten digits stand next, from `from` on. An image is tens of MiB: many bytes are compared at once,
// without a branch, which is some ten times faster than memmem(3).
std::optional<u64> next_digits(std::span<const std::byte> image, u64 from) {
  constexpr u64 kAtOnce = 256;
  for (; from + kAtOnce + kDigits.size() <= image.size(); from += kAtOnce) {
    const std::byte* const at = image.data() + from;
    u8 any = 0;
    for (u64 i = 0; i < kAtOnce; ++i) {
      any |= static_cast<u8>(static_cast<u8>(at[i] == std::byte{'0'}) &
                             static_cast<u8>(at[i + 2] == std::byte{'1'}) &
                             static_cast<u8>(at[i + 4] == std::byte{'2'}));
    }
    if (any == 0) continue;
    for (u64 i = 0; i < kAtOnce; ++i) {
      if (std::memcmp(at + i, kDigits.data(), kDigits.size()) == 0) return from + i;
    }
  }
  for (; from + kDigits.size() <= image.size(); ++from) {
    if (std::memcmp(image.data() + from, kDigits.data(), kDigits.size()) == 0) return from;
  }
  return std::nullopt;
}

// Where the table may begin whose token '0' is at `zero`, nearest first. What stands before it need not end
// with a NUL, but the table is aligned.
std::vector<u64> table_begins(std::span<const std::byte> image, u64 zero) {
  u64 at = zero;
  for (u64 token = 1; token < '0'; ++token) {
    if (at == 0 || image[at - 1] != std::byte{0}) return {};
    --at;  // the NUL of the token before
    u64 length = 0;
    while (at > 0 && image[at - 1] != std::byte{0}) {
      --at;
      if (++length > Kallsyms::kMaxNameBytes) return {};
    }
  }
  if (at == 0 || image[at - 1] != std::byte{0}) return {};
  std::vector<u64> begins;
  const u64 end = at - 1;  // of the first token
  for (at = end; end - at <= Kallsyms::kMaxNameBytes; --at) {
    if (at % kLeastAlignment == 0) begins.push_back(at);
    if (at == 0 || image[at - 1] == std::byte{0}) break;
  }
  return begins;
}

// Is the index of the table that begins at `table` right behind it? Where, and where it ends.
std::optional<u64> index_of(std::span<const std::byte> image, u64 table) {
  std::vector<u64> begins;
  u64 at = table;
  for (u64 token = 0; token < kTokens; ++token) {
    begins.push_back(at - table);
    const u64 limit = std::min<u64>(image.size(), at + Kallsyms::kMaxNameBytes);
    while (at < limit && image[at] != std::byte{0}) ++at;
    if (at == limit) return std::nullopt;
    ++at;
  }
  const auto is_index = [&](u64 index) {
    if (index + kTokens * 2 > image.size()) return false;
    for (u64 token = 0; token < kTokens; ++token) {
      if (load_le<u16>(&image[index + token * 2]) != begins[token]) return false;
    }
    return true;
  };
  for (const u64 alignment : {kAlignment, kLeastAlignment}) {
    if (is_index(round_up(at, alignment))) return round_up(at, alignment);
  }
  return std::nullopt;
}

struct Markers {
  u64 begin = 0;  // where they begin in the image
  u64 count = 0;
  u64 last = 0;  // the last one's value
};

// The markers end before the token table: u32 each, ascending from 0, the offset of every 256th name.
std::optional<Markers> markers_before(std::span<const std::byte> image, u64 table) {
  u64 at = round_down(table, 4);
  const auto word = [&](u64 i) { return load_le<u32>(&image[i]); };
  while (at >= 4 && table - at < 16 && word(at - 4) == 0) at -= 4;
  if (at < 4) return std::nullopt;
  const u64 last = word(at - 4);
  u64 count = 0;
  u64 above = ~u64{0};
  while (at >= 4) {
    at -= 4;
    const u64 value = word(at);
    if (value >= above) return std::nullopt;
    above = value;
    ++count;
    if (value == 0) return Markers{at, count, last};
    if (count > Kallsyms::kMaxSymbols / kSymbolsPerMarker) return std::nullopt;
  }
  return std::nullopt;
}

// The offset behind 256 names from `names` on.
std::optional<u64> walk_names(std::span<const std::byte> image, u64 names, u64 end) {
  u64 at = names;
  for (u64 i = 0; i < kSymbolsPerMarker; ++i) {
    if (at + 2 > end) return std::nullopt;
    u64 length = static_cast<u8>(image[at++]);
    if ((length & 0x80) != 0) length = (length & 0x7f) | u64{static_cast<u8>(image[at++])} << 7;
    if (length == 0 || length > Kallsyms::kMaxNameBytes) return std::nullopt;
    at += length;
  }
  if (at > end) return std::nullopt;
  return at - names;
}

struct Names {
  u64 count_at = 0;  // where their number stands in the image, a u32
  u64 begin = 0;
};

// Names end within 256 entries behind the last marker, padded; before them stands their number, padded to 8
// too, or since 7.0 right before them.
std::optional<Names> names_before(std::span<const std::byte> image, const Markers& markers) {
  if (markers.count < 2 || markers.last > markers.begin) return std::nullopt;
  const u64 second = load_le<u32>(&image[markers.begin + 4]);
  const u64 latest = round_down(markers.begin - markers.last, 4);
  const u64 earliest = std::max(kAlignment, latest - std::min(latest, kSymbolsPerMarker * kMaxEntryBytes));
  for (u64 names = latest; names >= earliest; names -= 4) {
    for (const u64 count_at : {names - kAlignment, names - 4}) {
      const u64 count = load_le<u32>(&image[count_at]);
      if ((count + kSymbolsPerMarker - 1) / kSymbolsPerMarker != markers.count) continue;
      if (walk_names(image, names, markers.begin) == second) return Names{count_at, names};
    }
  }
  return std::nullopt;
}

// From 6.2 (60443c88f3a8) to 6.3, and where that was taken back to older kernels, three bytes for each symbol
// stand between the markers and the token table: kallsyms_seqs_of_names. How far back the markers begin then
// says how many there are. Where the names begin.
std::optional<Names> names_before_sequences(std::span<const std::byte> image, u64 table) {
  constexpr u64 kBytesPerMarker = 4 + kSymbolsPerMarker * kSequenceBytes;
  const auto word = [&](u64 i) { return load_le<u32>(&image[i]); };
  const auto fits = [&](u64 begin, u64 count) {
    const u64 sequences = round_up(begin + count * 4, kAlignment);
    if (sequences >= table) return false;
    const u64 most = (table - sequences) / kSequenceBytes;
    const u64 least = most - std::min(most, kAlignment / kSequenceBytes);
    if (count * kSymbolsPerMarker < least || (count - 1) * kSymbolsPerMarker >= most) return false;
    for (u64 i = 1; i < count; ++i) {
      if (word(begin + i * 4) <= word(begin + (i - 1) * 4)) return false;
    }
    return true;
  };
  const u64 end = round_down(table, 4);
  const u64 farthest = std::min(end, Kallsyms::kMaxSymbols / kSymbolsPerMarker * kBytesPerMarker);
  for (u64 back = kBytesPerMarker; back <= farthest; back += 4) {
    const u64 begin = end - back;
    if (word(begin) != 0) continue;
    const u64 about = back / kBytesPerMarker;
    for (u64 count = std::max<u64>(about, 2); count <= about + 2; ++count) {
      if (!fits(begin, count)) continue;
      if (const auto names = names_before(image, {begin, count, word(begin + (count - 1) * 4)})) return names;
    }
  }
  return std::nullopt;
}

// The three places where offsets may stand: before the names (up to 6.3), or behind the token index
// (cf7a8eed8b1e), then with a base or, since 7.0, without one.
void add_places(std::span<const std::byte> image, GuestVirtual base, const Names& names, u64 table, u64 index,
                std::vector<Kallsyms::Place>& out) {
  const u64 count_at = names.count_at;
  const u64 offset_bytes = u64{load_le<u32>(&image[count_at])} * 4;
  const u64 behind = index + kTokens * 2;
  const auto place = [&](u64 offsets, std::optional<u64> relative_base) {
    Kallsyms::Place p{base + count_at, base + names.begin, base + table, base + index, base + offsets, {}};
    if (relative_base) p.relative_base = base + *relative_base;
    out.push_back(p);
  };
  const u64 behind_offsets = round_up(behind + offset_bytes, kAlignment);
  if (behind_offsets + 8 <= image.size()) place(behind, behind_offsets);
  if (behind + offset_bytes <= image.size()) place(behind, std::nullopt);
  const u64 padded = round_up(offset_bytes, kAlignment);
  if (count_at >= padded + 8) place(count_at - 8 - padded, count_at - 8);
}

void search_piece(std::span<const std::byte> image, GuestVirtual base, Budget& budget,
                  std::vector<Kallsyms::Place>& places) {
  u64 from = 0;
  for (; budget.digits > 0 && budget.tables > 0; --budget.digits) {
    const auto at = next_digits(image, from);
    if (!at) return;
    from = *at + 1;
    std::optional<u64> table;
    std::optional<u64> index;
    for (const u64 begin : table_begins(image, *at)) {
      index = index_of(image, begin);
      if (index) table = begin;
      if (index) break;
    }
    if (!table) continue;
    --budget.tables;
    const auto markers = markers_before(image, *table);
    auto names = markers ? names_before(image, *markers) : std::nullopt;
    if (!names) names = names_before_sequences(image, *table);
    if (names) add_places(image, base, *names, *table, *index, places);
  }
}

// A run of the image that is contiguous in both kinds of addresses.
struct Extent {
  GuestVirtual address;
  GuestPhysical physical;
  u64 bytes = 0;
};

std::vector<Extent> image_extents(const GuestMemory& memory, const PageTableRoot& tables) {
  std::vector<Extent> extents;
  const auto add = [&](GuestVirtual address, PhysicalExtent extent) {
    const u64 begin = std::max(address.value, kImageBegin.value);
    const u64 bytes =
        std::min(extent.bytes - (begin - address.value), kImageBytes - (begin - kImageBegin.value));
    const GuestPhysical physical = extent.address + (begin - address.value);
    if (!extents.empty() && extents.back().address.value + extents.back().bytes == begin &&
        extents.back().physical + extents.back().bytes == physical) {
      extents.back().bytes += bytes;
    } else {
      extents.push_back({GuestVirtual{begin}, physical, bytes});
    }
  };
  walk_mappings(memory, tables, kImageBegin, kImageBegin + (kImageBytes - 1), kMaxTables, {add, {}});
  return extents;
}

// Page by page where a part of it cannot be read.
void read_extent(const GuestMemory& memory, const Extent& extent, std::vector<std::byte>& buffer,
                 std::vector<ImagePiece>& pieces) {
  if (pieces.empty() || pieces.back().address + pieces.back().bytes.size() != extent.address) {
    pieces.push_back({extent.address, {}});
    pieces.back().bytes.reserve(extent.bytes);  // growing would copy it, and touch twice the memory
  }
  for (u64 done = 0; done < extent.bytes;) {
    const u64 bytes = std::min<u64>(buffer.size(), extent.bytes - done);
    const std::span<std::byte> out(buffer.data(), bytes);
    if (memory.read(extent.physical + done, out).ok()) {
      append_piece(pieces, extent.address + done, out);
    } else {
      for (u64 page = 0; page < bytes; page += kPageSize) {
        const std::span<std::byte> one(buffer.data(), kPageSize);
        if (memory.read(extent.physical + (done + page), one).ok())
          append_piece(pieces, extent.address + (done + page), one);
      }
    }
    done += bytes;
  }
}

u64 bytes_of(const std::vector<Extent>& extents) {
  u64 total = 0;
  for (const Extent& extent : extents) total += extent.bytes;
  return total;
}

// What of `extents` is in [begin, end), guest-virtual.
std::vector<Extent> part_of(const std::vector<Extent>& extents, u64 begin, u64 end) {
  std::vector<Extent> part;
  for (const Extent& extent : extents) {
    const u64 first = std::max(begin, extent.address.value);
    const u64 last = std::min(end, extent.address.value + extent.bytes);
    if (first >= last) continue;
    const u64 skipped = first - extent.address.value;
    part.push_back({extent.address + skipped, extent.physical + skipped, last - first});
  }
  return part;
}

std::vector<ImagePiece> read_pieces(const GuestMemory& memory, const std::vector<Extent>& extents) {
  std::vector<ImagePiece> pieces;
  std::vector<std::byte> buffer(kBufferBytes);
  for (const Extent& extent : extents) read_extent(memory, extent, buffer, pieces);
  std::erase_if(pieces, [](const ImagePiece& piece) { return piece.bytes.empty(); });
  return pieces;
}

std::vector<Kallsyms::Place> search_pieces(const std::vector<ImagePiece>& pieces) {
  std::vector<Kallsyms::Place> places;
  Budget budget;
  for (const ImagePiece& piece : pieces) search_piece(piece.bytes, piece.address, budget, places);
  return places;
}

// Where the ten digits stand in what can be read in large pieces; not where one piece ends in the middle of
// them.
std::vector<GuestVirtual> digits_in(const GuestMemory& memory, const std::vector<Extent>& extents) {
  std::vector<GuestVirtual> found;
  std::vector<std::byte> buffer(kBufferBytes);
  for (const Extent& extent : extents) {
    for (u64 done = 0; done < extent.bytes; done += kBufferBytes) {
      const std::span<std::byte> out(buffer.data(), std::min(kBufferBytes, extent.bytes - done));
      if (!memory.read(extent.physical + done, out).ok()) continue;
      for (auto at = next_digits(out, 0); at; at = next_digits(out, *at + 1)) {
        found.push_back(extent.address + (done + *at));
        if (found.size() == kMostWindows) return found;
      }
    }
  }
  return found;
}

}  // namespace

std::vector<Kallsyms::Place> find_kallsyms_in(std::span<const std::byte> image, GuestVirtual base) {
  std::vector<Kallsyms::Place> places;
  Budget budget;
  search_piece(image, base, budget, places);
  return places;
}

Result<std::vector<ImagePiece>> read_kernel_image(const GuestMemory& memory, PageTableRoot tables,
                                                  u64 max_bytes) {
  const std::vector<Extent> extents = image_extents(memory, tables);
  if (bytes_of(extents) > max_bytes)
    return make_error(ErrorKind::kUnsupported, "the kernel image is larger than {} MiB", max_bytes / kMiB);
  std::vector<ImagePiece> pieces = read_pieces(memory, extents);
  if (pieces.empty()) return Error(ErrorKind::kNotFound, "no kernel image is mapped");
  return pieces;
}

Result<std::vector<Kallsyms::Place>> find_kallsyms(const GuestMemory& memory, PageTableRoot tables) {
  VMSIEVE_ASSIGN(const auto pieces, read_kernel_image(memory, tables));
  return search_pieces(pieces);
}

std::vector<Kallsyms::Place> find_kallsyms_at_once(const GuestMemory& memory, PageTableRoot tables) {
  const std::vector<Extent> extents = image_extents(memory, tables);
  if (bytes_of(extents) > kMaxImageBytes) return {};
  std::vector<Kallsyms::Place> places;
  u64 searched = 0;  // up to here, with what is behind
  for (const GuestVirtual digits : digits_in(memory, extents)) {
    if (digits.value < searched) continue;
    // In whole pages, so that what is aligned stays so.
    const u64 page = round_down(digits.value, kPageSize);
    searched = page + kWindowBehind / 2;
    const auto near =
        search_pieces(read_pieces(memory, part_of(extents, page - kWindowBefore, page + kWindowBehind)));
    places.insert(places.end(), near.begin(), near.end());
  }
  return places;
}

}  // namespace vmsieve
