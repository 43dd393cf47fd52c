// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/kernel_description.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/fake_allocator.h"
#include "vmsieve/pages/free_pages.h"

namespace vmsieve {
namespace {

using ::testing::HasSubstr;
using ::testing::Optional;
using vmsieve::testing::FakeAllocator;
using vmsieve::testing::FakeAllocatorOptions;
using vmsieve::testing::FakeGuest;

// A kernel whose memory sections are as long as the x86-64 kernel's.
FakeAllocatorOptions options(u32 levels = 4) {
  FakeAllocatorOptions made;
  made.guest.levels = levels;
  made.guest.section_shift = 27;
  return made;
}

class KernelDescription : public ::testing::Test {
 protected:
  explicit KernelDescription(u32 levels = 4) : made(options(levels)) {}

  VmcoreInfo real() { return *VmcoreInfo::parse(made.guest().text()); }
  Result<VmcoreInfo> describe(const VmcoreInfo* written = nullptr) {
    const PageTableRoot tables = made.guest().kernel().page_tables();
    auto names = Kallsyms::search(made.memory(), tables);
    VMSIEVE_CHECK(names.ok());
    const auto symbols = KernelSymbols::read(made.memory(), tables, *std::move(names));
    VMSIEVE_CHECK(symbols.ok());
    return describe_kernel(made.memory(), tables, *symbols, written);
  }
  Result<LinuxKernel> find() {
    const X86Vcpu vcpu = made.guest().vcpu();
    return find_linux_kernel(made.memory(), std::vector{vcpu});
  }
  // The kernel shows where its VMCOREINFO is, which is `text`; the note is gone.
  void write_vmcoreinfo(std::string_view text) {
    constexpr GuestPhysical kPointer{0x150'6060};
    made.memory().write_le(kPointer, made.guest().direct(FakeGuest::kDataPage).value);
    made.add_symbol({'B', "vmcoreinfo_data", FakeAllocator::image(kPointer)});  // writes VMCOREINFO too
    made.memory().write(FakeGuest::kNotePages, std::vector<std::byte>(2 * kPageSize));
    made.memory().write(FakeGuest::kDataPage, std::vector<std::byte>(kPageSize));
    made.memory().write(FakeGuest::kDataPage, as_byte_span(text));
  }
  Result<FreePages> find_free(const LinuxKernel& kernel) {
    const AllocatorLayout layout = made.layout();
    return find_free_pages(made.memory(), kernel, {.threads = 1, .allocator = &layout});
  }
  u64 free_pages(const LinuxKernel& kernel) {
    const auto found = find_free(kernel);
    EXPECT_TRUE(found.ok()) << found.error().message();
    return found.ok() ? found->count : 0;
  }

  FakeAllocator made;
};

TEST_F(KernelDescription, SaysWhatTheKernelWouldHaveWritten) {
  const auto found = describe();
  ASSERT_TRUE(found.ok()) << found.error().message();
  EXPECT_TRUE(describes_kernel(*found)) << found->text();
  EXPECT_EQ(found->release(), "6.12.0-fake");
  const VmcoreInfo written = real();
  for (const auto* name : {"page", "zone", "pglist_data", "free_area", "list_head", "mem_section"})
    EXPECT_EQ(found->size(name), written.size(name)) << name;
  for (const auto* name : {"page.flags", "page._refcount", "page._mapcount", "page.private", "page.lru",
                           "pglist_data.node_zones", "pglist_data.nr_zones", "pglist_data.node_start_pfn",
                           "pglist_data.node_spanned_pages", "pglist_data.node_id", "zone.free_area",
                           "zone.spanned_pages", "mem_section.section_mem_map"}) {
    EXPECT_EQ(found->offset(name), written.offset(name)) << name;
    EXPECT_TRUE(found->offset(name)) << name;
  }
  for (const auto* name :
       {"PG_lru", "PAGE_BUDDY_MAPCOUNT_VALUE", "phys_base", "pgtable_l5_enabled", "SECTION_SIZE_BITS"})
    EXPECT_EQ(found->number(name), written.number(name)) << name;
  for (const auto* name : {"zone.free_area", "free_area.free_list", "mem_section"})
    EXPECT_EQ(found->length(name), written.length(name)) << name;
  EXPECT_THAT(found->length("node_data"), Optional(2));
  EXPECT_EQ(found->offset("page.compound_head"), 8u);
  EXPECT_EQ(found->number("PAGE_OFFLINE_MAPCOUNT_VALUE"), static_cast<std::int32_t>(0xf1000000));
}

TEST_F(KernelDescription, KeepsWhatTheKernelHasWritten) {
  const auto written = VmcoreInfo::parse("OSRELEASE=6.12.0-real\nSIZE(page)=4711\nOFFSET(page.fl");
  const auto found = describe(&*written);
  ASSERT_TRUE(found.ok()) << found.error().message();
  EXPECT_EQ(found->release(), "6.12.0-real");
  EXPECT_THAT(found->size("page"), Optional(4711));
  EXPECT_THAT(found->offset("page.flags"), Optional(0));
}

TEST_F(KernelDescription, KernelWithoutVmcoreInfoIsFoundAndItsFreePagesToo) {
  made.guest().free_block(0x800, 3);
  made.guest().free_block(0x2000, 10);
  write_vmcoreinfo("");
  const auto kernel = find();
  ASSERT_TRUE(kernel.ok()) << kernel.error().message();
  EXPECT_EQ(kernel->release(), "6.12.0-fake");
  EXPECT_EQ(kernel->witness().address, FakeAllocator::kBanner);
  EXPECT_EQ(kernel->witness().text, "Linux version 6.12.0-fake");
  EXPECT_EQ(free_pages(*kernel), 0x408u);
}

TEST_F(KernelDescription, KernelWithVmcoreInfoCutOffIsFoundAndItsFreePagesToo) {
  made.guest().free_block(0x2000, 10);
  const std::string whole = made.guest().text();
  for (const std::size_t length : {whole.find("SIZE(zone)") + 6, whole.size() / 2, std::size_t{30}}) {
    write_vmcoreinfo(whole.substr(0, length));
    const auto kernel = find();
    ASSERT_TRUE(kernel.ok()) << kernel.error().message();
    EXPECT_EQ(kernel->witness().address, FakeGuest::kDataPage);
    EXPECT_EQ(kernel->witness().text, whole.substr(0, length));
    EXPECT_EQ(free_pages(*kernel), 0x400u);
  }
}

// Check A.
TEST_F(KernelDescription, IsNotProvedOnceItsBannerHasGone) {
  write_vmcoreinfo("");
  const auto kernel = find();
  ASSERT_TRUE(kernel.ok()) << kernel.error().message();
  const X86Vcpu vcpu = made.guest().vcpu();
  EXPECT_TRUE(kernel->prove_live(made.memory(), std::vector{vcpu}).ok());
  made.memory().write(FakeAllocator::kBanner, as_byte_span("Linux version 6.12.1"));
  const auto proved = kernel->prove_live(made.memory(), std::vector{vcpu});
  ASSERT_FALSE(proved.ok());
  EXPECT_THAT(proved.error().message(), HasSubstr("is no longer at 0x1220000"));
}

// Check D.
TEST_F(KernelDescription, IsNotBelievedWhenTheMapCallsItsBannerFree) {
  write_vmcoreinfo("");
  const auto kernel = find();
  ASSERT_TRUE(kernel.ok()) << kernel.error().message();
  made.guest().free_block(Pfn{FakeAllocator::kBanner}.value, 0);
  const auto found = find_free(*kernel);
  ASSERT_FALSE(found.ok());
  EXPECT_THAT(found.error().message(), HasSubstr("is not in use by the kernel"));
}

// Check G: a kernel without VMCOREINFO may not be past its start.
TEST_F(KernelDescription, HasNoFreePagesBeforeTheKernelRuns) {
  made.guest().free_block(0x2000, 10);
  write_vmcoreinfo("");
  const auto kernel = find();
  ASSERT_TRUE(kernel.ok()) << kernel.error().message();
  made.memory().write_le(FakeAllocator::kSystemState, FakeAllocator::kRunning - 1);
  const auto starting = find_free(*kernel);
  ASSERT_TRUE(starting.ok()) << starting.error().message();
  EXPECT_EQ(starting->count, 0u);
  EXPECT_EQ(starting->doubts.size(), 1u);
  const auto unknown = find_free_pages(made.memory(), *kernel, {.threads = 1});
  ASSERT_FALSE(unknown.ok());
  EXPECT_THAT(unknown.error().message(), HasSubstr("whether it is still starting"));
}

TEST_F(KernelDescription, KernelWithoutNamesIsNotFound) {
  write_vmcoreinfo("");
  made.memory().write(FakeAllocator::kKallsyms, std::vector<std::byte>(64 * kKiB));
  const auto kernel = find();
  ASSERT_FALSE(kernel.ok());
  EXPECT_THAT(kernel.error().message(), HasSubstr("no VMCOREINFO"));
}

TEST_F(KernelDescription, KernelWithoutTypesIsNotFound) {
  made.remove_symbol("__stop_BTF");
  write_vmcoreinfo("");
  EXPECT_FALSE(find().ok());
}

TEST_F(KernelDescription, KernelWithoutBaseIsNotDescribed) {
  made.remove_symbol("phys_base");
  const auto found = describe();
  ASSERT_FALSE(found.ok());
  EXPECT_THAT(found.error().message(), HasSubstr("phys_base"));
}

class FiveLevels : public KernelDescription {
 protected:
  FiveLevels() : KernelDescription(5) {}
};

TEST_F(FiveLevels, HaveMoreMemorySections) {
  const auto found = describe();
  ASSERT_TRUE(found.ok()) << found.error().message();
  EXPECT_THAT(found->number("pgtable_l5_enabled"), Optional(1));
  EXPECT_THAT(found->length("mem_section"), Optional(131072));
}

}  // namespace
}  // namespace vmsieve
