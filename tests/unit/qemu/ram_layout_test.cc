// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/ram_layout.h"

#include <fcntl.h>
#include <algorithm>
#include <fstream>
#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/qemu/real_qemu.h"
#include "vmsieve/qemu/live_memory.h"
#include "vmsieve/qemu/machine.h"
#include "vmsieve/qemu/monitor_text.h"
#include "vmsieve/qemu/proc_maps.h"
#include "vmsieve/qemu/process_memory.h"
#include "vmsieve/qemu/ramblock_search.h"

namespace vmsieve {
namespace {

using test::RealQemu;
using testing::HasSubstr;

class Layout : public testing::TestWithParam<test::QemuProgram> {
 protected:
  void start(const std::vector<std::string>& arguments) {
    qemu_ = std::make_unique<RealQemu>(GetParam().path, arguments);
    if (!qemu_->running()) GTEST_SKIP() << "this QEMU does not start: " << qemu_->complaint();
    qmp_ = test::must_connect(qemu_->monitor());
    ASSERT_NE(qmp_, nullptr);
    auto layout = read_ram_layout(*qmp_, qemu_->pid());
    ASSERT_TRUE(layout) << layout.error().message();
    layout_ = std::move(*layout);
    check_invariants();
  }

  void check_invariants() {
    u64 end = 0;
    for (const RamMapping& mapping : layout_.mappings) {
      EXPECT_GE(mapping.address.value, end);
      end = mapping.address.value + mapping.bytes;
      ASSERT_LT(mapping.block, layout_.blocks.size());
      EXPECT_TRUE(layout_.blocks[mapping.block].guest_ram);
      EXPECT_LE(mapping.block_offset + mapping.bytes, layout_.blocks[mapping.block].used_bytes);
    }
    for (const RamBlock& a : layout_.blocks) {
      EXPECT_NE(a.host.value, 0u) << a.name;
      for (const RamBlock& b : layout_.blocks) {
        const bool apart =
            a.host.value + a.max_bytes <= b.host.value || b.host.value + b.max_bytes <= a.host.value;
        EXPECT_TRUE(&a == &b || apart) << a.name << " and " << b.name;
      }
    }
  }

  std::vector<std::string> guest_ram() const {
    std::vector<std::string> names;
    for (const RamBlock& block : layout_.blocks) {
      if (block.guest_ram) names.push_back(block.name);
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  const RamBlock* block(const std::string& name) const {
    const auto found = std::find_if(layout_.blocks.begin(), layout_.blocks.end(),
                                    [&](const RamBlock& b) { return b.name == name; });
    return found == layout_.blocks.end() ? nullptr : &*found;
  }

  u64 mapped_bytes() const {
    u64 bytes = 0;
    for (const RamMapping& mapping : layout_.mappings) bytes += mapping.bytes;
    return bytes;
  }

  std::string bytes_of(const RamBlock& its, u64 offset, u64 count) const {
    std::string text(count, '\0');
    const auto read = read_process_memory(qemu_->pid(), its.host + offset,
                                          std::as_writable_bytes(std::span{text.data(), text.size()}));
    EXPECT_TRUE(read) << read.error().message();
    return text;
  }

  std::unique_ptr<RealQemu> qemu_;
  std::unique_ptr<QmpClient> qmp_;
  RamLayout layout_;
};

#define START(...)    \
  start(__VA_ARGS__); \
  if (IsSkipped() || HasFatalFailure()) return

TEST_P(Layout, PcMachine) {
  START({"-M", "pc", "-m", "4G", "-device", "VGA", "-device", "e1000"});
  EXPECT_THAT(guest_ram(), testing::ElementsAre("pc.ram"));
  EXPECT_EQ(layout_.mappings.front().address, GuestPhysical{0});
  EXPECT_EQ(layout_.mappings.back().address, GuestPhysical{4 * kGiB});
  EXPECT_EQ(layout_.mappings.back().block_offset, 3 * kGiB);
  EXPECT_GT(mapped_bytes(), 4 * kGiB - 512 * kKiB);
  ASSERT_NE(block("pc.bios"), nullptr);
  ASSERT_NE(block("pc.rom"), nullptr);
}

TEST_P(Layout, Q35Machine) {
  START({"-M", "q35", "-m", "4G", "-device", "VGA"});
  EXPECT_THAT(guest_ram(), testing::ElementsAre("pc.ram"));
  EXPECT_EQ(layout_.mappings.back().address, GuestPhysical{4 * kGiB});
  EXPECT_EQ(layout_.mappings.back().block_offset, 2 * kGiB);
}

TEST_P(Layout, Microvm) {
  START({"-M", "microvm", "-m", "512"});
  EXPECT_THAT(guest_ram(), testing::ElementsAre("microvm.ram"));
}

TEST_P(Layout, FirmwareIsFoundAtItsAddress) {
  START({"-M", "q35", "-m", "128", "-device", "VGA"});
  const RamBlock* bios = block("pc.bios");
  ASSERT_NE(bios, nullptr);
  // The reset vector of every x86 firmware: a far jump, 16 bytes before the end.
  EXPECT_EQ(bytes_of(*bios, bios->used_bytes - 16, 1), "\xea");
}

TEST_P(Layout, BlocksThatNoGuestAddressShowsAreFound) {
  START({"-M", "q35", "-m", "128", "-device", "VGA"});
  const RamBlock* tables = block("/rom@etc/acpi/tables");
  const RamBlock* pointer = block("/rom@etc/acpi/rsdp");
  ASSERT_NE(tables, nullptr);
  ASSERT_NE(pointer, nullptr);
  EXPECT_EQ(bytes_of(*tables, 0, 4), "FACS");
  EXPECT_EQ(bytes_of(*pointer, 0, 8), "RSD PTR ");
  EXPECT_LT(tables->used_bytes, tables->max_bytes);
}

TEST_P(Layout, NumaNodesAndHotpluggableMemory) {
  START({"-M",
         "q35",
         "-m",
         "3G,slots=4,maxmem=16G",
         "-smp",
         "2",  //
         "-object",
         "memory-backend-memfd,id=low,size=1G,share=on",  //
         "-object",
         "memory-backend-ram,id=high,size=2G",  //
         "-numa",
         "node,memdev=low",
         "-numa",
         "node,memdev=high",  //
         "-object",
         "memory-backend-ram,id=dimm,size=128M",
         "-device",
         "pc-dimm,memdev=dimm",  //
         "-object",
         "memory-backend-ram,id=plug,size=128M",
         "-device",  //
         "virtio-mem-pci,memdev=plug,requested-size=128M"});
  EXPECT_THAT(guest_ram(), testing::ElementsAre(testing::EndsWith("/plug"), "dimm", "high", "low"));
  EXPECT_GT(mapped_bytes(), 3 * kGiB + 256 * kMiB - kMiB);
}

TEST_P(Layout, DeviceMemoryIsNoGuestRam) {
  START({"-M", "q35,nvdimm=on", "-m", "128,slots=4,maxmem=2G", "-device", "VGA",                       //
         "-object", "memory-backend-ram,id=shared,size=1M", "-device", "ivshmem-plain,memdev=shared",  //
         "-object", "memory-backend-ram,id=storage,size=128M", "-device", "nvdimm,memdev=storage"});
  EXPECT_THAT(guest_ram(), testing::ElementsAre("pc.ram"));
}

TEST_P(Layout, UnusedMemoryObjectIsNoBlock) {
  START({"-M", "q35", "-m", "128", "-object", "memory-backend-ram,id=idle,size=1M"});
  for (const RamBlock& its : layout_.blocks) EXPECT_FALSE(its.name.empty());
  EXPECT_THAT(guest_ram(), testing::ElementsAre("pc.ram"));
}

TEST_P(Layout, MainMemoryOfAnObject) {
  START(
      {"-M", "microvm,memory-backend=mem", "-m", "256", "-object", "memory-backend-memfd,id=mem,size=256M"});
  EXPECT_THAT(guest_ram(), testing::ElementsAre("mem"));
}

/// QEMUs that print addresses check the search through the heap, which they do not need.
TEST_P(Layout, HeapSearchAgreesWithWhatQemuPrints) {
  START({"-M", "q35", "-m", "256", "-device", "VGA", "-device", "e1000e"});
  const auto text = qmp_->human("info ramblock");
  ASSERT_TRUE(text);
  const auto lines = parse_info_ramblock(*text);
  ASSERT_TRUE(lines);
  if (!lines->front().host) GTEST_SKIP() << "this QEMU prints no addresses";
  const auto maps = read_maps(qemu_->pid());
  ASSERT_TRUE(maps);
  std::vector<RamblockTarget> targets;
  for (const RamblockLine& line : *lines) {
    targets.push_back({line.name, line.used_bytes, line.total_bytes, {}});
    if (line.name == "pc.ram") targets.back().host = line.host;
  }
  const auto found = find_ramblock_hosts(qemu_->pid(), *maps, targets);
  ASSERT_TRUE(found) << found.error().message();
  for (std::size_t i = 0; i < targets.size(); ++i)
    EXPECT_EQ(targets[i].host, (*lines)[i].host) << targets[i].name;
}

INSTANTIATE_TEST_SUITE_P(Qemu, Layout, testing::ValuesIn(test::qemu_programs()),
                         [](const auto& instance) { return instance.param.label; });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Layout);

}  // namespace
}  // namespace vmsieve
