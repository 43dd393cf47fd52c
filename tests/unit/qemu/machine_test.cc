// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/machine.h"

#include <fcntl.h>

#include <algorithm>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/qemu/real_qemu.h"
#include "vmsieve/base/fd.h"
#include "vmsieve/qemu/given_descriptor.h"

namespace vmsieve {
namespace {

using test::RealQemu;

class Machine : public testing::TestWithParam<test::QemuProgram> {
 protected:
  void start(const std::vector<std::string>& arguments) {
    qemu_ = std::make_unique<RealQemu>(GetParam().path, arguments);
    if (!qemu_->running()) GTEST_SKIP() << "this QEMU does not start: " << qemu_->complaint();
    qmp_ = test::must_connect(qemu_->monitor());
    ASSERT_NE(qmp_, nullptr);
  }

  std::unique_ptr<RealQemu> qemu_;
  std::unique_ptr<QmpClient> qmp_;
};

#define START(...)    \
  start(__VA_ARGS__); \
  if (IsSkipped() || !qmp_) return

TEST_P(Machine, ReadsEveryVcpu) {
  START({"-M", "q35", "-m", "64", "-smp", "3"});
  const auto read = read_vcpus(*qmp_);
  ASSERT_TRUE(read) << read.error().message();
  const auto* vcpus = std::get_if<std::vector<X86Vcpu>>(&*read);
  ASSERT_NE(vcpus, nullptr);
  ASSERT_EQ(vcpus->size(), 3u);
  for (u32 i = 0; i < 3; ++i) {
    EXPECT_EQ((*vcpus)[i].index, i);
    EXPECT_FALSE((*vcpus)[i].paging());
    EXPECT_FALSE((*vcpus)[i].long_mode());
  }
  EXPECT_TRUE((*vcpus)[2].halted);
}

TEST_P(Machine, ReadsTheVersionedMachineType) {
  START({"-M", "q35", "-m", "64"});
  const auto type = read_machine_type(*qmp_);
  ASSERT_TRUE(type) << type.error().message();
  EXPECT_THAT(*type, testing::StartsWith("pc-q35-"));
  EXPECT_THAT(*type, testing::Not(testing::EndsWith("machine")));
}

TEST_P(Machine, TellsRunningFromPaused) {
  START({"-M", "q35", "-m", "64", "-S"});
  auto state = read_run_state(*qmp_);
  ASSERT_TRUE(state);
  EXPECT_FALSE(state->running);
  EXPECT_EQ(state->status, "prelaunch");
  ASSERT_TRUE(qmp_->execute("cont"));
  state = read_run_state(*qmp_);
  ASSERT_TRUE(state);
  EXPECT_TRUE(state->running);
}

TEST_P(Machine, NamesTheAccelerator) {
  START({"-M", "q35", "-m", "64"});
  const auto accelerator = read_accelerator(*qmp_);
  ASSERT_TRUE(accelerator);
  EXPECT_EQ(*accelerator, "tcg");
}

TEST_P(Machine, OrdinaryMachineIsMigratable) {
  START({"-M", "q35", "-m", "64"});
  const auto result = check_migratable(*qmp_);
  EXPECT_TRUE(result) << result.error().message();
}

TEST_P(Machine, DeviceThatCannotMigrateIsRefusedInQemusWords) {
  START({"-M", "q35", "-m", "64", "-device", "isa-debug-exit", "-device", "ivshmem-plain,memdev=shared",
         "-object", "memory-backend-ram,id=shared,size=1M,share=on"});
  const auto result = check_migratable(*qmp_);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind(), ErrorKind::kRefused);
  EXPECT_THAT(result.error().message(), testing::HasSubstr("ivshmem"));
}

TEST_P(Machine, WritableDisksLeaveOutReadOnlyAndEmptyDrives) {
  test::TemporaryFolder folder;
  for (const char* name : {"a", "b", "c"}) {
    std::ofstream{folder.path() + "/" + name}.seekp(1 << 20).put(0);
  }
  const std::string& f = folder.path();
  START({"-M",        "pc",
         "-m",        "64",  //
         "-drive",    "if=none,id=legacy,format=raw,file=" + f + "/a",
         "-device",   "virtio-blk,drive=legacy",                                   //
         "-blockdev", "driver=file,node-name=blocky,filename=" + f + "/b",         //
         "-device",   "virtio-blk,drive=blocky,id=vb",                             //
         "-drive",    "if=none,id=fixed,readonly=on,format=raw,file=" + f + "/c",  //
         "-device",   "virtio-blk,drive=fixed",
         "-device",   "ide-cd",
         "-device",   "floppy"});
  const auto disks = read_writable_disks(*qmp_);
  ASSERT_TRUE(disks) << disks.error().message();
  ASSERT_EQ(disks->size(), 2u);
  const auto has = [&](const std::string& device, const std::string& file) {
    return std::any_of(disks->begin(), disks->end(),
                       [&](const WritableDisk& d) { return d.device == device && d.file == file; });
  };
  EXPECT_TRUE(has("legacy", f + "/a"));
  EXPECT_TRUE(has("blocky", f + "/b"));
}

TEST_P(Machine, DeviceStateOfAStoppedMachineIsReadBack) {
  START({"-M", "q35", "-m", "64", "-smp", "2"});
  ASSERT_TRUE(qmp_->execute("stop"));
  const auto state = save_device_state(*qmp_);
  ASSERT_TRUE(state) << state.error().message();
  EXPECT_GT(state->size(), 10000u);
}

/// QEMU 7.2 closes a removed descriptor only while the guest runs, at the latest when the client leaves
/// (monitor/misc.c, monitor_fdset_cleanup).
TEST_P(Machine, SavingDeviceStateLeavesNoDescriptorInQemu) {
  START({"-M", "q35", "-m", "64"});
  ASSERT_TRUE(qmp_->execute("stop"));
  ASSERT_TRUE(save_device_state(*qmp_));
  ASSERT_TRUE(qmp_->execute("cont"));
  qmp_.reset();
  qmp_ = test::must_connect(qemu_->monitor());
  ASSERT_NE(qmp_, nullptr);
  const auto sets = qmp_->execute("query-fdsets");
  ASSERT_TRUE(sets);
  EXPECT_TRUE(sets->empty()) << sets->dump();
}

TEST_P(Machine, ADescriptorOfAKilledOneIsTakenBackAndNoOther) {
  START({"-M", "q35", "-m", "64"});
  const auto file = open_file("/dev/null", O_RDWR);
  ASSERT_TRUE(file);
  const auto left = give_descriptor(*qmp_, file->get());
  ASSERT_TRUE(left) << left.error().message();
  for (const QmpClient::Json& others : {QmpClient::Json::object(), QmpClient::Json{{"opaque", "somebody"}}})
    ASSERT_TRUE(qmp_->execute("add-fd", others, QmpClient::kDefaultTimeout, file->get()));
  // Each has a mark: whoever looks at it may rely on that.
  auto sets = qmp_->execute("query-fdsets");
  ASSERT_TRUE(sets && sets->size() == 3);
  const auto marked = [&] {
    return std::ranges::count_if(*sets, [](const QmpClient::Json& set) {
      return set["fds"].size() == 1 && set["fds"][0].value("opaque", "") == "vmsieve";
    });
  };
  EXPECT_EQ(marked(), 1);
  ASSERT_TRUE(take_back_left_descriptors(*qmp_));
  sets = qmp_->execute("query-fdsets");
  ASSERT_TRUE(sets);
  EXPECT_EQ(sets->size(), 2u) << sets->dump();
  EXPECT_EQ(marked(), 0);
}

TEST_P(Machine, DeviceStateIsReadFromASandboxedQemu) {
  START({"-M", "q35", "-m", "64", "-sandbox",
         "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"});
  ASSERT_TRUE(qmp_->execute("stop"));
  const auto state = save_device_state(*qmp_);
  ASSERT_TRUE(state) << state.error().message();
}

TEST_P(Machine, DeviceStateTwiceGivesTheSameBytes) {
  START({"-M", "q35", "-m", "64"});
  ASSERT_TRUE(qmp_->execute("stop"));
  const auto first = save_device_state(*qmp_);
  const auto second = save_device_state(*qmp_);
  ASSERT_TRUE(first && second);
  EXPECT_EQ(first->size(), second->size());
}

INSTANTIATE_TEST_SUITE_P(Qemu, Machine, testing::ValuesIn(test::qemu_programs()),
                         [](const auto& instance) { return instance.param.label; });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Machine);

}  // namespace
}  // namespace vmsieve
