// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/clone_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace vmsieve {
namespace {

using testing::ElementsAre;

QemuCommandLine line(const std::vector<std::string>& arguments) {
  auto parsed = QemuCommandLine::parse(arguments);
  EXPECT_TRUE(parsed) << parsed.error().message();
  return *parsed;
}

TEST(CloneMemory, ItsFilesAreForgottenByTheNextRestore) {
  QemuCommandLine clone = line({"-object",
                                "memory-backend-file,id=pc.ram,size=1024,mem-path=/proc/self/fd/4,share=off,"
                                "x-use-canonical-path-for-ramblock-id=off",
                                "-object", "memory-backend-file,id=nv,size=1M,mem-path=/srv/nv,share=on"});
  ASSERT_TRUE(forget_clone_memory(clone));
  EXPECT_THAT(clone.arguments(),
              ElementsAre("-object",
                          "memory-backend-ram,id=pc.ram,size=1024,x-use-canonical-path-for-ramblock-id=off",
                          "-object", "memory-backend-file,id=nv,size=1M,mem-path=/srv/nv,share=on"));
}

TEST(CloneMemory, NumbersTakeTheirPlaces) {
  EXPECT_EQ(numbered("serial=file:/tmp/{n}/{n}.log", 12), "serial=file:/tmp/12/12.log");
  EXPECT_EQ(numbered("{n", 1), "{n");
}

TEST(CloneMemory, OnlyGenerationIdsAreRenewed) {
  QemuCommandLine clone =
      line({"-device", "vmgenid,guid=324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87,id=g", "-device",
            "{\"driver\":\"vmgenid\",\"guid\":\"324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87\"}", "-device",
            "virtio-rng-pci"});
  clone.renew_generation_id();
  EXPECT_THAT(clone.arguments(), ElementsAre("-device", "vmgenid,id=g,guid=auto", "-device",
                                             "vmgenid,guid=auto", "-device", "virtio-rng-pci"));
}

}  // namespace
}  // namespace vmsieve
