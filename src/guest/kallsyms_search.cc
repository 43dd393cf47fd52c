// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/kallsyms_search.h"

#include <algorithm>
#include <functional>
#include <optional>

#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

constexpr GuestVirtual kImageBegin{0xffff'ffff'8000'0000};
constexpr u64 kImageBytes = kGiB;
constexpr u64 kLargePage = 2 * kMiB;
constexpr u64 kTokens = 256;
constexpr u64 kAlignment = 8;  // ALGN of scripts/kallsyms.c on 64 bits
constexpr u64 kSymbolsPerMarker = 256;
constexpr u64 kMaxEntryBytes = 514;

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

// Where the table begins whose token '0' is at `zero`.
std::optional<u64> table_begin(std::span<const std::byte> image, u64 zero) {
  u64 at = zero;
  for (u64 token = 0; token < '0'; ++token) {
    if (at == 0 || image[at - 1] != std::byte{0}) return std::nullopt;
    --at;  // the NUL of the token before
    u64 length = 0;
    while (at > 0 && image[at - 1] != std::byte{0}) {
      --at;
      if (++length > Kallsyms::kMaxNameBytes) return std::nullopt;
    }
  }
  return at;
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
  const u64 index = round_up(at, kAlignment);
  if (index + kTokens * 2 > image.size()) return std::nullopt;
  for (u64 token = 0; token < kTokens; ++token) {
    if (load_le<u16>(&image[index + token * 2]) != begins[token]) return std::nullopt;
  }
  return index;
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

// Names end within 256 entries behind the last marker, padded to 8; before them stands their number,
// padded to 8 too.
std::optional<u64> names_before(std::span<const std::byte> image, const Markers& markers) {
  if (markers.count < 2 || markers.last > markers.begin) return std::nullopt;
  const u64 second = load_le<u32>(&image[markers.begin + 4]);
  const u64 latest = round_down(markers.begin - markers.last, kAlignment);
  const u64 earliest = std::max(kAlignment, latest - std::min(latest, kSymbolsPerMarker * kMaxEntryBytes));
  for (u64 names = latest; names >= earliest; names -= kAlignment) {
    const u64 count = load_le<u32>(&image[names - kAlignment]);
    if ((count + kSymbolsPerMarker - 1) / kSymbolsPerMarker != markers.count) continue;
    if (walk_names(image, names, markers.begin) == second) return names;
  }
  return std::nullopt;
}

// The three places where offsets may stand: before the names (up to 6.3), or behind the token index
// (cf7a8eed8b1e), then with a base or, since 7.0, without one.
void add_places(std::span<const std::byte> image, GuestVirtual base, u64 names, u64 table, u64 index,
                std::vector<Kallsyms::Place>& out) {
  const u64 count_at = names - kAlignment;
  const u64 offset_bytes = u64{load_le<u32>(&image[count_at])} * 4;
  const u64 behind = index + kTokens * 2;
  const auto place = [&](u64 offsets, std::optional<u64> relative_base) {
    Kallsyms::Place p{base + count_at, base + names, base + table, base + index, base + offsets, {}};
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
  const auto digits = as_byte_span(kDigits);
  const std::boyer_moore_horspool_searcher searcher(digits.begin(), digits.end(),
                                                    [](std::byte b) { return static_cast<std::size_t>(b); });
  for (auto from = image.begin(); budget.digits > 0 && budget.tables > 0; --budget.digits) {
    const auto hit = std::search(from, image.end(), searcher);
    if (hit == image.end()) return;
    from = hit + 1;
    const auto table = table_begin(image, static_cast<u64>(hit - image.begin()));
    if (!table) continue;
    const auto index = index_of(image, *table);
    if (!index) continue;
    --budget.tables;
    const auto markers = markers_before(image, *table);
    if (!markers) continue;
    if (const auto names = names_before(image, *markers))
      add_places(image, base, *names, *table, *index, places);
  }
}

// Is any of it mapped? Nearly nothing of the image's GiB is, and to ask page by page costs a few reads of
// another process each. What the image consists of is longer than the distance between the pages asked for.
bool any_mapped(const GuestMemory& memory, PageTableRoot tables, GuestVirtual large_page) {
  constexpr u64 kDistance = 128 * kKiB;
  for (u64 at = 0; at < kLargePage; at += kDistance) {
    if (translate(memory, tables, large_page + at).ok()) return true;
  }
  return translate(memory, tables, large_page + (kLargePage - kPageSize)).ok();
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
  std::vector<ImagePiece> pieces;
  u64 total = 0;
  std::vector<std::byte> buffer(kLargePage);
  for (u64 at = 0; at < kImageBytes; at += kLargePage) {
    const GuestVirtual address = kImageBegin + at;
    const auto whole = read_virtual(memory, tables, address, buffer);
    if (whole.ok()) {
      append_piece(pieces, address, buffer);
      total += kLargePage;
    } else if (any_mapped(memory, tables, address)) {
      for (u64 page = 0; page < kLargePage; page += kPageSize) {
        const std::span<std::byte> out(buffer.data(), kPageSize);
        if (!read_virtual(memory, tables, address + page, out).ok()) continue;
        append_piece(pieces, address + page, out);
        total += kPageSize;
      }
    }
    if (total > max_bytes)
      return make_error(ErrorKind::kUnsupported, "the kernel image is larger than {} MiB", max_bytes / kMiB);
  }
  if (pieces.empty()) return Error(ErrorKind::kNotFound, "no kernel image is mapped");
  return pieces;
}

Result<std::vector<Kallsyms::Place>> find_kallsyms(const GuestMemory& memory, PageTableRoot tables) {
  VMSIEVE_ASSIGN(const auto pieces, read_kernel_image(memory, tables));
  std::vector<Kallsyms::Place> places;
  Budget budget;
  for (const ImagePiece& piece : pieces) search_piece(piece.bytes, piece.address, budget, places);
  return places;
}

}  // namespace vmsieve
