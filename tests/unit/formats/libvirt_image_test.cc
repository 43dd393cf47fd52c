// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/formats/libvirt_image.h"

#include <cstring>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

using testing::HasSubstr;

constexpr std::string_view kXml = "<domain type='kvm'><name>web1</name></domain>";

std::vector<std::byte> with_word(std::size_t word, u32 value) {
  std::vector<std::byte> head = LibvirtImageHead::encode(kXml, true);
  std::memcpy(&head[LibvirtImageHead::kMagic.size() + 4 * word], &value, sizeof value);
  return head;
}

std::string why_not(std::span<const std::byte> head) {
  const auto read = LibvirtImageHead::decode_fixed(head);
  EXPECT_FALSE(read.ok());
  return read.ok() ? "" : read.error().message();
}

TEST(LibvirtImageHead, ComesBackAsItWasWritten) {
  for (const bool running : {false, true}) {
    const std::vector<std::byte> bytes = LibvirtImageHead::encode(kXml, running);
    auto head = LibvirtImageHead::decode_fixed(bytes);
    ASSERT_TRUE(head) << head.error().message();
    EXPECT_EQ(head->was_running, running);
    EXPECT_EQ(head->stream, LibvirtStream::kRaw);
    EXPECT_EQ(head->stream_offset, bytes.size());
    ASSERT_TRUE(head->take_xml(std::span{bytes}.subspan(LibvirtImageHead::kFixedBytes)));
    EXPECT_EQ(head->xml, kXml);
  }
}

TEST(LibvirtImageHead, XmlEndsAtItsNulWhateverFollows) {
  std::vector<std::byte> bytes = LibvirtImageHead::encode(kXml, true);
  append_bytes(bytes, as_byte_span("<cookie/>"));
  LibvirtImageHead head;
  ASSERT_TRUE(head.take_xml(std::span{bytes}.subspan(LibvirtImageHead::kFixedBytes)));
  EXPECT_EQ(head.xml, kXml);
}

TEST(LibvirtImageHead, WhatIsWrongIsSaid) {
  const std::vector<std::byte> good = LibvirtImageHead::encode(kXml, true);
  for (std::size_t bytes = 0; bytes < LibvirtImageHead::kFixedBytes; ++bytes)
    EXPECT_THAT(why_not(std::span{good}.first(bytes)), HasSubstr("not whole"));
  EXPECT_THAT(why_not(with_word(0, 3)), HasSubstr("version 3"));
  EXPECT_THAT(why_not(with_word(0, 0x02000000)), HasSubstr("byte order"));
  EXPECT_THAT(why_not(with_word(1, 0)), HasSubstr("0 bytes of XML"));
  EXPECT_THAT(why_not(with_word(1, 0xffffffff)), HasSubstr("4294967295 bytes"));
  EXPECT_THAT(why_not(with_word(3, 6)), HasSubstr("unknown form"));
  LibvirtImageHead head;
  EXPECT_FALSE(head.take_xml(as_byte_span("no end")));
  EXPECT_FALSE(head.take_xml({}));
}

}  // namespace
}  // namespace vmsieve
