// SPDX-License-Identifier: Apache-2.0
// What comes over a monitor socket: lines are put together whatever the pieces they come in, and every
// line is a message or refused.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "vmsieve/base/result.h"
#include "vmsieve/qemu/qmp_wire.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vmsieve;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  LineAssembler whole(4096);
  LineAssembler pieces(4096);
  const bool taken = whole.feed(text).ok();
  bool taken_in_pieces = true;
  for (std::size_t at = 0; at < size && taken_in_pieces; at += 7) {
    taken_in_pieces = pieces.feed(text.substr(at, 7)).ok();
  }
  if (!taken || !taken_in_pieces) return 0;
  while (const auto line = whole.next_line()) {
    VMSIEVE_CHECK(pieces.next_line() == line);
    const auto message = parse_qmp_message(*line);
    if (!message.ok()) continue;
    if (message->kind == QmpMessage::Kind::kError) VMSIEVE_CHECK(message->error_text().size() <= 1 << 20);
    VMSIEVE_CHECK(json_string(message->body, "event").size() <= line->size() * 3);
  }
  VMSIEVE_CHECK(!pieces.next_line());
  return 0;
}
