// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/formats/import.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

using testing::HasSubstr;
using namespace std::string_view_literals;

std::string why_not(std::string_view beginning) {
  const auto format = recognise_import(as_byte_span(beginning));
  EXPECT_FALSE(format.ok());
  return format.ok() ? "" : format.error().message();
}

TEST(RecogniseImport, StreamByItsMagicAndMappedRamByItsCapability) {
  const auto stream = recognise_import(as_byte_span("QEVM\0\0\0\3\7\0\0\0\13pc-q35-7.2"sv));
  ASSERT_TRUE(stream);
  EXPECT_EQ(*stream, ImportFormat::kQemu);
  const auto mapped = recognise_import(as_byte_span(
      "QEVM\0\0\0\3\7\0\0\0\14pc-q35-10.0\5\32configuration/capabilities\0\0\0\1\12mapped-ram"sv));
  ASSERT_TRUE(mapped);
  EXPECT_EQ(*mapped, ImportFormat::kQemuMappedRam);
}

TEST(RecogniseImport, LibvirtImageByItsMagic) {
  const auto image = recognise_import(as_byte_span("LibvirtQemudSave\2\0\0\0"sv));
  ASSERT_TRUE(image);
  EXPECT_EQ(*image, ImportFormat::kLibvirt);
}

TEST(RecogniseImport, CoreByItsMagic) {
  const auto core =
      recognise_import(as_byte_span("\x7f"
                                    "ELF\2\1\1"sv));
  ASSERT_TRUE(core);
  EXPECT_EQ(*core, ImportFormat::kElf);
}

TEST(RecogniseImport, WhatItIsInsteadIsSaid) {
  EXPECT_THAT(why_not("KDUMP   \1"), HasSubstr("makedumpfile -E"));
  EXPECT_THAT(why_not("makedumpfile\1"), HasSubstr("makedumpfile -E"));
  EXPECT_THAT(why_not("LibvirtQemudPart"), HasSubstr("not finished"));
  EXPECT_THAT(why_not("QEV"), HasSubstr("no migration stream"));
  EXPECT_THAT(why_not(""), HasSubstr("no migration stream"));
}

}  // namespace
}  // namespace vmsieve
