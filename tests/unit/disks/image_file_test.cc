// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/disks/image_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/disks/image_fixture.h"
#include "vmsieve/base/fd.h"
#include "vmsieve/disks/qemu_img.h"

namespace vmsieve {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Optional;
using testing::UnorderedElementsAre;

// ---- headers -----------------------------------------------------------------

/// The name; "none", or "damaged".
std::string backing_in(std::string_view head) {
  const auto name = backing_in_header(head);
  if (!name.ok()) {
    EXPECT_EQ(name.error().kind(), ErrorKind::kDamaged);
    return "damaged";
  }
  return name->value_or("none");
}

TEST_F(ImageFile, OverlaysOnACommandLineThatAreGone) {
  const std::string image = path("web.qcow2");
  const std::string gone = path("web.vmsieve-0123456789abcdef.1a2b3c4d.qcow2");
  const auto found = [&](const std::string& argument) {
    return gone_overlays_in({"-m", "64", argument}, image);
  };
  EXPECT_THAT(found("if=virtio,file=" + gone + ",format=qcow2"), ElementsAre(gone));
  EXPECT_THAT(found(R"({"driver":"file","filename":")" + gone + "\"}"), ElementsAre(gone));
  EXPECT_THAT(found(gone), ElementsAre(gone));
  EXPECT_THAT(found("file=" + image), IsEmpty());
  EXPECT_THAT(found("file=" + path("mail.vmsieve-0123456789abcdef.qcow2")), IsEmpty());  // of another image
  EXPECT_THAT(found("file=web.vmsieve-0123456789abcdef.qcow2"), IsEmpty());              // no whole path
  EXPECT_THAT(found("file=" + path("web.vmsieve-0123.qcow2")), IsEmpty());
  EXPECT_THAT(found("file=/x.vmsieve-"), IsEmpty());
  write("web.vmsieve-0123456789abcdef.1a2b3c4d.qcow2", "there");
  EXPECT_THAT(found("file=" + gone), IsEmpty());
}

TEST(BackingInHeader, IsTheNameAsItIsWrittenThere) {
  EXPECT_EQ(backing_in(header_of("/images/base.raw")), "/images/base.raw");
  EXPECT_EQ(backing_in(header_of("base.raw") + "more"), "base.raw");
  EXPECT_EQ(backing_in(header_of("\xff, ")), "\xff, ");
  EXPECT_EQ(backing_in(header_of("json:{\"driver\":\"nbd\"}")), "json:{\"driver\":\"nbd\"}");
  EXPECT_EQ(backing_in(header(kQcow2HeadBytes - 1, 1, std::string(kQcow2HeadBytes - 105, '.') + "x")), "x");
}

TEST(BackingInHeader, WhatIsNoQcow2ImageHasNone) {
  for (const std::string& head : {std::string{}, std::string{"QFI"}, std::string{"QFI\xfa"},
                                  std::string{"\xfb"}, std::string(512, '\0'), "x" + header_of("base")})
    EXPECT_EQ(backing_in(head), "none");
}

TEST(BackingInHeader, AnOffsetOfZeroIsNone) {
  EXPECT_EQ(backing_in(header(0, 0, "")), "none");
  EXPECT_EQ(backing_in(header(0, 4, "base")), "none");
}

TEST(BackingInHeader, ANameHasAtLeastOneByteAndAtMost1023) {
  const std::string name(1024, 'n');
  EXPECT_EQ(backing_in(header(104, 0, name)), "damaged");
  EXPECT_EQ(backing_in(header(104, 1, name)), "n");
  EXPECT_EQ(backing_in(header(104, 1023, name)), name.substr(1));
  EXPECT_EQ(backing_in(header(104, 1024, name)), "damaged");
  for (const u64 length : {u64{0x7fffffff}, u64{0x80000000}, u64{0xffffffff}})
    EXPECT_EQ(backing_in(header(104, length, name)), "damaged") << length;
}

TEST(BackingInHeader, ANameThatIsNotAllThereIsDamage) {
  const std::string whole = header_of("/images/base.raw");
  for (std::size_t size = 4; size < whole.size(); ++size)
    EXPECT_EQ(backing_in(std::string_view{whole}.substr(0, size)), "damaged") << size;
  for (const u64 offset : {u64{105}, u64{119}, u64{120}, u64{121}, u64{kQcow2HeadBytes}, u64{1} << 32,
                           (u64{1} << 32) + 104, ~u64{0} - 15, ~u64{0} - 16, ~u64{0}})
    EXPECT_EQ(backing_in(header(offset, 16, "/images/base.raw")), "damaged") << offset;
  EXPECT_EQ(backing_in(header(120, 1, "/images/base.raw")), "damaged");
}

TEST(BackingInHeader, TheFixedPartOfTheHeaderIsAllThere) {
  const std::string none = header(0, 0, "");
  for (std::size_t size = 4; size < 72; ++size)
    EXPECT_EQ(backing_in(std::string_view{none}.substr(0, size)), "damaged") << size;
  EXPECT_EQ(backing_in(std::string_view{none}.substr(0, 72)), "none");
}

TEST(BackingInHeader, ANameWithAZeroByteIsNoPath) {
  // QEMU opens what stands before it; a record of disks that held all of it could not be read again.
  EXPECT_EQ(backing_in(header_of(std::string("base\0raw", 8))), "damaged");
  EXPECT_EQ(backing_in(header_of(std::string("base\0", 5))), "damaged");
}

// ---- backing files and chains --------------------------------------------------

TEST_F(ImageFile, BackingFileIsWhatQemuImgWasGiven) {
  write("base.raw", std::string(1 << 20, '\0'));
  EXPECT_EQ(*backing_of(create("bottom.qcow2")), std::nullopt);
  EXPECT_THAT(*backing_of(create("absolute.qcow2", path("base.raw"))), Optional(path("base.raw")));
  EXPECT_THAT(*backing_of(create("relative.qcow2", "base.raw")), Optional(path("base.raw")));
  EXPECT_THAT(*backing_of(create("upper.qcow2", "relative.qcow2")), Optional(path("relative.qcow2")));
}

TEST_F(ImageFile, BackingFileByAnotherNotationIsItsPath) {
  EXPECT_THAT(*backing_of(write_qcow2("a", "file:/images/base")), Optional(std::string{"/images/base"}));
  EXPECT_THAT(*backing_of(write_qcow2("b", R"(json:{"driver":"qcow2","file":{"driver":"file",
                                              "filename":"/images/base"}})")),
              Optional(std::string{"/images/base"}));
  EXPECT_THAT(*backing_of(write_qcow2("c", "sub/base")), Optional(path("sub/base")));
}

TEST_F(ImageFile, BackingFileThatIsNoFileIsUnsupported) {
  for (const char* name :
       {"nbd://host/export", "json:{\"driver\":\"nbd\"}", "json:{", "json:", "rbd:pool/image"}) {
    const auto backing = backing_of(write_qcow2("a", name));
    ASSERT_FALSE(backing.ok()) << name;
    EXPECT_EQ(backing.error().kind(), ErrorKind::kUnsupported) << name;
    EXPECT_THAT(backing.error().message(), AllOf(HasSubstr(path("a")), HasSubstr(name)));
  }
}

TEST_F(ImageFile, OfAnImageThatIsNotWholeTheErrorNamesIt) {
  const auto backing = backing_of(write("cut.qcow2", header_of("base").substr(0, 50)));
  ASSERT_FALSE(backing.ok());
  EXPECT_EQ(backing.error().kind(), ErrorKind::kDamaged);
  EXPECT_THAT(backing.error().message(), HasSubstr(path("cut.qcow2")));
  EXPECT_EQ(backing_of(path("none")).error().kind(), ErrorKind::kNotFound);
}

TEST_F(ImageFile, BackingFileOfWhatIsNoImageIsNone) {
  EXPECT_EQ(*backing_of(write("empty", "")), std::nullopt);
  EXPECT_EQ(*backing_of(write("raw", std::string(100000, 'x'))), std::nullopt);
  EXPECT_FALSE(backing_of(folder_).ok());
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  EXPECT_FALSE(backing_of(path("pipe")).ok());
}

TEST_F(ImageFile, ChainHasTheImageFirst) {
  write("base.raw", std::string(1 << 20, '\0'));
  create("middle.qcow2", "base.raw");
  create("top.qcow2", path("middle.qcow2"));
  EXPECT_THAT(*chain_of(path("top.qcow2")),
              ElementsAre(path("top.qcow2"), path("middle.qcow2"), path("base.raw")));
  EXPECT_THAT(*chain_of(path("base.raw")), ElementsAre(path("base.raw")));
}

TEST_F(ImageFile, ChainWithAHoleIsNotFound) {
  EXPECT_EQ(chain_of(write_qcow2("top", "gone")).error().kind(), ErrorKind::kNotFound);
  EXPECT_EQ(chain_of(path("gone")).error().kind(), ErrorKind::kNotFound);
}

TEST_F(ImageFile, ChainThatDoesNotEndIsDamage) {
  write_qcow2("self", "self");
  write_qcow2("a", path("b"));
  write_qcow2("b", path("a"));
  write_qcow2("before", "a");
  write_qcow2("dotted", "./dotted");
  for (const char* name : {"self", "a", "before", "dotted"}) {
    const auto chain = chain_of(path(name));
    ASSERT_FALSE(chain.ok()) << name;
    EXPECT_EQ(chain.error().kind(), ErrorKind::kDamaged) << name;
    EXPECT_THAT(chain.error().message(), AllOf(HasSubstr(path(name)), HasSubstr("does not end")));
  }
  // Each turn makes the name longer, until the kernel does not take it any more.
  write_qcow2("growing", "../" + fs::path(folder_).filename().string() + "/growing");
  EXPECT_FALSE(chain_of(path("growing")).ok());
}

TEST_F(ImageFile, LongChainsEnd) {
  write("0", "");
  for (int i = 1; i < 1000; ++i) write_qcow2(std::to_string(i), std::to_string(i - 1));
  const auto chain = chain_of(path("999"));
  ASSERT_TRUE(chain.ok()) << chain.error().message();
  EXPECT_EQ(chain->size(), 1000u);
  EXPECT_EQ(chain->back(), path("0"));
}

TEST_F(ImageFile, ImagesOverAnotherAreFoundBesideIt) {
  const std::string base = write("base", "raw");
  write_qcow2("absolute", base);
  write_qcow2("relative", "base");
  write_qcow2("roundabout", "../" + fs::path(folder_).filename().string() + "/base");
  fs::create_symlink("base", path("link"));
  write_qcow2("through-link", "link");
  // None of these is.
  write_qcow2("other", "absolute");
  write_qcow2("bottom", "");
  write("cut", header_of("base").substr(0, 80));
  write("raw", "base");
  fs::create_directory(path("sub"));
  write_qcow2("sub/lower", base);
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  const auto all = [&](const std::string& image) { return images_over(image); };
  EXPECT_THAT(all(base), UnorderedElementsAre(path("absolute"), path("relative"), path("roundabout"),
                                              path("through-link")));
  EXPECT_THAT(all(path("absolute")), ElementsAre(path("other")));
  EXPECT_THAT(all(path("other")), IsEmpty());
  EXPECT_THAT(all("/vmsieve/no/such/folder/base"), IsEmpty());
}

TEST_F(ImageFile, ImagesOverAnotherAreFoundWhenItIsGone) {
  write_qcow2("relative", "gone");
  EXPECT_THAT(images_over(path("gone")), ElementsAre(path("relative")));
}

// ---- who has an image ------------------------------------------------------------

/// A lock of an open file of its own on one byte, as QEMU's are.
class ByteLock {
 public:
  ByteLock(const std::string& path, off_t byte, int type) {
    auto fd = open_file(path, O_RDWR);
    EXPECT_TRUE(fd.ok());
    fd_ = std::move(*fd);
    struct flock lock {};
    lock.l_type = static_cast<short>(type);
    lock.l_whence = SEEK_SET;
    lock.l_start = byte;
    lock.l_len = 1;
    EXPECT_EQ(::fcntl(fd_.get(), F_OFD_SETLK, &lock), 0);
  }

 private:
  UniqueFd fd_;
};

using HeldForWriting = ImageFile;

TEST_F(HeldForWriting, AFileThatNobodyHasIsNot) {
  EXPECT_FALSE(*is_held_for_writing(write("disk", "")));
  EXPECT_FALSE(*is_held_for_writing(write("large", std::string(100000, 'x'))));
  EXPECT_EQ(is_held_for_writing(path("none")).error().kind(), ErrorKind::kNotFound);
}

TEST_F(HeldForWriting, ALockOnByte101OfAnotherOpenFileIsSeen) {
  const std::string disk = write("disk", "");
  for (const int type : {F_RDLCK, F_WRLCK}) {
    const ByteLock lock{disk, 101, type};
    EXPECT_TRUE(*is_held_for_writing(disk)) << type;
  }
  EXPECT_FALSE(*is_held_for_writing(disk));
}

TEST_F(HeldForWriting, LocksOnOtherBytesAreOtherPermissions) {
  const std::string disk = write("disk", "");
  for (const off_t byte : {0, 100, 102, 103, 201}) {
    const ByteLock lock{disk, byte, F_RDLCK};
    EXPECT_FALSE(*is_held_for_writing(disk)) << byte;
  }
}

/// qemu-io with the image open, until this goes.
class QemuIo {
 public:
  QemuIo(const std::string& path, const char* options)
      : pipe_(::popen(fmt::format("qemu-io {} '{}' >/dev/null 2>&1", options, path).c_str(), "w")) {}
  ~QemuIo() { ::pclose(pipe_); }
  QemuIo(const QemuIo&) = delete;
  QemuIo& operator=(const QemuIo&) = delete;

 private:
  std::FILE* pipe_;
};

bool within_seconds(const std::function<bool()>& happens) {
  for (int i = 0; i < 3000; ++i) {
    if (happens()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds{10});
  }
  return false;
}

TEST_F(HeldForWriting, WhatAQemuHasOpenForWritingIs) {
  const std::string disk = create("disk.qcow2");
  {
    const QemuIo writer{disk, "-f qcow2"};
    EXPECT_TRUE(within_seconds([&] { return *is_held_for_writing(disk); }));
    EXPECT_EQ(users_of(disk).size(), 1u);
  }
  EXPECT_FALSE(*is_held_for_writing(disk));
  const QemuIo reader{disk, "-r -f qcow2"};
  EXPECT_TRUE(within_seconds([&] { return !users_of(disk).empty(); }));
  EXPECT_FALSE(*is_held_for_writing(disk));
}

TEST_F(ImageFile, ItsUsersAreOtherProcesses) {
  const std::string disk = write("disk", std::string(4096, '\0'));
  const auto ours = open_file(disk, O_RDONLY);
  EXPECT_THAT(users_of(disk), IsEmpty());
  EXPECT_THAT(users_of(path("none")), IsEmpty());
  const pid_t child = ::fork();
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::pause();
    ::_exit(0);
  }
  ASSERT_GT(child, 0);
  EXPECT_THAT(users_of(disk), ElementsAre(child));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_THAT(users_of(disk), IsEmpty());
}

TEST_F(ImageFile, ExistsWhenSomethingIsThere) {
  EXPECT_TRUE(file_exists(write("disk", "")));
  EXPECT_FALSE(file_exists(path("none")));
  fs::create_symlink("none", path("dangling"));
  EXPECT_FALSE(file_exists(path("dangling")));
}

TEST_F(ImageFile, NamesAreMadeDurableWhereThatIsPossible) {
  sync_folder_of(write("disk", ""));
  sync_folder_of("/vmsieve/no/such/folder/disk");
}

// ---- names of overlays -------------------------------------------------------------

constexpr const char* kId = "0123456789abcdef";

TEST(OverlayPath, IsBesideTheImage) {
  EXPECT_EQ(overlay_path("/images/disk.qcow2", "", kId, ""), "/images/disk.vmsieve-0123456789abcdef.qcow2");
}

TEST(OverlayPath, IsInTheFolderThatIsGiven) {
  EXPECT_EQ(overlay_path("/images/disk.qcow2", "/overlays", kId, ""),
            "/overlays/disk.vmsieve-0123456789abcdef.qcow2");
  EXPECT_EQ(overlay_path("/dev/vg0/data", "/overlays", kId, ""),
            "/overlays/data.vmsieve-0123456789abcdef.qcow2");
}

TEST(OverlayPath, HasANumberThatTellsSeveralApart) {
  EXPECT_EQ(overlay_path("/images/disk.qcow2", "", kId, "7"),
            "/images/disk.vmsieve-0123456789abcdef.7.qcow2");
}

TEST(OverlayPath, DoesNotGrowWithTheChain) {
  const std::string first = overlay_path("/images/disk.qcow2", "", "aaaaaaaaaaaaaaaa", "");
  const std::string second = overlay_path(first, "", kId, "");
  EXPECT_EQ(second, "/images/disk.vmsieve-0123456789abcdef.qcow2");
  EXPECT_EQ(overlay_path(overlay_path(second, "", "aaaaaaaaaaaaaaaa", "1.2"), "", kId, ""), second);
}

TEST(OverlayPath, OnlyTheSuffixOfAnImageGoes) {
  const auto stem = [](const std::string& name) {
    const std::string path = overlay_path("/i/" + name, "", kId, "");
    const std::string end = fmt::format(".vmsieve-{}.qcow2", kId);
    EXPECT_TRUE(path.ends_with(end)) << path;
    return path.substr(3, path.size() - 3 - end.size());
  };
  EXPECT_EQ(stem("disk"), "disk");
  EXPECT_EQ(stem("disk.raw"), "disk");
  EXPECT_EQ(stem("disk.img"), "disk");
  EXPECT_EQ(stem("disk.qcow2"), "disk");
  EXPECT_EQ(stem("disk.v2.0"), "disk.v2.0");
  EXPECT_EQ(stem("disk.img.qcow2"), "disk.img");
  EXPECT_EQ(stem(".qcow2"), ".qcow2");
  EXPECT_EQ(stem(".vmsieve-x"), ".vmsieve-x");
  EXPECT_EQ(stem("a, b\xff.qcow2"), "a, b\xff");
}

TEST(OverlayPath, MarksOfFoldersAreLeft) {
  EXPECT_EQ(overlay_path("/a.vmsieve-b/disk.raw", "", kId, ""),
            "/a.vmsieve-b/disk.vmsieve-0123456789abcdef.qcow2");
}

TEST(CheckpointInName, IsTheOneTheOverlayWasMadeFor) {
  for (const char* number : {"", "7", "1a2b3c4d.1"})
    EXPECT_EQ(checkpoint_in_name(overlay_path("/images/disk.v2.qcow2", "", kId, number)), kId);
  EXPECT_EQ(checkpoint_in_name(overlay_path("/i/.vmsieve-x", "", kId, "")), kId);
}

TEST(CheckpointInName, OtherFilesHaveNone) {
  for (const char* path : {"/disk.qcow2", "/disk.vmsieve-", "/disk.vmsieve-0123.qcow2",
                           "/disk.vmsieve-0123456789abcdeg.qcow2", "/a.vmsieve-0123456789abcdef/disk.qcow2"})
    EXPECT_EQ(checkpoint_in_name(path), "") << path;
}

}  // namespace
}  // namespace vmsieve
