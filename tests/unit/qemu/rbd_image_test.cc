// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/rbd_image.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace vmsieve {
namespace {

using nlohmann::json;

TEST(RbdImage, AsQemuTellsIt) {
  const auto image = rbd_image(
      R"(json:{"driver": "raw", "file": {"pool": "vms", "image": "web", "conf": "/etc/ceph.conf", "driver": "rbd", "namespace": ""}})");
  ASSERT_TRUE(image);
  EXPECT_EQ(image->name, "rbd:vms/web");
  EXPECT_EQ(json::parse(image->options),
            json({{"driver", "rbd"}, {"pool", "vms"}, {"image", "web"}, {"conf", "/etc/ceph.conf"}}));
  EXPECT_FALSE(image->has_secret || image->is_snapshot || image->is_only_part);
}

TEST(RbdImage, ABareNodeWithAllThatIsSaidOfTheCluster) {
  const auto image = rbd_image(
      R"(json:{"driver": "rbd", "node-name": "d0", "cache": {"direct": true}, "pool": "vms", "namespace": "a",
               "image": "web", "user": "qemu", "server": [{"host": "::1", "port": "6789"}],
               "auth-client-required": ["cephx"]})");
  ASSERT_TRUE(image);
  EXPECT_EQ(image->name, "rbd:vms/a/web");
  const json options = json::parse(image->options);
  EXPECT_EQ(options["server"][0]["port"], "6789");
  EXPECT_EQ(options["user"], "qemu");
  EXPECT_FALSE(options.contains("node-name") || options.contains("cache"));
}

TEST(RbdImage, TheOldNotation) {
  EXPECT_EQ(rbd_image("rbd:vms/web")->name, "rbd:vms/web");
  EXPECT_EQ(rbd_image("rbd:vms/a/web:id=qemu")->name, "rbd:vms/a/web");
  const auto image = rbd_image(R"(rbd:vms/we\:b@then:conf=/a\:b.conf:mon_host=10.0.0.1\:6789)");
  ASSERT_TRUE(image);
  EXPECT_EQ(image->name, "rbd:vms/we:b");
  EXPECT_TRUE(image->is_snapshot);
  const json options = json::parse(image->options);
  EXPECT_EQ(options["conf"], "/a:b.conf");
  EXPECT_EQ(json::parse(options["=keyvalue-pairs"].get<std::string>()), json({"mon_host", "10.0.0.1:6789"}));
}

TEST(RbdImage, WhatOthersCannotOpen) {
  EXPECT_TRUE(rbd_image(R"(json:{"driver":"rbd","pool":"p","image":"i","key-secret":"s"})")->has_secret);
  EXPECT_TRUE(
      rbd_image(R"(json:{"driver":"rbd","pool":"p","image":"i","encrypt":{"format":"luks"}})")->has_secret);
  EXPECT_TRUE(
      rbd_image(R"(json:{"driver":"raw","offset":512,"file":{"driver":"rbd","pool":"p","image":"i"}})")
          ->is_only_part);
  EXPECT_TRUE(rbd_image(R"(json:{"driver":"rbd","pool":"p","image":"i","snapshot":"s"})")->is_snapshot);
}

TEST(RbdImage, OtherFilesAreNone) {
  for (const char* other :
       {"", "/images/web.raw", "rbd:", "rbd:vms", "rbd:vms/", "rbd:/web", "json:", "json:7", "json:{}",
        R"(json:{"driver":"file","filename":"/a"})", R"(json:{"driver":"rbd","pool":"p"})",
        R"(json:{"driver":"rbd","pool":7,"image":"i"})", "rbd:a\nb/c", "rbd:p\xff/i"})
    EXPECT_FALSE(rbd_image(other)) << other;
  std::string deep;
  for (int i = 0; i < 100000; ++i) deep += R"({"file":)";
  EXPECT_FALSE(rbd_image("json:" + deep));
}

TEST(RbdImage, WhatQemuImgIsTold) {
  const auto image = rbd_image("rbd:vms/web:conf=/etc/c");
  const auto plain = rbd_filename(image->options, "");
  ASSERT_TRUE(plain.ok() && plain->starts_with("json:"));
  EXPECT_EQ(json::parse(plain->substr(5)),
            json({{"driver", "raw"},
                  {"file", {{"driver", "rbd"}, {"pool", "vms"}, {"image", "web"}, {"conf", "/etc/c"}}}}));
  EXPECT_EQ(json::parse(rbd_filename(image->options, "then")->substr(5))["file"]["snapshot"], "then");
  for (const char* wrong : {"", "7", "{}", R"({"driver":"file","filename":"/etc/shadow"})", "{"})
    EXPECT_EQ(rbd_filename(wrong, "").error().kind(), ErrorKind::kDamaged) << wrong;
}

}  // namespace
}  // namespace vmsieve
