// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/pages/page_classes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "support/fake_user_space.h"

namespace vmsieve {
namespace {

using vmsieve::testing::FakeUserSpace;
using vmsieve::testing::FakeUserSpaceOptions;

constexpr u64 kFirst = 0x2800;  // pages that nothing of the fake lives in
constexpr u64 kAnonBit = 1;

class PageClassesTest : public ::testing::Test {
 protected:
  explicit PageClassesTest(FakeUserSpaceOptions options = {}) : space(options) {}

  PageClasses classify(const FreePages& free = {}) {
    const LinuxKernel kernel = space.kernel();
    const KernelSymbols symbols = space.symbols();
    const auto processes = list_processes(space.memory(), kernel, symbols);
    VMSIEVE_CHECK(processes.ok());
    auto found = classify_pages(space.memory(), kernel, symbols, free, *processes, 4);
    VMSIEVE_CHECK(found.ok());
    return *std::move(found);
  }
  static PageClass class_of(const PageClasses& classes, u64 pfn) {
    for (const PageClassRun& run : classes.runs) {
      if (pfn >= run.first.value && pfn - run.first.value < run.count) return run.page_class;
    }
    return PageClass::kUnmanaged;
  }
  PageClass class_of(u64 pfn) { return class_of(classify(), pfn); }

  FakeUserSpace space;
};

struct OldKernelTest : PageClassesTest {
  OldKernelTest() : PageClassesTest(FakeUserSpaceOptions{.page_types = false, .compound_dtor = true}) {}
};

TEST_F(PageClassesTest, EveryPageOfRamHasOneClass) {
  const PageClasses classes = classify();
  u64 ram = 0;
  for (const PfnRange& range : space.memory().ram()) ram += range.count;
  EXPECT_EQ(std::accumulate(classes.pages.begin(), classes.pages.end(), u64{0}), ram);
  u64 runs = 0;
  for (const PageClassRun& run : classes.runs) runs += run.count;
  EXPECT_EQ(runs, ram);
}

TEST_F(PageClassesTest, PagesOfProcessesAreAnonymous) {
  space.set_mapping(kFirst, 0xffff'8880'0123'4500 | kAnonBit);
  EXPECT_EQ(class_of(kFirst), PageClass::kAnonymous);
}

TEST_F(PageClassesTest, SwapCacheIsCounted) {
  space.guest().set_page(kFirst, 1, 0, 0, FakeUserSpace::kSwapCache);
  space.set_mapping(kFirst, 0xffff'8880'0123'4500 | kAnonBit);
  EXPECT_EQ(classify().swap_cache, 1u);
}

TEST_F(PageClassesTest, PagesOfFilesAreCleanDirtyOrShared) {
  const u64 file = space.add_file("ext4", {"usr", "bin", "bash"}).value;
  const u64 shared = space.add_file("tmpfs", {"held"}).value;
  space.set_mapping(kFirst, file);
  space.guest().set_page(kFirst + 1, 2, 0, 0, FakeUserSpace::kDirty);
  space.set_mapping(kFirst + 1, file);
  space.guest().set_page(kFirst + 2, 2, 0, 0, FakeUserSpace::kSwapBacked | FakeUserSpace::kDirty);
  space.set_mapping(kFirst + 2, shared);
  const PageClasses classes = classify();
  EXPECT_EQ(class_of(classes, kFirst), PageClass::kCacheClean);
  EXPECT_EQ(class_of(classes, kFirst + 1), PageClass::kCacheDirty);
  EXPECT_EQ(class_of(classes, kFirst + 2), PageClass::kShared);
  ASSERT_EQ(classes.files.size(), 2u);
  EXPECT_EQ(classes.files[0].name, "ext4:/usr/bin/bash");
  EXPECT_EQ(classes.files[0].pages, 2u);
  EXPECT_EQ(classes.files[0].dirty, 1u);
  EXPECT_EQ(classes.files[1].name, "tmpfs:/held");
  EXPECT_TRUE(classes.files[1].shared);
}

TEST_F(PageClassesTest, LargePagesOfFilesCountWhole) {
  const u64 file = space.add_file("ext4", {"big"}).value;
  space.make_compound(kFirst, 8);
  space.set_mapping(kFirst, file);
  const PageClasses classes = classify();
  EXPECT_EQ(classes.files.at(0).pages, 8u);
  EXPECT_EQ(class_of(classes, kFirst + 7), PageClass::kCacheClean);
}

TEST_F(PageClassesTest, BlockDevicesAreBuffers) {
  space.set_mapping(kFirst, space.add_file("bdev", {}, 0060660).value);
  EXPECT_EQ(classify().buffers, 1u);
}

TEST_F(PageClassesTest, FileWithoutNameIsKnownByItsFileSystem) {
  space.set_mapping(kFirst, space.add_file("tmpfs", {}).value);
  EXPECT_EQ(classify().files.at(0).name, "tmpfs");
}

TEST_F(PageClassesTest, TypedPagesAreWhatTheirTypeSays) {
  space.guest().set_page(kFirst, 1, 0xf500'0000, 0);
  space.guest().set_page(kFirst + 1, 1, 0xf200'0000, 0);
  space.guest().set_page(kFirst + 2, 1, 0xf100'0000, 0);
  space.guest().set_page(kFirst + 3, 1, 0xf800'0000, 0);
  space.guest().set_page(kFirst + 4, 1, 0xf400'0000, 0);
  space.guest().set_page(kFirst + 5, 1, 0xf600'0000, 0);  // some driver's
  space.guest().set_page(kFirst + 6, 0, 0xf000'0000, 0);  // the buddy allocator's, but not proved
  const PageClasses classes = classify();
  EXPECT_EQ(class_of(classes, kFirst), PageClass::kSlab);
  EXPECT_EQ(class_of(classes, kFirst + 1), PageClass::kPageTables);
  EXPECT_EQ(class_of(classes, kFirst + 2), PageClass::kOffline);
  EXPECT_EQ(class_of(classes, kFirst + 3), PageClass::kSlab);
  EXPECT_EQ(class_of(classes, kFirst + 4), PageClass::kHugetlb);
  EXPECT_EQ(class_of(classes, kFirst + 5), PageClass::kKernelOther);
  EXPECT_EQ(class_of(classes, kFirst + 6), PageClass::kUnused);
}

TEST_F(PageClassesTest, CountBelowZeroIsNoType) {
  space.guest().set_page(kFirst, 1, 0xffff'fffe, 0);
  EXPECT_EQ(class_of(kFirst), PageClass::kKernelOther);
}

TEST_F(PageClassesTest, OtherPagesAreTheKernels) {
  space.guest().set_page(kFirst, 1, ~u32{0}, 0, FakeUserSpace::kReserved);
  space.guest().set_page(kFirst + 1, 0, ~u32{0}, 0);
  const PageClasses classes = classify();
  EXPECT_EQ(class_of(classes, kFirst), PageClass::kReserved);
  EXPECT_EQ(class_of(classes, kFirst + 1), PageClass::kUnused);
  EXPECT_EQ(class_of(classes, kFirst + 2), PageClass::kKernelOther);
}

TEST_F(PageClassesTest, FreePagesAreFreeWhateverElseIsKnown) {
  space.guest().set_page(kFirst, 1, 0xf500'0000, 0);
  FreePages free;
  free.runs = {{Pfn{kFirst}, 2}};
  const PageClasses classes = classify(free);
  EXPECT_EQ(class_of(classes, kFirst), PageClass::kFree);
  EXPECT_EQ(classes.of(PageClass::kFree), 2u);
}

TEST_F(PageClassesTest, ImageAndPageStructuresAreTold) {
  const PageClasses classes = classify();
  EXPECT_EQ(class_of(classes, Pfn(FakeUserSpace::kText).value), PageClass::kKernelImage);
  EXPECT_EQ(class_of(classes, Pfn(vmsieve::testing::FakeGuest::kStructPages).value), PageClass::kPageStructs);
}

TEST_F(PageClassesTest, StacksAreToldFromOtherVirtuallyMappedMemory) {
  const GuestVirtual stack = FakeUserSpace::kVmalloc + 0x4000;
  space.guest().tables().map_range(FakeUserSpace::kVmalloc, Pfn{kFirst}.address(), 0x8000, 12);
  space.add_process(1, "init", 1, 1, 1, stack);
  const PageClasses classes = classify();
  EXPECT_EQ(class_of(classes, kFirst), PageClass::kVmalloc);
  EXPECT_EQ(class_of(classes, kFirst + 4), PageClass::kKernelStacks);
  EXPECT_EQ(class_of(classes, kFirst + 5), PageClass::kKernelStacks);
  EXPECT_EQ(class_of(classes, kFirst + 6), PageClass::kVmalloc);
}

TEST_F(PageClassesTest, StackOfTheDirectMappingIsTold) {
  space.add_process(1, "init", 1, 1, 1, space.guest().direct(Pfn{kFirst}.address()));
  EXPECT_EQ(class_of(kFirst + 1), PageClass::kKernelStacks);
}

TEST_F(OldKernelTest, SlabIsAFlag) {
  space.guest().set_page(kFirst, 1, ~u32{0}, 0, FakeUserSpace::kSlab);
  EXPECT_EQ(class_of(kFirst), PageClass::kSlab);
}

TEST_F(OldKernelTest, HugePageIsToldByItsDestructor) {
  space.make_compound(kFirst, 512);
  space.memory().write_le(space.guest().struct_page(kFirst + 1) + 16, u64{2});
  EXPECT_EQ(class_of(kFirst + 511), PageClass::kHugetlb);
}

TEST_F(OldKernelTest, LargeAllocationIsSlab) {
  space.make_compound(kFirst, 8);
  EXPECT_EQ(class_of(kFirst + 3), PageClass::kSlab);
}

TEST(PageClassNames, DifferAndAreWords) {
  std::vector<std::string_view> names;
  for (std::size_t i = 0; i < kPageClasses; ++i) names.push_back(to_string(static_cast<PageClass>(i)));
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::unique(names.begin(), names.end()), names.end());
}

TEST(PageClassesWithoutTypes, FilesHaveNoNames) {
  FakeUserSpace space(FakeUserSpaceOptions{.file_types = false});
  space.set_mapping(kFirst, 0xffff'8880'01b0'0000);
  const LinuxKernel kernel = space.kernel();
  const KernelSymbols symbols = space.symbols();
  const auto classes = classify_pages(space.memory(), kernel, symbols, {}, GuestProcesses{}, 4);
  ASSERT_TRUE(classes.ok());
  EXPECT_TRUE(classes->files.empty());
}

TEST(PageClassesWithoutTypes, KernelWithoutOffsetsIsUnsupported) {
  FakeUserSpace space;
  space.guest().set_key("OFFSET(page.mapping)", "");
  const auto classes =
      classify_pages(space.memory(), space.kernel(), space.symbols(), {}, GuestProcesses{}, 4);
  ASSERT_FALSE(classes.ok());
  EXPECT_EQ(classes.error().kind(), ErrorKind::kUnsupported);
}

}  // namespace
}  // namespace vmsieve
