// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/image/framed_text.h"

#include "vmsieve/base/endian.h"
#include "vmsieve/image/frame_codec.h"
#include "vmsieve/image/json_fields.h"

namespace vmsieve {

namespace {

/// Longer than any header line; bounds the search for its end.
constexpr std::size_t kMaxHeaderLine = 128;
constexpr unsigned kMaxJsonDepth = 16;

bool is_number(std::string_view text) {
  return !text.empty() && text.size() <= 20 && text.find_first_not_of("0123456789") == std::string_view::npos;
}

/// The length and checksum that the header line promises, and the text behind it.
struct Header {
  u64 checksum = 0;
  std::string_view body;
};

Result<Header> read_header(const TextFrame& frame, std::string_view text) {
  const auto damaged = [&](std::string_view what) {
    return make_error(ErrorKind::kDamaged, "{}: {}", frame.name, what);
  };
  const std::string_view magic = frame.magic;
  if (!text.starts_with(magic) || text.size() == magic.size() || text[magic.size()] != ' ')
    return damaged(fmt::format("its magic '{}' is missing", magic));
  const std::size_t line_end = text.substr(0, kMaxHeaderLine).find('\n');
  const std::size_t version_end = text.substr(0, kMaxHeaderLine).find(' ', magic.size() + 1);
  if (line_end == std::string_view::npos || version_end == std::string_view::npos || version_end > line_end)
    return damaged("its header line is cut off or malformed");
  const std::string_view version = text.substr(magic.size() + 1, version_end - magic.size() - 1);
  if (version != fmt::format("{}", frame.version)) {
    if (!is_number(version)) return damaged("its version is no number");
    return make_error(ErrorKind::kUnsupported, "{}: its version {} is not the version {} that is understood",
                      frame.name, version, frame.version);
  }
  Header header;
  header.body = text.substr(line_end + 1);
  const std::string_view promises = text.substr(version_end + 1, line_end - version_end - 1);
  const std::size_t space = promises.find(' ');
  const std::string_view length = promises.substr(0, space);
  const std::string_view digits = space == std::string_view::npos ? "" : promises.substr(space + 1);
  const std::optional<u64> expected = parse_hex(digits, 16);
  if (!expected || length.empty() || length.find_first_not_of("0123456789") != std::string_view::npos)
    return damaged("its header line is cut off or malformed");
  // Compared as text, so that there is one way only to write a length.
  if (length != fmt::format("{}", header.body.size()))
    return damaged(fmt::format("its length is {}, but {} bytes are there", length, header.body.size()));
  header.checksum = *expected;
  return header;
}

}  // namespace

std::string frame_text(const TextFrame& frame, std::string_view body) {
  return fmt::format("{} {} {} {:016x}\n{}", frame.magic, frame.version, body.size(),
                     checksum(as_byte_span(body)), body);
}

Result<nlohmann::json> parse_framed_json(const TextFrame& frame, std::string_view text) {
  VMSIEVE_ASSIGN(const Header header, read_header(frame, text));
  if (const u64 computed = checksum(as_byte_span(header.body)); computed != header.checksum) {
    return make_error(ErrorKind::kDamaged, "{}: its checksum is {:016x}, its bytes give {:016x}", frame.name,
                      header.checksum, computed);
  }
  if (json_deeper_than(header.body, kMaxJsonDepth)) {
    return make_error(ErrorKind::kDamaged, "{}: its JSON nests deeper than {} levels", frame.name,
                      kMaxJsonDepth);
  }
  auto json = nlohmann::json::parse(header.body, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return make_error(ErrorKind::kDamaged, "{}: its JSON is malformed", frame.name);
  return json;
}

}  // namespace vmsieve
