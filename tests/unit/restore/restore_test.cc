// SPDX-License-Identifier: Apache-2.0
// Real QEMUs, from a checkpoint of a guest in its firmware to the guest that runs on.
#include "vmsieve/restore/restore.h"

#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/restore/firmware_guest.h"

namespace vmsieve {
namespace {

using test::FirmwareGuest;
using test::Folder;
using test::Process;
using ::testing::HasSubstr;

struct Setup {
  const char* name;
  std::string qemu;
  std::string machine;
  std::vector<std::string> more;
};

void PrintTo(const Setup& setup, std::ostream* out) { *out << setup.name; }

std::unique_ptr<Store> make_store(const Folder& folder) {
  auto store = open_directory_store(folder / "store", true);
  VMSIEVE_CHECK(store.ok());
  return std::move(*store);
}

std::string save(const FirmwareGuest& guest, Store& store) {
  const auto saved = save(guest.address(), store, {}, [](const Progress&) {});
  EXPECT_TRUE(saved.ok()) << saved.error().message();
  return saved.ok() ? saved->manifest.id : "";
}

class RoundTrip : public ::testing::TestWithParam<Setup> {};

TEST_P(RoundTrip, StoppedGuestComesBackByteForByte) {
  REQUIRE_PROGRAM(GetParam().qemu);
  const Folder folder;
  const auto store = make_store(folder);
  FirmwareGuest guest{folder, GetParam().qemu, GetParam().machine, GetParam().more};
  guest.stop();
  const std::string id = save(guest, *store);
  const auto before = test::all_blocks(*guest.qmp(), guest.pid());
  const auto registers = guest.qmp()->human("info registers");
  guest.end();

  const auto report = restore(*store, id, {.qemu_executable = GetParam().qemu});
  ASSERT_TRUE(report.ok()) << report.error().message();
  const Process process{report->pid};
  EXPECT_FALSE(report->running);
  const auto qmp = QmpClient::connect(report->qmp_path);
  ASSERT_TRUE(qmp.ok());
  EXPECT_EQ(test::all_blocks(**qmp, report->pid), before);
  EXPECT_EQ((*qmp)->human("info registers").value(), registers.value());
}

TEST_P(RoundTrip, RunningGuestRunsOn) {
  REQUIRE_PROGRAM(GetParam().qemu);
  const Folder folder;
  const auto store = make_store(folder);
  FirmwareGuest guest{folder, GetParam().qemu, GetParam().machine, GetParam().more};
  const std::string id = save(guest, *store);
  guest.end();

  const auto report = restore(*store, id, {.qemu_executable = GetParam().qemu});
  ASSERT_TRUE(report.ok()) << report.error().message();
  const Process process{report->pid};
  EXPECT_TRUE(report->running);
  EXPECT_EQ(report->qmp_path, guest.qmp_path());
  const auto qmp = QmpClient::connect(report->qmp_path);
  ASSERT_TRUE(qmp.ok());
  EXPECT_TRUE(read_run_state(**qmp)->running);
  EXPECT_EQ(read_text_file(report->log_path, kMiB).value(), "") << "QEMU complains of something";
  std::printf("start %.0f ms, ready %.0f ms, stream %llu bytes\n", report->start_ms, report->ready_ms,
              static_cast<unsigned long long>(report->stream_bytes));
}

const std::vector<std::string> kMemfd{"-object", "memory-backend-memfd,id=ram0,share=on,size=64M"};
const std::vector<std::string> kPrivateMemfd{"-object", "memory-backend-memfd,id=ram0,share=off,size=64M"};
const std::vector<std::string> kSharedFile{"-object",
                                           "memory-backend-file,id=ram0,share=on,size=64M,mem-path=ram.img"};
const std::vector<std::string> kPrivateFile{
    "-object", "memory-backend-file,id=ram0,share=off,size=64M,mem-path=ram.img"};
const std::vector<std::string> kDevices{
    "-vga", "std", "-nic", "user,model=virtio-net-pci", "-device", "virtio-balloon-pci"};

INSTANTIATE_TEST_SUITE_P(
    Machines, RoundTrip,
    ::testing::Values(
        Setup{"pc_plain", test::system_qemu(), "pc", {}},
        Setup{"pc_devices", test::system_qemu(), "pc", kDevices},
        Setup{"pc_old_without_footers", test::system_qemu(), "pc-i440fx-2.3", {}},
        Setup{"q35_memfd", test::system_qemu(), "q35,memory-backend=ram0", kMemfd},
        Setup{"q35_private_memfd", test::system_qemu(), "q35,memory-backend=ram0", kPrivateMemfd},
        Setup{"q35_shared_file", test::system_qemu(), "q35,memory-backend=ram0", kSharedFile},
        Setup{"q35_private_file", test::system_qemu(), "q35,memory-backend=ram0", kPrivateFile},
        Setup{"microvm", test::system_qemu(), "microvm", {}},
        Setup{"qemu10_pc", test::lab_qemu_10(), "pc", {}},
        Setup{"qemu10_q35_devices", test::lab_qemu_10(), "q35", kDevices},
        Setup{"qemu10_q35_shared_file", test::lab_qemu_10(), "q35,memory-backend=ram0", kSharedFile},
        Setup{"qemu10_microvm_memfd", test::lab_qemu_10(), "microvm,memory-backend=ram0", kMemfd}),
    [](const auto& parameters) { return std::string{parameters.param.name}; });

}  // namespace
}  // namespace vmsieve
