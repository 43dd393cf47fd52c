// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/image/manifest.h"

#include <limits>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "unit/image/example_manifest.h"
#include "vmsieve/base/endian.h"
#include "vmsieve/image/frame_codec.h"

namespace vmsieve {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

std::string with_header(const std::string& body) {
  return fmt::format("vmsieve-manifest 1 {} {:016x}\n{}", body.size(), checksum(as_byte_span(body)), body);
}

Json example_json() {
  const std::string text = encode_manifest(example_manifest());
  return Json::parse(text.substr(text.find('\n')));
}

Error error_of(std::string_view text) {
  const auto decoded = decode_manifest(text);
  return decoded.ok() ? Error{ErrorKind::kTimeout, "no error"} : decoded.error();
}

/// The error of the example with one member changed, by JSON pointer.
std::string fault_with(const std::string& pointer, Json value) {
  Json json = example_json();
  json[Json::json_pointer{pointer}] = std::move(value);
  const Error error = error_of(with_header(json.dump()));
  if (error.kind() != ErrorKind::kTimeout) {
    EXPECT_EQ(error.kind(), ErrorKind::kDamaged);
  }
  return error.message();
}

TEST(Manifest, DecodingGivesWhatWasEncoded) {
  const std::string text = encode_manifest(example_manifest());
  const auto decoded = decode_manifest(text);
  ASSERT_TRUE(decoded.ok()) << decoded.error().message();
  // The struct has no operator==, but its encoding holds all of it.
  EXPECT_EQ(encode_manifest(*decoded), text);
  const Manifest& m = *decoded;
  EXPECT_EQ(m.id, "0123456789abcdef");
  EXPECT_EQ(m.created, "2026-01-31T12:34:56.789Z");
  EXPECT_EQ(m.mode, "paused");
  EXPECT_EQ(m.parent, "00000000000000aa");
  EXPECT_EQ(m.ancestors, (std::vector<std::string>{"00000000000000aa", "00000000000000bb"}));
  EXPECT_EQ(m.vm_name, "web \"1\"");
  EXPECT_EQ(m.vm_pid, 4711u);
  EXPECT_FALSE(m.was_running);
  EXPECT_EQ(m.qemu_version, "7.2.9");
  EXPECT_EQ(m.qemu_package, "Debian 1:7.2+dfsg-7");
  EXPECT_EQ(m.qemu_executable, "/usr/bin/qemu-system-x86_64");
  EXPECT_EQ(m.machine_type, "pc-q35-7.2");
  EXPECT_EQ(m.accelerator, "kvm");
  EXPECT_EQ(m.vcpus, 2u);
  EXPECT_EQ(m.command_line, example_manifest().command_line);
  EXPECT_EQ(m.working_directory, "/");
  ASSERT_EQ(m.blocks.size(), 2u);
  EXPECT_EQ(m.blocks[0].name, "pc.ram");
  EXPECT_EQ(m.blocks[0].host_page_bytes, 2 * kMiB);
  EXPECT_TRUE(m.blocks[0].guest_ram);
  EXPECT_EQ(m.blocks[1].used_bytes, 5 * kPageSize + 1);
  EXPECT_EQ(m.blocks[1].max_bytes, 8 * kPageSize);
  ASSERT_EQ(m.mappings.size(), 2u);
  EXPECT_EQ(m.mappings[1].address, 4 * kGiB);
  EXPECT_EQ(m.mappings[1].bytes, 512 * kMiB);
  EXPECT_EQ(m.mappings[1].block_offset, 512 * kMiB);
  ASSERT_EQ(m.writable_disks.size(), 1u);
  EXPECT_EQ(m.writable_disks[0].device, "virtio0");
  EXPECT_EQ(m.writable_disks[0].file, "/images/web.qcow2");
  EXPECT_TRUE(m.introspection.used);
  EXPECT_EQ(m.introspection.kernel, "6.1.0-18-cloud-amd64");
  EXPECT_EQ(m.introspection.reason, "zone DMA saved in full");
  EXPECT_EQ(m.introspection.classify_ms, 3.25);
  EXPECT_EQ(m.pages.free, 262000u);
  EXPECT_EQ(m.pages.saved, 50u);
  EXPECT_EQ(m.pause_ms, 12.125);
  EXPECT_EQ(m.total_ms, 0.1);
  EXPECT_EQ(m.compression, "zstd:1");
  ASSERT_EQ(m.objects.size(), 2u);
  EXPECT_EQ(m.objects[0].name, "memory");
  EXPECT_EQ(m.objects[0].checksum, 0xfedcba9876543210u);
}

TEST(Manifest, BeginsWithALineThatBindsTheRest) {
  const std::string text = encode_manifest(example_manifest());
  const std::string body = text.substr(text.find('\n') + 1);
  EXPECT_EQ(text, with_header(body));
}

TEST(Manifest, TextsMayHoldAnyBytes) {
  std::mt19937 random{7};
  std::vector<std::string> texts = {"",
                                    std::string(1, '\0'),
                                    "\xff",
                                    "\xc3\xa4",
                                    "\xc3",
                                    "\xc0\x80",
                                    "\xed\xa0\x80",
                                    "\xf4\x90\x80\x80",
                                    "\xf0\x9f\x98\x80",
                                    "\xe0\x80\x80",
                                    "\xf0\x80\x80\x80",
                                    "\xe2\x82",
                                    "\xe2\x82\xac",
                                    "\xe2\x28\xac",
                                    "\xf5\x80\x80\x80",
                                    "\x80",
                                    "\"\\\n\x7f",
                                    "\xef\xbb\xbf",
                                    "\xed\x9f\xbf",
                                    "\xf4\x8f\xbf\xbf",
                                    "\xe2\x82\x28"};
  for (int i = 0; i < 2000; ++i) {
    std::string text(random() % 12, '\0');
    for (char& c : text) c = static_cast<char>(random());
    texts.push_back(text);
  }
  Manifest manifest = example_manifest();
  manifest.command_line = texts;
  manifest.vm_name = "\xff\xfe";
  const auto decoded = decode_manifest(encode_manifest(manifest));
  ASSERT_TRUE(decoded.ok()) << decoded.error().message();
  EXPECT_EQ(decoded->command_line, texts);
  EXPECT_EQ(decoded->vm_name, "\xff\xfe");
}

TEST(Manifest, LibvirtIsAnOptionalMember) {
  Manifest manifest = example_manifest();
  EXPECT_EQ(encode_manifest(manifest).find("libvirt"), std::string::npos);
  EXPECT_EQ(decode_manifest(encode_manifest(manifest))->libvirt.xml, "");
  manifest.libvirt = {"qemu:///system", "web1", "<domain>\n</domain>"};
  const auto decoded = decode_manifest(encode_manifest(manifest));
  ASSERT_TRUE(decoded.ok()) << decoded.error().message();
  EXPECT_EQ(decoded->libvirt.uri, "qemu:///system");
  EXPECT_EQ(decoded->libvirt.domain, "web1");
  EXPECT_EQ(decoded->libvirt.xml, "<domain>\n</domain>");
}

TEST(Manifest, TheLargestNumbersSurvive) {
  Manifest manifest = example_manifest();
  manifest.vm_pid = manifest.vcpus = manifest.stored_bytes = ~u64{0};
  manifest.pause_ms = std::numeric_limits<double>::max();
  manifest.total_ms = std::numeric_limits<double>::denorm_min();
  const auto decoded = decode_manifest(encode_manifest(manifest));
  ASSERT_TRUE(decoded.ok()) << decoded.error().message();
  EXPECT_EQ(decoded->stored_bytes, ~u64{0});
  EXPECT_EQ(decoded->pause_ms, std::numeric_limits<double>::max());
  EXPECT_EQ(decoded->total_ms, std::numeric_limits<double>::denorm_min());
}

TEST(Manifest, TimesThatAreNotFiniteAreWrittenAsZero) {
  Manifest manifest = example_manifest();
  manifest.pause_ms = std::numeric_limits<double>::infinity();
  manifest.total_ms = std::numeric_limits<double>::quiet_NaN();
  const auto decoded = decode_manifest(encode_manifest(manifest));
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(decoded->pause_ms, 0);
  EXPECT_EQ(decoded->total_ms, 0);
}

TEST(Manifest, EveryTruncationIsDamage) {
  const std::string text = encode_manifest(example_manifest());
  for (std::size_t size = 0; size < text.size(); ++size) {
    EXPECT_EQ(error_of(text.substr(0, size)).kind(), ErrorKind::kDamaged) << size;
  }
}

TEST(Manifest, EveryBitFlipIsFound) {
  const std::string text = encode_manifest(example_manifest());
  for (std::size_t bit = 0; bit < 8 * text.size(); ++bit) {
    std::string flipped = text;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    EXPECT_FALSE(decode_manifest(flipped).ok()) << bit;
  }
}

TEST(Manifest, BytesBehindTheEndAreDamage) {
  EXPECT_THAT(error_of(encode_manifest(example_manifest()) + "x").message(), HasSubstr("length"));
}

TEST(Manifest, AnUnknownVersionIsUnsupported) {
  std::string text = encode_manifest(example_manifest());
  text.replace(0, text.find(' ', 17), "vmsieve-manifest 2");
  const Error error = error_of(text);
  EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
  EXPECT_THAT(error.message(), HasSubstr("version 2"));
}

TEST(Manifest, MalformedHeaderLinesAreDamage) {
  for (const char* text :
       {"", "vmsieve-manifest", "vmsieve-manifest\n", "vmsieve-manifest \n", "vmsieve-manifest 1\n",
        "vmsieve-manifest 1 \n", "vmsieve-manifest 1 0\n", "vmsieve-manifest 1 0 \n",
        "vmsieve-manifest 1 0 2d06800538d394c\n", "vmsieve-manifest 1 00 2d06800538d394c2\n",
        "vmsieve-manifest 1 0 2D06800538D394C2\n", "vmsieve-manifest 1 0 2d06800538d394c2 \n",
        "vmsieve-manifest 1  0 2d06800538d394c2\n", "vmsieve-manifest x 0 2d06800538d394c2\n",
        "vmsieve-manifest 1 -0 2d06800538d394c2\n", "vmsieve-manifests 1 0 2d06800538d394c2\n",
        "{\"id\": 1}"}) {
    EXPECT_EQ(error_of(text).kind(), ErrorKind::kDamaged) << text;
  }
  EXPECT_EQ(error_of("vmsieve-manifest 1 " + std::string(200, '1') + "\n").kind(), ErrorKind::kDamaged);
}

TEST(Manifest, MoreThanTheLargestSizeIsDamage) {
  EXPECT_THAT(error_of(std::string(Manifest::kMaxBytes + 1, ' ')).message(), HasSubstr("more than"));
}

TEST(Manifest, BodiesThatAreNoJsonObjectAreDamage) {
  for (const char* body :
       {"", "{", "[]", "null", "7", "\"x\"", "{} {}", "{\"a\":1,}", "{\"a\":\"\xff\"}", "\xef\xbb\xbf[]"}) {
    EXPECT_EQ(error_of(with_header(body)).kind(), ErrorKind::kDamaged) << body;
  }
}

TEST(Manifest, DeepNestingIsRefusedBeforeItIsParsed) {
  EXPECT_THAT(error_of(with_header(std::string(1000000, '['))).message(), HasSubstr("deeper than 16"));
  // Brackets inside a text do not count.
  Manifest manifest = example_manifest();
  manifest.vm_name = std::string(1000, '[') + "\"{{{\\";
  EXPECT_TRUE(decode_manifest(encode_manifest(manifest)).ok());
}

TEST(Manifest, UnknownRequiredFeaturesAreRefusedByName) {
  Manifest manifest = example_manifest();
  manifest.required_features = {"encryption\x1b", "other"};
  const Error error = error_of(encode_manifest(manifest));
  EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
  EXPECT_THAT(error.message(), HasSubstr("'encryption\\x1b'"));
}

TEST(Manifest, RequiredFeaturesAreLookedAtBeforeAnythingElse) {
  const Error error = error_of(with_header(R"({"required_features": ["new"], "id": [1]})"));
  EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
}

TEST(Manifest, UnknownMembersAreSkipped) {
  Json json = example_json();
  json["comment"] = {{"by", "somebody"}};
  json["vm"]["uuid"] = 7;
  EXPECT_TRUE(decode_manifest(with_header(json.dump())).ok());
}

TEST(Manifest, EveryMemberMustBeThere) {
  const Json flat = example_json().flatten();
  for (const auto& [pointer, value] : flat.items()) {
    Json json = example_json();
    const Json::json_pointer where{pointer};
    Json& parent = json[where.parent_pointer()];
    if (!parent.is_object()) continue;
    parent.erase(where.back());
    const Error error = error_of(with_header(json.dump()));
    EXPECT_EQ(error.kind(), ErrorKind::kDamaged) << pointer;
    EXPECT_THAT(error.message(), HasSubstr(where.back() + ": it is missing"));
  }
}

TEST(Manifest, NoMemberMayBeOfAnotherType) {
  const Json flat = example_json().flatten();
  const std::vector<Json> strangers = {
      nullptr, true, 7, -1, 1.5, "text", Json::array(), Json::array({1}), Json::object(), {{"hex", 1}}};
  for (const auto& [pointer, value] : flat.items()) {
    for (const Json& stranger : strangers) {
      // Flattened, an empty list is null; a whole number is of two types before it is printed.
      const bool fits = value.is_null() || stranger.type() == value.type() ||
                        (value.is_number() && stranger == 7) ||
                        (value.is_number_float() && stranger.is_number());
      if (fits) continue;
      Json json = example_json();
      json[Json::json_pointer{pointer}] = stranger;
      EXPECT_EQ(error_of(with_header(json.dump())).kind(), ErrorKind::kDamaged) << pointer << " " << stranger;
    }
  }
}

TEST(Manifest, ListsAndObjectsMayNotBeOfAnotherType) {
  for (const char* member : {"vm", "qemu", "blocks", "mappings", "writable_disks", "introspection", "pages",
                             "times", "objects", "ancestors", "required_features"}) {
    for (const Json& stranger : {Json(nullptr), Json(7), Json("x"), Json::array({1})}) {
      EXPECT_THAT(fault_with(std::string{"/"} + member, stranger), HasSubstr(member));
    }
  }
}

TEST(Manifest, HexTextsMustBeWellFormed) {
  for (const char* hex : {"0", "0g", "FF", "0x"}) {
    EXPECT_EQ(fault_with("/vm/name", {{"hex", hex}}), "manifest member vm.name: it is no text");
  }
  EXPECT_EQ(fault_with("/vm/name", {{"hex", "ff"}, {"more", 1}}), "manifest member vm.name: it is no text");
  EXPECT_EQ(fault_with("/vm/name", {{"hex", "6f6b"}}), "no error");
}

TEST(Manifest, NumbersMustBeInRange) {
  EXPECT_EQ(fault_with("/mappings/0/block", u64{1} << 32),
            "manifest member mappings[0].block: it is larger than 2^32 - 1");
  Json json = example_json();
  std::string text = json.dump();
  const std::string from = "\"pause_ms\":12.125";
  text.replace(text.find(from), from.size(), "\"pause_ms\":1e999");
  EXPECT_EQ(error_of(with_header(text)).kind(), ErrorKind::kDamaged);
}

TEST(Manifest, IdentityMustBeWellFormed) {
  EXPECT_THAT(fault_with("/id", "0123456789ABCDEF"), HasSubstr("no checkpoint id"));
  EXPECT_THAT(fault_with("/parent", "x"), HasSubstr("no checkpoint id"));
  EXPECT_EQ(fault_with("/parent", ""), "no error");
  EXPECT_THAT(fault_with("/created", "2026-01-31 12:34:56.789Z"), HasSubstr("no time"));
  EXPECT_THAT(fault_with("/created", ""), HasSubstr("no time"));
  EXPECT_THAT(fault_with("/ancestors/0", "../x"), HasSubstr("no checkpoint id"));
  EXPECT_THAT(fault_with("/ancestors/0", "00000000000000bb"), HasSubstr("twice"));
  EXPECT_THAT(fault_with("/ancestors/0", "0123456789abcdef"), HasSubstr("own ancestor"));
}

TEST(Manifest, BlocksMustKeepTheirRules) {
  EXPECT_THAT(fault_with("/blocks/0/name", ""), HasSubstr("1 to 255"));
  EXPECT_THAT(fault_with("/blocks/0/name", std::string(256, 'n')), HasSubstr("1 to 255"));
  EXPECT_THAT(fault_with("/blocks/1/name", "pc.ram"), HasSubstr("another block"));
  EXPECT_THAT(fault_with("/blocks/1/used_bytes", 8 * kPageSize + 1), HasSubstr("more than max_bytes"));
  EXPECT_THAT(fault_with("/blocks/1/max_bytes", (u64{1} << 52) + 1), HasSubstr("more than 2^52"));
  EXPECT_THAT(fault_with("/blocks/1/host_page_bytes", 2048), HasSubstr("power of two"));
  EXPECT_THAT(fault_with("/blocks/1/host_page_bytes", 12288), HasSubstr("power of two"));
}

TEST(Manifest, MappingsMustKeepTheirRules) {
  EXPECT_THAT(fault_with("/mappings/1/address", 4096), HasSubstr("not behind"));
  EXPECT_THAT(fault_with("/mappings/0/bytes", 0), HasSubstr("it is 0"));
  EXPECT_THAT(fault_with("/mappings/1/address", ~u64{0} - 5), HasSubstr("beyond 64 bits"));
  EXPECT_THAT(fault_with("/mappings/1/block", 2), HasSubstr("no such block"));
  EXPECT_THAT(fault_with("/mappings/1/block_offset", 512 * kMiB + 1),
              HasSubstr("beyond the end of its block"));
  EXPECT_THAT(fault_with("/mappings/1/block_offset", ~u64{0}), HasSubstr("beyond the end of its block"));
}

TEST(Manifest, ObjectsMustBeNamedOnceAndComplete) {
  EXPECT_THAT(fault_with("/objects/0/name", "device"), HasSubstr("another object"));
  EXPECT_THAT(fault_with("/objects/0/name", "memory2"), HasSubstr("memory or device is not among them"));
  EXPECT_THAT(fault_with("/objects/0/name", "../memory"), HasSubstr("no object's name"));
  EXPECT_THAT(fault_with("/objects/0/checksum", "123"), HasSubstr("hex digits"));
  EXPECT_THAT(fault_with("/objects", Json::array()), HasSubstr("memory or device is not among them"));
}

TEST(CheckpointId, IsSixteenLowerCaseHexDigits) {
  EXPECT_TRUE(is_checkpoint_id("0123456789abcdef"));
  for (const char* id : {"", "0123456789abcde", "0123456789abcdef0", "0123456789ABCDEF", "0123456789abcdeg",
                         "../../../../etc/", "0123456789abcde/", "0123456789abcde."}) {
    EXPECT_FALSE(is_checkpoint_id(id)) << id;
  }
}

TEST(CheckpointId, NewOnesAreWellFormedAndDiffer) {
  const auto first = new_checkpoint_id();
  const auto second = new_checkpoint_id();
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_TRUE(is_checkpoint_id(*first));
  EXPECT_NE(*first, *second);
}

TEST(ObjectName, IsShortPlainAndNoneOfTheStoresOwn) {
  for (const char* name : {"memory", "device", "disk-0", "a"}) EXPECT_TRUE(is_object_name(name)) << name;
  for (const char* name : {"", "manifest", "writing", "manifest.new", "..", "a/b", "-a", "0a", "Memory",
                           "abcdefghijklmnopqrstuvwxyzabcdefg"}) {
    EXPECT_FALSE(is_object_name(name)) << name;
  }
}

}  // namespace
}  // namespace vmsieve
