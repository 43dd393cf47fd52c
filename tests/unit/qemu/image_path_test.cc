// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmsieve/qemu/machine.h"

namespace vmsieve {
namespace {

using testing::Optional;

TEST(ImagePath, APathIsItself) {
  EXPECT_THAT(image_path("/images/web.qcow2"), Optional(std::string{"/images/web.qcow2"}));
  EXPECT_THAT(image_path("web.qcow2"), Optional(std::string{"web.qcow2"}));
  EXPECT_THAT(image_path("../a, b\xff.raw"), Optional(std::string{"../a, b\xff.raw"}));
}

TEST(ImagePath, ThePrefixOfAFileGoes) {
  EXPECT_THAT(image_path("file:/images/web.qcow2"), Optional(std::string{"/images/web.qcow2"}));
  EXPECT_THAT(image_path("file:web.qcow2"), Optional(std::string{"web.qcow2"}));
}

TEST(ImagePath, AColonBehindASlashIsPartOfAName) {
  EXPECT_THAT(image_path("/images/12:30.qcow2"), Optional(std::string{"/images/12:30.qcow2"}));
  EXPECT_THAT(image_path("./12:30.qcow2"), Optional(std::string{"./12:30.qcow2"}));
}

TEST(ImagePath, WhatAProtocolNamesIsNoFile) {
  for (const char* file : {"nbd:localhost:10809", "nbd+unix:///disk?socket=/run/nbd", "rbd:pool/image",
                           "https://host/a.qcow2", "fat:rw:/folder", "null-co://", "fd:3", ":", "a:"})
    EXPECT_EQ(image_path(file), std::nullopt) << file;
}

TEST(ImagePath, NothingIsNoFile) {
  EXPECT_EQ(image_path(""), std::nullopt);
  EXPECT_EQ(image_path("file:"), std::nullopt);
}

TEST(ImagePath, OfJsonItIsThatOfTheInnermostFile) {
  EXPECT_THAT(image_path(R"(json:{"driver":"file","filename":"/a"})"), Optional(std::string{"/a"}));
  EXPECT_THAT(image_path(R"(json:{"driver":"host_device","filename":"/dev/sdb"})"),
              Optional(std::string{"/dev/sdb"}));
  EXPECT_THAT(
      image_path(R"(json:{"driver":"qcow2","file":{"driver":"file","filename":"/a","aio":"native"}})"),
      Optional(std::string{"/a"}));
  EXPECT_THAT(image_path(R"(json:{"driver":"throttle","file":{"driver":"raw","offset":0,
                                  "file":{"driver":"file","filename":"/a:b"}}})"),
              Optional(std::string{"/a:b"}));
}

TEST(ImagePath, JsonOfNoFileIsNone) {
  for (const char* json :
       {R"({"driver":"nbd","server":{"type":"unix","path":"/run/nbd"}})",
        R"({"driver":"qcow2","file":{"driver":"https","filename":"https://host/a"}})",
        R"({"driver":"qcow2","file":"node0"})", R"({"driver":"file"})", R"({"driver":"file","filename":""})",
        R"({"driver":"file","filename":7})", R"({"filename":"/a"})", R"({"driver":7,"filename":"/a"})",
        R"({"driver":"quorum","children":[{"driver":"file","filename":"/a"}]})", "", "{", "[]", "null", "7",
        R"("/a")", R"(["file"])", "{\"driver\":\"file\",\"filename\":\"\xff\"}"})
    EXPECT_EQ(image_path(std::string{"json:"} + json), std::nullopt) << json;
}

TEST(ImagePath, JsonOfManyLevelsEnds) {
  const auto nested = [](std::size_t levels) {
    std::string json = "json:";
    for (std::size_t i = 0; i < levels; ++i) json += R"({"driver":"raw","file":)";
    return json + R"({"driver":"file","filename":"/a"})" + std::string(levels, '}');
  };
  EXPECT_THAT(image_path(nested(20)), Optional(std::string{"/a"}));
  EXPECT_EQ(image_path(nested(10000)), std::nullopt);
  EXPECT_EQ(image_path("json:" + std::string(100000, '[')), std::nullopt);
}

}  // namespace
}  // namespace vmsieve
