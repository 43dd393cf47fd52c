// SPDX-License-Identifier: Apache-2.0
// A store's catalog, as it comes, with its checksum put right, and as an entry's rest: there is one way only
// to write what is taken, and nothing in it leads out of the store.
#include <cstddef>
#include <cstdint>

#include "vmsieve/image/frame_codec.h"
#include "vmsieve/store/catalog.h"

namespace {

void look_at(const std::string& body) {
  using namespace vmsieve;
  const std::string text =
      fmt::format("vmsieve-catalog 1\n{:016x}\n{}", checksum(std::as_bytes(std::span{body})), body);
  const auto catalog = Catalog::decode(text);
  if (!catalog) return;
  for (const auto& [id, entry] : catalog->entries) {
    VMSIEVE_CHECK(is_checkpoint_id(id) && id == entry.summary.id);
    for (const ObjectRecord& object : entry.objects) VMSIEVE_CHECK(is_object_name(object.name));
  }
  VMSIEVE_CHECK(catalog->encode() == text);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string body;
  for (std::size_t i = 0; i < size; ++i) body += static_cast<char>(data[i]);
  (void)vmsieve::Catalog::decode(body);
  look_at(body);
  look_at(
      "\x01"
      "0123456789abcdef" +
      body);  // which is hard to guess
  return 0;
}
