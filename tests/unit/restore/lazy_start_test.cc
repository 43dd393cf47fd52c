// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/lazy_start.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace vmsieve {
namespace {

using testing::HasSubstr;

std::string why_not(std::vector<std::string> arguments) {
  const auto line = QemuCommandLine::parse(arguments);
  EXPECT_TRUE(line) << line.error().message();
  return line ? why_not_lazy(*line) : "";
}

TEST(WhyNotLazy, OrdinaryDevicesAreNoReason) {
  EXPECT_EQ(why_not({"-m", "512", "-device", "virtio-net-pci,netdev=n0", "-netdev", "user,id=n0", "-device",
                     "virtio-balloon-pci"}),
            "");
}

TEST(WhyNotLazy, WhoElseWorksOnTheMemoryIsNamed) {
  EXPECT_THAT(why_not({"-device", "vhost-user-fs-pci,chardev=c,tag=t"}), HasSubstr("vhost-user-fs-pci"));
  EXPECT_THAT(why_not({"-device", "driver=vfio-pci,host=0000:01:00.0"}), HasSubstr("vfio-pci"));
  EXPECT_THAT(why_not({"--device", "ivshmem-plain,memdev=m"}), HasSubstr("ivshmem-plain"));
  EXPECT_THAT(why_not({"-device", "virtio-mem-pci,memdev=m"}), HasSubstr("virtio-mem-pci"));
  EXPECT_THAT(why_not({"-netdev", "vhost-user,id=n,chardev=c"}), HasSubstr("vhost-user"));
  EXPECT_THAT(why_not({"-netdev", "type=vhost-vdpa,id=n"}), HasSubstr("vhost-vdpa"));
}

}  // namespace
}  // namespace vmsieve
