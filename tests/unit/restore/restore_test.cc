// SPDX-License-Identifier: Apache-2.0
// Real QEMUs, from a checkpoint of a guest in its firmware to the guest that runs on.
#include "vmsieve/restore/restore.h"

#include <map>
#include <tuple>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/restore/firmware_guest.h"

namespace vmsieve {
namespace {

using test::FirmwareGuest;
using test::Folder;
using test::Process;
using ::testing::HasSubstr;

struct Machine {
  const char* name;
  std::string qemu;
  std::string machine;
  std::vector<std::string> more;
};

void PrintTo(const Machine& setup, std::ostream* out) { *out << setup.name; }

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

using Way = std::tuple<Machine, RestoreMode>;

class RoundTrip : public ::testing::TestWithParam<Way> {
 protected:
  const Machine& setup() const { return std::get<0>(GetParam()); }
  RestoreOptions options() const {
    return {.mode = std::get<1>(GetParam()), .qemu_executable = setup().qemu};
  }
};

TEST_P(RoundTrip, StoppedGuestComesBackByteForByte) {
  REQUIRE_PROGRAM(setup().qemu);
  const Folder folder;
  const auto store = make_store(folder);
  FirmwareGuest guest{folder, setup().qemu, setup().machine, setup().more};
  guest.stop();
  const std::string id = save(guest, *store);
  const auto before = test::all_blocks(*guest.qmp(), guest.pid());
  const auto registers = guest.qmp()->human("info registers");
  guest.end();

  const auto restored = restore(*store, id, options());
  ASSERT_TRUE(restored.ok()) << restored.error().message();
  const RestoreReport* const report = &restored->report;
  const Process process{report->pid};
  EXPECT_FALSE(report->running);
  EXPECT_EQ(report->lazy, restored->server != nullptr);
  if (restored->server != nullptr) {
    const auto filled = restored->server->wait();
    ASSERT_TRUE(filled.ok()) << filled.error().message();
  }
  const auto qmp = QmpClient::connect(report->qmp_path);
  ASSERT_TRUE(qmp.ok());
  EXPECT_EQ(test::all_blocks(**qmp, report->pid), before);
  EXPECT_EQ((*qmp)->human("info registers").value(), registers.value());
}

TEST_P(RoundTrip, RunningGuestRunsOn) {
  REQUIRE_PROGRAM(setup().qemu);
  const Folder folder;
  const auto store = make_store(folder);
  FirmwareGuest guest{folder, setup().qemu, setup().machine, setup().more};
  const std::string id = save(guest, *store);
  guest.end();

  const auto restored = restore(*store, id, options());
  ASSERT_TRUE(restored.ok()) << restored.error().message();
  const RestoreReport* const report = &restored->report;
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

const auto kName = [](const auto& parameters) { return std::string{std::get<0>(parameters.param).name}; };

INSTANTIATE_TEST_SUITE_P(
    Eager, RoundTrip,
    ::testing::Combine(
        ::testing::Values(
            Machine{"pc_plain", test::system_qemu(), "pc", {}},
            Machine{"pc_devices", test::system_qemu(), "pc", kDevices},
            Machine{"pc_old_without_footers", test::system_qemu(), "pc-i440fx-2.3", {}},
            Machine{"q35_memfd", test::system_qemu(), "q35,memory-backend=ram0", kMemfd},
            Machine{"q35_private_memfd", test::system_qemu(), "q35,memory-backend=ram0", kPrivateMemfd},
            Machine{"q35_shared_file", test::system_qemu(), "q35,memory-backend=ram0", kSharedFile},
            Machine{"q35_private_file", test::system_qemu(), "q35,memory-backend=ram0", kPrivateFile},
            Machine{"microvm", test::system_qemu(), "microvm", {}},
            Machine{"qemu10_pc", test::lab_qemu_10(), "pc", {}},
            Machine{"qemu10_q35_devices", test::lab_qemu_10(), "q35", kDevices},
            Machine{"qemu10_q35_shared_file", test::lab_qemu_10(), "q35,memory-backend=ram0", kSharedFile},
            Machine{"qemu10_microvm_memfd", test::lab_qemu_10(), "microvm,memory-backend=ram0", kMemfd}),
        ::testing::Values(RestoreMode::kEager)),
    kName);

INSTANTIATE_TEST_SUITE_P(
    Lazy, RoundTrip,
    ::testing::Combine(::testing::Values(Machine{"pc_devices", test::system_qemu(), "pc", kDevices},
                                         Machine{"q35_private_memfd", test::system_qemu(),
                                                 "q35,memory-backend=ram0", kPrivateMemfd},
                                         Machine{"qemu10_microvm_memfd", test::lab_qemu_10(),
                                                 "microvm,memory-backend=ram0", kMemfd}),
                       ::testing::Values(RestoreMode::kLazy)),
    kName);

}  // namespace
}  // namespace vmsieve
