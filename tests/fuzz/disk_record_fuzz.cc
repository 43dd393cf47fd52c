// SPDX-License-Identifier: Apache-2.0
// A record of disks of any bytes, as it comes and behind a header that fits, is refused, or is the same after
// encoding and decoding; every path in it is absolute.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "vmsieve/base/endian.h"
#include "vmsieve/image/disk_record.h"
#include "vmsieve/image/frame_codec.h"
#include "vmsieve/image/manifest.h"

namespace {

using namespace vmsieve;

void check_path(const std::string& path) {
  VMSIEVE_CHECK(path.starts_with('/') && path.find('\0') == std::string::npos);
}

void check_name_in_cluster(const std::string& name) {
  VMSIEVE_CHECK(name.starts_with("rbd:") && name.find('\0') == std::string::npos);
}

void decode(const std::string& text) {
  const auto record = decode_disks(text);
  if (!record.ok()) return;
  VMSIEVE_CHECK(is_checkpoint_id(record->checkpoint));
  for (const auto* paths : {&record->children, &record->merged, &record->renamed, &record->leaving})
    std::ranges::for_each(*paths, check_path);
  for (const PrintedFile& file : record->abandoned) check_path(file.path);
  for (const SavedDisk& disk : record->disks) {
    const bool in_a_cluster = record->way == DiskWay::kInternal && !disk.source.empty();
    const auto check_image = in_a_cluster ? check_name_in_cluster : check_path;
    check_image(disk.image);
    std::ranges::for_each(disk.chain, check_image);
    if (record->way == DiskWay::kSnapshot || !disk.overlay.empty()) check_path(disk.overlay);
    VMSIEVE_CHECK(record->way != DiskWay::kInternal || !disk.snapshot.empty());
    VMSIEVE_CHECK(disk.format == "raw" || disk.format == "qcow2");
  }
  const std::string encoded = encode_disks(*record);
  const auto again = decode_disks(encoded);
  VMSIEVE_CHECK(again.ok() && encode_disks(*again) == encoded);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  decode(text);
  decode(fmt::format("vmsieve-disks 1 {} {:016x}\n{}", size, checksum(as_byte_span(text)), text));
  return 0;
}
