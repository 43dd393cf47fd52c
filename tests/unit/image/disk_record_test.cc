// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/image/disk_record.h"

#include <random>
#include <span>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "vmsieve/base/endian.h"
#include "vmsieve/image/frame_codec.h"
#include "vmsieve/image/manifest.h"

namespace vmsieve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;
using Json = nlohmann::json;

/// Something other than the default in every member.
DiskRecord example_record() {
  DiskRecord record;
  record.checkpoint = "0123456789abcdef";
  record.way = DiskWay::kSnapshot;
  record.disks = {
      {.device = "virtio0",
       .qdev = "/machine/peripheral-anon/device[0]/virtio-backend",
       .image = "/images/web.qcow2",
       .format = "qcow2",
       .virtual_bytes = 8 * kGiB,
       .print = {.bytes = 196608, .modified_ns = 1767225600123456789, .sample = 0xfedcba9876543210},
       .below = {{"/images/base \"1\".raw", {.bytes = 4096, .modified_ns = 5, .sample = 6}}},
       .overlay = "/images/web.vmsieve-0123456789abcdef.qcow2",
       .snapshot = "vmsieve-0123456789abcdef",
       .chain = {"/images/web.qcow2", "/images/base \"1\".raw"}},
      {.device = "",
       .qdev = "data",
       .image = "/dev/vg0/data",
       .format = "raw",
       .virtual_bytes = 1,
       .print = {.bytes = 2, .modified_ns = 0, .sample = 3},
       .below = {},
       .overlay = "/overlays/data.vmsieve-0123456789abcdef.qcow2",
       .snapshot = "",
       .chain = {"/dev/vg0/data"}}};
  record.children = {"/images/web.vmsieve-0123456789abcdef.1a2b3c4d.qcow2", "/tmp/second"};
  record.abandoned = {{"/images/abandoned", {.bytes = 7, .modified_ns = 8, .sample = 9}}};
  record.merged = {"/images/merged"};
  record.renamed = {"/images/renamed"};
  record.leaving = {"/images/leaving"};
  return record;
}

std::string with_header(const std::string& body) {
  return fmt::format("vmsieve-disks 1 {} {:016x}\n{}", body.size(), checksum(as_byte_span(body)), body);
}

Json example_json() {
  const std::string text = encode_disks(example_record());
  return Json::parse(text.substr(text.find('\n')));
}

Error error_of(std::string_view text) {
  const auto decoded = decode_disks(text);
  return decoded.ok() ? Error{ErrorKind::kTimeout, "no error"} : decoded.error();
}

/// The error of the example with one member changed, by JSON pointer.
std::string fault_with(const std::string& pointer, Json value) {
  Json json = example_json();
  json[Json::json_pointer{pointer}] = std::move(value);
  const Error error = error_of(with_header(json.dump()));
  if (error.kind() != ErrorKind::kTimeout) {
    EXPECT_EQ(error.kind(), ErrorKind::kDamaged);
    EXPECT_THAT(error.message(), StartsWith("the record of the disks"));
  }
  return error.message();
}

TEST(DiskRecord, DecodingGivesWhatWasEncoded) {
  const std::string text = encode_disks(example_record());
  const auto decoded = decode_disks(text);
  ASSERT_TRUE(decoded.ok()) << decoded.error().message();
  // The struct has no operator==, but its encoding holds all of it.
  EXPECT_EQ(encode_disks(*decoded), text);
  EXPECT_EQ(decoded->checkpoint, "0123456789abcdef");
  EXPECT_EQ(decoded->way, DiskWay::kSnapshot);
  ASSERT_EQ(decoded->disks.size(), 2u);
  const SavedDisk& disk = decoded->disks[0];
  EXPECT_EQ(disk.device, "virtio0");
  EXPECT_EQ(disk.qdev, "/machine/peripheral-anon/device[0]/virtio-backend");
  EXPECT_EQ(disk.image, "/images/web.qcow2");
  EXPECT_EQ(disk.format, "qcow2");
  EXPECT_EQ(disk.virtual_bytes, 8 * kGiB);
  EXPECT_EQ(disk.print, example_record().disks[0].print);
  EXPECT_EQ(disk.overlay, "/images/web.vmsieve-0123456789abcdef.qcow2");
  EXPECT_EQ(disk.snapshot, "vmsieve-0123456789abcdef");
  EXPECT_THAT(disk.chain, ElementsAre("/images/web.qcow2", "/images/base \"1\".raw"));
  ASSERT_EQ(disk.below.size(), 1u);
  EXPECT_EQ(disk.below[0].path, "/images/base \"1\".raw");
  EXPECT_EQ(disk.below[0].print, example_record().disks[0].below[0].print);
  EXPECT_EQ(decoded->disks[1].device, "");
  EXPECT_EQ(decoded->disks[1].format, "raw");
  EXPECT_EQ(decoded->children, example_record().children);
  EXPECT_THAT(decoded->merged, ElementsAre("/images/merged"));
  EXPECT_THAT(decoded->renamed, ElementsAre("/images/renamed"));
  EXPECT_THAT(decoded->leaving, ElementsAre("/images/leaving"));
  ASSERT_EQ(decoded->abandoned.size(), 1u);
  EXPECT_EQ(decoded->abandoned[0].path, "/images/abandoned");
  EXPECT_EQ(decoded->abandoned[0].print, example_record().abandoned[0].print);
}

TEST(DiskRecord, AnOlderOneKnowsNothingOfWhatIsBelowOrAbandoned) {
  Json json = example_json();
  json.erase("abandoned");
  for (Json& disk : json["disks"]) disk.erase("below");
  const auto decoded = decode_disks(with_header(json.dump()));
  ASSERT_TRUE(decoded.ok()) << decoded.error().message();
  EXPECT_THAT(decoded->disks[0].below, IsEmpty());
  EXPECT_THAT(decoded->abandoned, IsEmpty());
}

TEST(DiskRecord, AnImageInAClusterHasANameAndItsOptions) {
  DiskRecord record = example_record();
  record.way = DiskWay::kInternal;
  record.disks.resize(1);
  SavedDisk& disk = record.disks[0];
  disk.image = "rbd:vms/web";
  disk.source = R"({"driver":"rbd","pool":"vms","image":"web"})";
  disk.chain = {disk.image};
  disk.overlay.clear();
  const auto decoded = decode_disks(encode_disks(record));
  ASSERT_TRUE(decoded.ok()) << decoded.error().message();
  EXPECT_EQ(decoded->disks[0].source, disk.source);
  EXPECT_EQ(decoded->disks[0].image, disk.image);
  EXPECT_EQ(decoded->disks[0].chain, disk.chain);
  for (const auto& [member, wrong] :
       std::vector<std::pair<const char*, Json>>{{"image", "/vms/web"},
                                                 {"image", ""},
                                                 {"chain", Json::array({"/vms/web"})},
                                                 {"source", ""},
                                                 {"source", 7}}) {
    const std::string text = encode_disks(record);
    Json json = Json::parse(text.substr(text.find('\n')));
    json["disks"][0][member] = wrong;
    EXPECT_EQ(error_of(with_header(json.dump())).kind(), ErrorKind::kDamaged) << member << wrong;
  }
  // Of another way it would be taken for a file.
  record.way = DiskWay::kSnapshot;
  disk.overlay = "/overlay";
  EXPECT_THAT(error_of(encode_disks(record)).message(), HasSubstr("disks[0].image"));
}

TEST(DiskRecord, WhatIsBelowHasAPathAndAPrint) {
  EXPECT_THAT(fault_with("/disks/0/below", 7), HasSubstr("below"));
  EXPECT_THAT(fault_with("/disks/0/below/0/path", "base.raw"), HasSubstr("below[0].path"));
  EXPECT_THAT(fault_with("/disks/0/below/0/sample", "6"), HasSubstr("below[0].sample"));
}

TEST(DiskRecord, EveryWayComesBack) {
  for (const DiskWay way : {DiskWay::kSnapshot, DiskWay::kInternal, DiskWay::kCopy}) {
    DiskRecord record = example_record();
    record.way = way;
    for (SavedDisk& disk : record.disks) disk.snapshot = "vmsieve-0123456789abcdef";
    const auto decoded = decode_disks(encode_disks(record));
    ASSERT_TRUE(decoded.ok()) << decoded.error().message();
    EXPECT_EQ(decoded->way, way);
  }
}

TEST(DiskRecord, ListsMayBeEmpty) {
  const auto decoded = decode_disks(encode_disks({.checkpoint = "0123456789abcdef"}));
  ASSERT_TRUE(decoded.ok()) << decoded.error().message();
  EXPECT_THAT(decoded->disks, IsEmpty());
  EXPECT_THAT(decoded->children, IsEmpty());
}

TEST(DiskRecord, BeginsWithALineThatBindsTheRest) {
  const std::string text = encode_disks(example_record());
  EXPECT_EQ(text, with_header(text.substr(text.find('\n') + 1)));
}

TEST(DiskRecord, PathsAndNamesMayHoldAnyBytesThatFilesMay) {
  std::mt19937 random{7};
  std::vector<std::string> paths = {"/", "/\xff", "/\xc3", "/\xc0\x80", "/\"\\\n\x7f", "/\xed\xa0\x80"};
  for (int i = 0; i < 1000; ++i) {
    std::string path(1 + random() % 12, '/');
    for (char& c : std::span{path}.subspan(1)) c = static_cast<char>(1 + random() % 255);
    paths.push_back(path);
  }
  DiskRecord record = example_record();
  record.children = record.merged = record.renamed = record.leaving = record.disks[0].chain = paths;
  record.disks[0].image = "/\xff\xfe/image";
  record.disks[0].overlay = "/\x80";
  record.disks[0].device = record.disks[0].qdev = record.disks[0].snapshot = "\xff";
  const auto decoded = decode_disks(encode_disks(record));
  ASSERT_TRUE(decoded.ok()) << decoded.error().message();
  for (const auto* list :
       {&decoded->children, &decoded->merged, &decoded->renamed, &decoded->leaving, &decoded->disks[0].chain})
    EXPECT_EQ(*list, paths);
  EXPECT_EQ(decoded->disks[0].image, "/\xff\xfe/image");
  EXPECT_EQ(decoded->disks[0].overlay, "/\x80");
  for (const auto* text : {&decoded->disks[0].device, &decoded->disks[0].qdev, &decoded->disks[0].snapshot})
    EXPECT_EQ(*text, "\xff");
}

TEST(DiskRecord, TheLargestNumbersSurvive) {
  DiskRecord record = example_record();
  SavedDisk& disk = record.disks[0];
  disk.virtual_bytes = disk.print.bytes = disk.print.modified_ns = disk.print.sample = ~u64{0};
  const auto decoded = decode_disks(encode_disks(record));
  ASSERT_TRUE(decoded.ok()) << decoded.error().message();
  EXPECT_EQ(decoded->disks[0].virtual_bytes, ~u64{0});
  EXPECT_EQ(decoded->disks[0].print, disk.print);
}

// ---- what is not whole -------------------------------------------------------

TEST(DiskRecord, EveryTruncationIsDamage) {
  const std::string text = encode_disks(example_record());
  for (std::size_t size = 0; size < text.size(); ++size)
    EXPECT_EQ(error_of(text.substr(0, size)).kind(), ErrorKind::kDamaged) << size;
}

TEST(DiskRecord, EveryBitFlipIsFound) {
  const std::string text = encode_disks(example_record());
  for (std::size_t bit = 0; bit < 8 * text.size(); ++bit) {
    std::string flipped = text;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    EXPECT_FALSE(decode_disks(flipped).ok()) << bit;
  }
}

TEST(DiskRecord, BytesBehindTheEndAreDamage) {
  EXPECT_THAT(error_of(encode_disks(example_record()) + "x").message(), HasSubstr("length"));
}

TEST(DiskRecord, MoreThanTheLargestSizeIsDamage) {
  const Error error = error_of(std::string(DiskRecord::kMaxBytes + 1, ' '));
  EXPECT_EQ(error.kind(), ErrorKind::kDamaged);
  EXPECT_THAT(error.message(), HasSubstr("more than"));
  // Padded to the very limit it is taken.
  std::string body = example_json().dump();
  body.resize(DiskRecord::kMaxBytes - with_header(body).size() + body.size() - 4, ' ');
  EXPECT_LE(with_header(body).size(), DiskRecord::kMaxBytes);
  EXPECT_EQ(error_of(with_header(body)).message(), "no error");
}

TEST(DiskRecord, AnUnknownVersionIsUnsupported) {
  std::string text = encode_disks(example_record());
  text.replace(0, text.find(' ', 14), "vmsieve-disks 2");
  const Error error = error_of(text);
  EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
  EXPECT_THAT(error.message(), HasSubstr("version 2"));
}

TEST(DiskRecord, MalformedHeaderLinesAreDamage) {
  for (const char* text :
       {"", "vmsieve-disks", "vmsieve-disks\n", "vmsieve-disks \n", "vmsieve-disks 1\n",
        "vmsieve-disks 1 0\n", "vmsieve-disks 1 0 2d06800538d394c\n", "vmsieve-disks 1 00 2d06800538d394c2\n",
        "vmsieve-disks 1 0 2D06800538D394C2\n", "vmsieve-disks 1 0 2d06800538d394c2 \n",
        "vmsieve-disks 1  0 2d06800538d394c2\n", "vmsieve-disks x 0 2d06800538d394c2\n",
        "vmsieve-manifest 1 0 2d06800538d394c2\n", "vmsieve-disk 1 0 2d06800538d394c2\n"}) {
    EXPECT_EQ(error_of(text).kind(), ErrorKind::kDamaged) << text;
  }
}

TEST(DiskRecord, AManifestIsNone) {
  Json json = example_json();
  const std::string body = json.dump();
  EXPECT_THAT(error_of(fmt::format("vmsieve-manifest 1 {} {:016x}\n{}", body.size(),
                                   checksum(as_byte_span(body)), body))
                  .message(),
              HasSubstr("vmsieve-disks"));
}

TEST(DiskRecord, BodiesThatAreNoJsonObjectAreDamage) {
  for (const char* body : {"", "{", "[]", "null", "7", "\"x\"", "{} {}", "{\"a\":1,}", "{\"a\":\"\xff\"}"})
    EXPECT_EQ(error_of(with_header(body)).kind(), ErrorKind::kDamaged) << body;
}

TEST(DiskRecord, DeepNestingIsRefusedBeforeItIsParsed) {
  EXPECT_THAT(error_of(with_header(std::string(1000000, '['))).message(), HasSubstr("deeper than 16"));
}

// ---- members -------------------------------------------------------------------

TEST(DiskRecord, UnknownMembersAreSkipped) {
  Json json = example_json();
  json["comment"] = {{"by", "somebody"}};
  json["disks"][0]["comment"] = 7;
  EXPECT_EQ(error_of(with_header(json.dump())).message(), "no error");
}

TEST(DiskRecord, EveryMemberMustBeThere) {
  const Json example = example_json();
  const std::vector<std::pair<std::string, std::string>> parents = {
      {"", ""}, {"/disks/1", "disks[1]."}, {"/disks/0/below/0", "disks[0].below[0]."}};
  for (const auto& [pointer, path] : parents) {
    const Json::json_pointer parent{pointer};
    for (const auto& [name, value] : example[parent].items()) {
      // AnOlderOneKnowsNothingOfWhatIsBelowOrAbandoned
      if (name == "below" || name == "abandoned") continue;
      Json json = example;
      json[parent].erase(name);
      const Error error = error_of(with_header(json.dump()));
      EXPECT_EQ(error.kind(), ErrorKind::kDamaged) << name;
      EXPECT_THAT(error.message(), HasSubstr(path + name + ": it is missing"));
    }
  }
}

TEST(DiskRecord, NoMemberMayBeOfAnotherType) {
  const std::vector<Json> strangers = {nullptr,
                                       true,
                                       7,
                                       -1,
                                       1.5,
                                       "text",
                                       Json::array({1}),
                                       Json::object(),
                                       {{"hex", "0"}},
                                       Json::array({nullptr})};
  const auto stranger_is_named = [&](const std::string& pointer, const Json& members) {
    for (const auto& [name, value] : members.items()) {
      for (const Json& stranger : strangers) {
        // "text" is no path, no id, no format, no way and no sample either, but may be a name.
        const bool fits = (value.is_number() && stranger == 7) ||
                          (stranger == "text" && (name == "device" || name == "qdev" || name == "snapshot"));
        if (fits) continue;
        EXPECT_THAT(fault_with(pointer + name, stranger), HasSubstr(name)) << stranger;
      }
    }
  };
  stranger_is_named("/", example_json());
  stranger_is_named("/disks/0/", example_json()["disks"][0]);
}

TEST(DiskRecord, EveryPathIsAbsolute) {
  for (const Json& wrong : {Json(""), Json("disk.qcow2"), Json("./disk"), Json("../disk"), Json("file:/disk"),
                            Json(std::string("/a\0b", 4)), Json({{"hex", "ff"}})}) {
    for (const char* member : {"image", "overlay"})
      EXPECT_THAT(fault_with(fmt::format("/disks/1/{}", member), wrong),
                  HasSubstr(fmt::format("disks[1].{}: it is no absolute path", member)))
          << wrong;
    EXPECT_THAT(fault_with("/disks/0/chain/1", wrong),
                HasSubstr("disks[0].chain: an element is no absolute path"));
    for (const char* member : {"children", "merged", "renamed", "leaving"})
      EXPECT_THAT(fault_with(fmt::format("/{}/0", member), wrong),
                  HasSubstr(fmt::format("{}: an element is no absolute path", member)))
          << wrong;
  }
}

TEST(DiskRecord, OnlyASnapshotNeedsAnOverlay) {
  for (const char* way : {"internal", "copy"}) {
    Json json = example_json();
    json["way"] = way;
    for (Json& disk : json["disks"]) {
      disk["overlay"] = "";
      disk["snapshot"] = "name";
    }
    EXPECT_EQ(error_of(with_header(json.dump())).message(), "no error") << way;
    json["disks"][1]["overlay"] = "relative";
    EXPECT_THAT(error_of(with_header(json.dump())).message(),
                HasSubstr("disks[1].overlay: it is no absolute path"))
        << way;
  }
}

TEST(DiskRecord, OnlyASnapshotInsideTheImageNeedsAName) {
  Json json = example_json();
  json["disks"][1]["snapshot"] = "";
  EXPECT_EQ(error_of(with_header(json.dump())).message(), "no error");
  json["way"] = "internal";
  EXPECT_THAT(error_of(with_header(json.dump())).message(), HasSubstr("disks[1].snapshot: it is empty"));
}

TEST(DiskRecord, WhatIsNotKnownIsDamage) {
  EXPECT_THAT(fault_with("/way", "mirror"), HasSubstr("way: it is unknown"));
  EXPECT_THAT(fault_with("/way", "unknown"), HasSubstr("way: it is unknown"));
  for (const char* format : {"", "vmdk", "RAW", "qcow"})
    EXPECT_THAT(fault_with("/disks/0/format", format), HasSubstr("disks[0].format: it is neither"));
  for (const char* sample : {"", "0x", "fedcba987654321", "FEDCBA9876543210", "fedcba98765432100"})
    EXPECT_THAT(fault_with("/disks/0/sample", sample), HasSubstr("disks[0].sample"));
  for (const char* id : {"", "0123456789ABCDEF", "../../../../etc/", "0123456789abcde"})
    EXPECT_THAT(fault_with("/checkpoint", id), HasSubstr("checkpoint: it is no checkpoint id"));
}

TEST(DiskObject, IsAnObjectsName) {
  EXPECT_EQ(disk_object(0), "disk-0");
  EXPECT_EQ(disk_object(12), "disk-12");
  EXPECT_TRUE(is_object_name(disk_object(~u64{0})));
}

}  // namespace
}  // namespace vmsieve
