// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/store/catalog.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <chrono>
#include <thread>

#include "unit/store/store_fixture.h"

namespace vmsieve {
namespace {

using directory_store::kWorthCataloguing;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

Catalog sample_catalog() {
  Catalog catalog;
  for (const char* id : {"00000000000000a1", "00000000000000b2"}) {
    Catalog::Entry entry;
    entry.folder = {.inode = 7, .bytes = 4096, .modified_ns = 1'800'000'000'123'456'789, .changed_ns = 1};
    entry.manifest = {.inode = ~u64{0}, .bytes = 0, .modified_ns = 300, .changed_ns = 128};
    entry.settled = true;
    entry.objects = {{.name = "memory", .bytes = 1 << 20}, {.name = "disk-0", .bytes = 0}};
    entry.summary = {.id = id,
                     .created = "2026-01-31T12:34:56.789Z",
                     .mode = "live",
                     .parent = "00000000000000c3",
                     .vm_name = std::string("a\0\xff\n", 4),
                     .kernel = "",
                     .pause_ms = 6.5,
                     .guest_bytes = 1,
                     .stored_bytes = ~u64{0}};
    catalog.entries.emplace(id, entry);
  }
  return catalog;
}

TEST(Catalog, ComesBackAsItWasWritten) {
  const Catalog catalog = sample_catalog();
  const auto again = Catalog::decode(catalog.encode());
  ASSERT_TRUE(again);
  ASSERT_THAT(again->entries, SizeIs(2));
  const Catalog::Entry& entry = again->entries.begin()->second;
  const Catalog::Entry& expected = catalog.entries.begin()->second;
  EXPECT_EQ(entry.summary, expected.summary);
  EXPECT_EQ(entry.folder, expected.folder);
  EXPECT_EQ(entry.manifest, expected.manifest);
  EXPECT_TRUE(entry.settled);
  ASSERT_THAT(entry.objects, SizeIs(2));
  EXPECT_EQ(entry.objects[1].name, "disk-0");
  EXPECT_EQ(again->encode(), catalog.encode());
  EXPECT_THAT(Catalog::decode(Catalog{}.encode())->entries, IsEmpty());
}

TEST(Catalog, OneThatIsNotWholeIsNone) {
  const std::string text = sample_catalog().encode();
  for (std::size_t i = 0; i < text.size(); ++i) {
    EXPECT_FALSE(Catalog::decode(text.substr(0, i))) << i;
    std::string changed = text;
    changed[i] = static_cast<char>(changed[i] ^ 1);
    EXPECT_FALSE(Catalog::decode(changed)) << i;
  }
  EXPECT_FALSE(Catalog::decode(text + "x"));
}

TEST(Catalog, NamesAreThoseOfObjectsAndNoneTwice) {
  for (const char* name : {"disk-0", "../../etc/passwd", ""}) {
    Catalog catalog = sample_catalog();
    catalog.entries.begin()->second.objects[0].name = name;
    EXPECT_FALSE(Catalog::decode(catalog.encode())) << name;
  }
  Catalog catalog = sample_catalog();
  for (std::size_t i = 0; i < 1024; ++i)
    catalog.entries.begin()->second.objects.push_back({.name = fmt::format("x{}", i)});
  EXPECT_FALSE(Catalog::decode(catalog.encode()));
}

TEST(Catalog, AStampTellsSomethingWhenItIsOld) {
  constexpr u64 kSecond = 1'000'000'000;
  const FileStamp stamp{.inode = 1, .bytes = 1, .modified_ns = 5 * kSecond, .changed_ns = 7 * kSecond};
  EXPECT_FALSE(stamp.has_aged(8 * kSecond));
  EXPECT_FALSE(stamp.has_aged(9 * kSecond));
  EXPECT_TRUE(stamp.has_aged(10 * kSecond));
  EXPECT_FALSE(stamp.has_aged(6 * kSecond));  // of another machine's clock, or the clock was set back
}

/// A store with as many checkpoints as are worth a catalog, all of them old enough for one.
class CataloguedTest : public StoreTest {
 protected:
  CataloguedTest() {
    for (std::size_t i = 0; i < kWorthCataloguing; ++i) {
      const auto done = commit_sample(*store_, {.id = id(i), .vm_name = fmt::format("vm{}", i)});
      EXPECT_TRUE(done.ok()) << done.error().message();
    }
    age();
  }
  static void age() { std::this_thread::sleep_for(std::chrono::milliseconds(3100)); }
  static std::string id(std::size_t i) { return fmt::format("{:016x}", 0xaa00 + i); }
  Summaries summaries() const {
    auto found = store_->summaries();
    EXPECT_TRUE(found.ok());
    return std::move(*found);
  }
  Directory root() const {
    auto fd = open_file(root_.string(), O_RDONLY | O_DIRECTORY);
    EXPECT_TRUE(fd.ok());
    return {std::move(*fd), root_.string()};
  }
  void expect_what_is_there() const {
    const auto listing = store_->list();
    const Summaries found = summaries();
    ASSERT_EQ(found.checkpoints.size(), listing->checkpoints.size());
    for (std::size_t i = 0; i < found.checkpoints.size(); ++i)
      EXPECT_EQ(found.checkpoints[i], CheckpointSummary::of(listing->checkpoints[i]));
    ASSERT_EQ(found.damaged.size(), listing->damaged.size());
    for (std::size_t i = 0; i < found.damaged.size(); ++i) {
      EXPECT_EQ(found.damaged[i].id, listing->damaged[i].id);
      EXPECT_EQ(found.damaged[i].error.message(), listing->damaged[i].error.message());
    }
    EXPECT_EQ(found.retired, listing->retired);
    EXPECT_EQ(found.retired_bytes, listing->retired_bytes);
  }
};

TEST_F(CataloguedTest, ItIsMadeUsedAndOutlivedByWhatChanges) {
  ASSERT_FALSE(fs::exists(root_ / "catalog.hint"));
  expect_what_is_there();
  ASSERT_TRUE(fs::exists(root_ / "catalog.hint"));
  struct stat info {};
  ASSERT_EQ(::stat((root_ / "catalog.hint").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
  expect_what_is_there();

  // It is what summaries() goes by: a false name in it is told,
  Catalog catalog = Catalog::read(root());
  ASSERT_THAT(catalog.entries, SizeIs(kWorthCataloguing));
  for (const std::size_t i : {3, 4}) catalog.entries.find(id(i))->second.summary.vm_name = "another";
  ASSERT_TRUE(catalog.write(root()).ok());
  EXPECT_EQ(summaries().checkpoints[3].vm_name, "another");
  EXPECT_EQ(summaries().checkpoints[4].vm_name, "another");
  EXPECT_EQ(*store_->resolve("vm3@latest"), id(3));  // but nobody is led astray
  EXPECT_THAT(store_->resolve("another@latest").error().message(), HasSubstr("no checkpoint"));
  // until the manifest has been written to, or the folder has.
  write_file(folder(id(3)) / "manifest", read_file(folder(id(3)) / "manifest"));
  EXPECT_EQ(summaries().checkpoints[3].vm_name, "vm3");
  EXPECT_EQ(summaries().checkpoints[4].vm_name, "another");
  fs::rename(folder(id(4)), root_ / "elsewhere");
  EXPECT_THAT(summaries().checkpoints, SizeIs(kWorthCataloguing - 1));
  fs::rename(root_ / "elsewhere", folder(id(4)));
  EXPECT_EQ(summaries().checkpoints[4].vm_name, "vm4");
}

TEST_F(CataloguedTest, WhatIsDamagedOrGoneIsSeenAtOnce) {
  expect_what_is_there();
  ASSERT_TRUE(fs::exists(root_ / "catalog.hint"));
  fs::resize_file(folder(id(1)) / "memory", 10);
  write_file(folder(id(2)) / "manifest", "vmsieve-manifest?");
  fs::remove(folder(id(4)) / "device");
  fs::rename(folder(id(5)), root_ / "elsewhere");
  fs::create_symlink(root_ / "elsewhere", folder(id(5)));
  fs::remove(folder(id(6)) / "device");
  fs::create_symlink(folder(id(7)) / "device", folder(id(6)) / "device");
  ASSERT_TRUE(store_->remove(id(8)).ok());
  expect_what_is_there();
  EXPECT_THAT(summaries().damaged, SizeIs(5));
  EXPECT_THAT(summaries().checkpoints, SizeIs(kWorthCataloguing - 6));
  EXPECT_THAT(store_->resolve("vm8@latest").error().message(), HasSubstr("no checkpoint"));
  EXPECT_EQ(*store_->resolve("vm9@latest"), id(9));
}

TEST_F(CataloguedTest, ASweepMakesItAndStillSeesWhatIsLeftOver) {
  EXPECT_EQ(*store_->sweep(), 0u);
  ASSERT_TRUE(fs::exists(root_ / "catalog.hint"));
  write_file(folder(id(1)) / "manifest.new", "x");
  write_file(folder(id(2)) / "writing", "");
  write_file(root_ / "catalog.hint.new", "half");
  fs::create_directory(folder(kId));
  EXPECT_EQ(*store_->sweep(), 4u);
  EXPECT_FALSE(fs::exists(folder(id(1)) / "manifest.new") || fs::exists(folder(id(2)) / "writing") ||
               fs::exists(root_ / "catalog.hint.new") || fs::exists(folder(kId)));
  EXPECT_EQ(*store_->sweep(), 0u);
  expect_what_is_there();
}

TEST_F(CataloguedTest, WhatWasLeftOverWhenItWasMadeIsSwept) {
  write_file(folder(id(1)) / "writing", "");
  write_file(folder(id(2)) / "thesis.tex", "dear");
  age();
  expect_what_is_there();
  const Catalog catalog = Catalog::read(root());
  ASSERT_THAT(catalog.entries, SizeIs(kWorthCataloguing));
  EXPECT_TRUE(catalog.entries.find(id(0))->second.settled);
  EXPECT_FALSE(catalog.entries.find(id(1))->second.settled);
  EXPECT_FALSE(catalog.entries.find(id(2))->second.settled);
  EXPECT_EQ(*store_->sweep(), 1u);
}

TEST_F(CataloguedTest, ASweepPassesOverWhatIsSettled) {
  write_file(folder(id(1)) / "writing", "");
  age();
  expect_what_is_there();
  Catalog catalog = Catalog::read(root());
  catalog.entries.find(id(1))->second.settled = true;  // which it is not
  ASSERT_TRUE(catalog.write(root()).ok());
  EXPECT_EQ(*store_->sweep(), 0u);
  EXPECT_TRUE(fs::exists(folder(id(1)) / "writing"));
}

TEST_F(CataloguedTest, WhoeverHoldsTheLockIsNotWaitedFor) {
  const auto held = directory_store::lock(root());
  ASSERT_TRUE(held.ok());
  expect_what_is_there();
  EXPECT_FALSE(fs::exists(root_ / "catalog.hint"));
}

TEST_F(CataloguedTest, DamagedOnesAreReadEachTimeAndNothingIsWrittenForThem) {
  for (std::size_t i = 0; i < kWorthCataloguing; ++i) write_file(folder(id(i)) / "manifest", "damaged");
  age();
  EXPECT_EQ(*store_->sweep(), 0u);
  EXPECT_THAT(summaries().damaged, SizeIs(kWorthCataloguing));
  EXPECT_FALSE(fs::exists(root_ / "catalog.hint") || fs::exists(root_ / "catalog.hint.new"));
}

TEST_F(CataloguedTest, OneThatIsNoneIsWrittenAnew) {
  for (const std::string& bad : {std::string{}, std::string("vmsieve-catalog 1\n"), std::string(1000, 'x')}) {
    write_file(root_ / "catalog.hint", bad);
    expect_what_is_there();
    EXPECT_THAT(Catalog::read(root()).entries, SizeIs(kWorthCataloguing));
  }
  fs::remove(root_ / "catalog.hint");
  fs::create_directory(root_ / "catalog.hint");  // nor is it needed
  expect_what_is_there();
  EXPECT_EQ(*store_->sweep(), 0u);
  EXPECT_FALSE(fs::exists(root_ / "catalog.hint.new"));
  fs::create_directory(root_ / "catalog.hint.new");
  fs::create_directory(folder(kId));
  EXPECT_EQ(*store_->sweep(), 1u);
}

TEST_F(StoreTest, WhatIsTooYoungIsNotCatalogued) {
  for (std::size_t i = 0; i < kWorthCataloguing; ++i)
    ASSERT_TRUE(commit_sample(*store_, {.id = fmt::format("{:016x}", 0xaa00 + i)}).ok());
  EXPECT_THAT(store_->summaries()->checkpoints, SizeIs(kWorthCataloguing));
  EXPECT_EQ(*store_->sweep(), 0u);
  EXPECT_FALSE(fs::exists(root_ / "catalog.hint"));
}

}  // namespace
}  // namespace vmsieve
