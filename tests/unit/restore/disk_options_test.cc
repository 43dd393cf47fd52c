// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "vmsieve/restore/command_line.h"

namespace vmsieve {
namespace {

using ::testing::ElementsAre;
using Json = nlohmann::json;
using Strings = std::vector<std::string>;

constexpr const char* kImage = "/images/web.qcow2";
constexpr const char* kOverlay = "/overlays/new.qcow2";

/// The arguments with the overlay in place of the first image of the chain that they name; empty when they
/// name none.
Strings replaced(const Strings& arguments, const Strings& chain = {kImage},
                 const std::string& overlay = kOverlay, const std::string& working_directory = "/run") {
  auto line = QemuCommandLine::parse(arguments);
  EXPECT_TRUE(line.ok());
  const bool named = line->replace_image(chain, overlay, working_directory);
  if (!named) EXPECT_EQ(line->arguments(), arguments);
  return named ? line->arguments() : Strings{};
}

/// The value of an option by itself; "" when it does not name the image.
std::string replaced_in(const std::string& option, const std::string& value, const Strings& chain = {kImage},
                        const std::string& overlay = kOverlay) {
  const Strings arguments = replaced({"-" + option, value}, chain, overlay);
  return arguments.empty() ? "" : arguments.back();
}

Json json_in(const std::string& option, const std::string& value) {
  return Json::parse(replaced_in(option, value), nullptr, false);
}

// ---- -drive ------------------------------------------------------------------

TEST(ReplaceImage, DriveKeepsWhatIsNoPartOfTheImage) {
  EXPECT_EQ(
      replaced_in("drive",
                  "id=d,if=virtio,file=/images/web.qcow2,format=qcow2,cache=none,aio=native,discard=unmap,"
                  "detect-zeroes=unmap,node-name=top,werror=stop"),
      "id=d,if=virtio,cache=none,aio=native,discard=unmap,detect-zeroes=unmap,node-name=top,werror=stop,"
      "file=/overlays/new.qcow2,format=qcow2");
}

TEST(ReplaceImage, DriveOfARawImageBecomesOneOfAnOverlay) {
  EXPECT_EQ(replaced_in("drive", "file=/images/web.qcow2,format=raw,if=virtio"),
            "if=virtio,file=/overlays/new.qcow2,format=qcow2");
  EXPECT_EQ(replaced_in("drive", "file=/images/web.qcow2"), "file=/overlays/new.qcow2,format=qcow2");
}

TEST(ReplaceImage, DriveByNestedKeys) {
  EXPECT_EQ(
      replaced_in("drive",
                  "if=none,driver=qcow2,file.driver=file,file.filename=/images/web.qcow2,file.locking=off,"
                  "cache.direct=on"),
      "if=none,cache.direct=on,file=/overlays/new.qcow2,format=qcow2");
}

TEST(ReplaceImage, DriveWithCommasInItsPaths) {
  EXPECT_EQ(replaced_in("drive", "file=/images/a,,b,,,,c.qcow2,serial=x,,y,if=ide", {"/images/a,b,,c.qcow2"},
                        "/overlays/d,e,,f.qcow2"),
            "serial=x,,y,if=ide,file=/overlays/d,,e,,,,f.qcow2,format=qcow2");
}

TEST(ReplaceImage, DriveWithThePrefixOfAFile) {
  EXPECT_EQ(replaced_in("drive", "file=file:/images/web.qcow2"), "file=/overlays/new.qcow2,format=qcow2");
}

TEST(ReplaceImage, DriveForgetsWhatTheOldImageWasBackedBy) {
  // QEMU would put it under the overlay, in place of the image.
  EXPECT_EQ(replaced_in("drive",
                        "file=/images/web.qcow2,backing.driver=raw,backing.file.filename=/images/base.raw,"
                        "if=virtio"),
            "if=virtio,file=/overlays/new.qcow2,format=qcow2");
  EXPECT_EQ(replaced_in("drive", "file=/images/web.qcow2,backing=base,if=virtio"),
            "if=virtio,file=/overlays/new.qcow2,format=qcow2");
}

TEST(ReplaceImage, DriveForgetsWhatOnlyTheOldFormatKnows) {
  EXPECT_EQ(replaced_in("drive",
                        "file=/images/web.qcow2,lazy-refcounts=on,l2-cache-size=1M,cache-clean-interval=9,"
                        "overlap-check=all,overlap-check.template=all,pass-discard-request=off,if=virtio"),
            "if=virtio,file=/overlays/new.qcow2,format=qcow2");
  EXPECT_EQ(replaced_in("drive", "file=/images/web.qcow2,format=raw,size=4096,if=virtio"),
            "if=virtio,file=/overlays/new.qcow2,format=qcow2");
}

TEST(ReplaceImage, DriveOfAnotherImageStays) {
  for (const char* value : {"file=/images/web.qcow", "file=/images/web.qcow2.old", "file=web.qcow2",
                            "if=none", "id=/images/web.qcow2", "file=", "file=nbd:/images/web.qcow2",
                            "backing.file.filename=/images/web.qcow2,file=/other"})
    EXPECT_EQ(replaced_in("drive", value), "") << value;
}

// ---- options that are a path ----------------------------------------------------

TEST(ReplaceImage, OptionsWhoseValueIsThePath) {
  for (const char* option :
       {"-hda", "-hdb", "-hdc", "-hdd", "-sd", "-mtdblock", "-pflash", "-fda", "-fdb", "--hda"})
    EXPECT_EQ(replaced({option, kImage}).back(), kOverlay) << option;
}

TEST(ReplaceImage, ABareArgument) {
  EXPECT_THAT(replaced({"-m", "64", kImage, "-S"}), ElementsAre("-m", "64", kOverlay, "-S"));
}

TEST(ReplaceImage, SuchAPathIsWithoutDoubledCommas) {
  EXPECT_THAT(replaced({"-hda", "/images/a,b"}, {"/images/a,b"}, "/o,p"), ElementsAre("-hda", "/o,p"));
  EXPECT_THAT(replaced({"-hda", "/images/a,,b"}, {"/images/a,b"}), ElementsAre());
}

TEST(ReplaceImage, WhatIsNoDiskStays) {
  for (const char* option :
       {"-cdrom", "-kernel", "-initrd", "-bios", "-device", "-serial", "-name", "-newer"})
    EXPECT_THAT(replaced({option, kImage}), ElementsAre()) << option;
}

// ---- -blockdev -------------------------------------------------------------------

TEST(ReplaceImage, NestedBlockdevInPairs) {
  EXPECT_EQ(
      replaced_in("blockdev",
                  "driver=qcow2,node-name=d,discard=unmap,detect-zeroes=unmap,read-only=off,cache.direct=on,"
                  "cache.no-flush=off,lazy-refcounts=on,l2-cache-size=1M,backing.driver=raw,"
                  "backing.file.driver=file,backing.file.filename=/images/base,file.driver=file,"
                  "file.filename=/images/web.qcow2,file.aio=native,file.locking=off,"
                  "file.cache.direct=on,file.x-check-cache-dropped=on,file.node-name=f"),
      "cache.direct=on,cache.no-flush=off,detect-zeroes=unmap,discard=unmap,driver=qcow2,file.aio=native,"
      "file.cache.direct=on,file.driver=file,file.filename=/overlays/new.qcow2,file.locking=off,"
      "file.node-name=f,node-name=d,read-only=off");
}

TEST(ReplaceImage, NestedBlockdevWithItsDriverImplied) {
  EXPECT_EQ(
      replaced_in("blockdev", "raw,node-name=d,file.driver=host_device,file.filename=/images/web.qcow2"),
      "driver=qcow2,file.driver=file,file.filename=/overlays/new.qcow2,node-name=d");
}

TEST(ReplaceImage, NestedBlockdevInJson) {
  EXPECT_EQ(json_in("blockdev", R"({"driver":"raw","node-name":"d","discard":"unmap","size":4096,
                                    "cache":{"direct":true,"no-flush":false},"read-only":false,
                                    "file":{"driver":"host_device","filename":"/images/web.qcow2",
                                            "node-name":"f","aio":"io_uring","cache":{"direct":true}}})"),
            Json::parse(R"({"driver":"qcow2","node-name":"d","discard":"unmap",
                            "cache":{"direct":true,"no-flush":false},"read-only":false,
                            "file":{"driver":"file","filename":"/overlays/new.qcow2","node-name":"f",
                                    "aio":"io_uring","cache":{"direct":true}}})"));
}

TEST(ReplaceImage, BlockdevWithCommasInItsPaths) {
  EXPECT_EQ(replaced_in("blockdev", "driver=raw,node-name=d,file.driver=file,file.filename=/images/a,,b",
                        {"/images/a,b"}, "/o,,p"),
            "driver=qcow2,file.driver=file,file.filename=/o,,,,p,node-name=d");
  EXPECT_EQ(replaced_in("blockdev", R"({"driver":"file","node-name":"d","filename":"/images/a,b"})",
                        {"/images/a,b"}, "/o,\"p"),
            R"({"driver":"qcow2","file":{"driver":"file","filename":"/o,\"p"},"node-name":"d"})");
}

TEST(ReplaceImage, AFileNodeWithAFormatOverIt) {
  EXPECT_THAT(
      replaced({"-blockdev", "driver=file,node-name=f,filename=/images/web.qcow2,aio=native,cache.direct=on",
                "-blockdev", "driver=raw,node-name=d,file=f,size=4096,discard=unmap,cache.direct=on",
                "-device", "virtio-blk-pci,drive=d"}),
      ElementsAre("-blockdev",
                  "aio=native,cache.direct=on,driver=file,filename=/overlays/new.qcow2,node-name=f",
                  "-blockdev", "cache.direct=on,discard=unmap,driver=qcow2,file=f,node-name=d", "-device",
                  "virtio-blk-pci,drive=d"));
}

TEST(ReplaceImage, AFileNodeAndItsFormatEachInItsNotation) {
  const Strings mixed =
      replaced({"-blockdev", R"({"driver":"file","node-name":"f","filename":"/images/web.qcow2",
                                                   "auto-read-only":true,"discard":"unmap"})",
                "-blockdev", "qcow2,node-name=d,file=f,backing=base,read-only=off"});
  ASSERT_EQ(mixed.size(), 4u);
  EXPECT_EQ(mixed[1],
            R"({"auto-read-only":true,"discard":"unmap","driver":"file","filename":"/overlays/new.qcow2",)"
            R"("node-name":"f"})");
  EXPECT_EQ(mixed[3], "driver=qcow2,file=f,node-name=d,read-only=off");

  const Strings other = replaced({"-blockdev", "file,node-name=f,filename=/images/web.qcow2", "-blockdev",
                                  R"({"driver":"qcow2","node-name":"d","file":"f","backing":null})"});
  ASSERT_EQ(other.size(), 4u);
  EXPECT_EQ(other[1], "driver=file,filename=/overlays/new.qcow2,node-name=f");
  EXPECT_EQ(other[3], R"({"driver":"qcow2","file":"f","node-name":"d"})");
}

TEST(ReplaceImage, AFormatBeforeItsFileNode) {
  EXPECT_THAT(replaced({"-blockdev", "qcow2,node-name=d,file=f,lazy-refcounts=on", "-blockdev",
                        "file,node-name=f,filename=/images/web.qcow2"}),
              ElementsAre("-blockdev", "driver=qcow2,file=f,node-name=d", "-blockdev",
                          "driver=file,filename=/overlays/new.qcow2,node-name=f"));
}

TEST(ReplaceImage, OnlyTheFormatOverTheFileNodeIsChanged) {
  const Strings arguments{"-blockdev", "file,node-name=g,filename=/images/other",
                          "-blockdev", "raw,node-name=e,file=g,size=4096",
                          "-blockdev", "file,node-name=f,filename=/images/web.qcow2",
                          "-blockdev", "raw,node-name=d,file=f"};
  const Strings after = replaced(arguments);
  ASSERT_EQ(after.size(), arguments.size());
  EXPECT_EQ(after[1], arguments[1]);
  EXPECT_EQ(after[3], arguments[3]);
  EXPECT_EQ(after[5], "driver=file,filename=/overlays/new.qcow2,node-name=f");
  EXPECT_EQ(after[7], "driver=qcow2,file=f,node-name=d");
}

TEST(ReplaceImage, ABareFileNodeGetsAFormatUnderItsName) {
  EXPECT_THAT(
      replaced({"-blockdev",
                "driver=host_device,node-name=d,filename=/images/web.qcow2,cache.direct=on,aio=native",
                "-device", "virtio-blk-pci,drive=d"}),
      ElementsAre("-blockdev",
                  "cache.direct=on,driver=qcow2,file.aio=native,file.cache.direct=on,file.driver=file,"
                  "file.filename=/overlays/new.qcow2,node-name=d",
                  "-device", "virtio-blk-pci,drive=d"));
  EXPECT_EQ(json_in("blockdev",
                    R"({"driver":"file","node-name":"d","filename":"/images/web.qcow2","locking":"off"})"),
            Json::parse(R"({"driver":"qcow2","node-name":"d","file":{"driver":"file",
                      "filename":"/overlays/new.qcow2","locking":"off"}})"));
}

TEST(ReplaceImage, BlockdevOfAnotherImageStays) {
  for (const char* value :
       {"driver=raw,node-name=d,file=/images/web.qcow2", "driver=nbd,node-name=d,path=/images/web.qcow2",
        "driver=file,node-name=d", "driver=file,node-name=/images/web.qcow2,filename=/other", "{", "{}", "[]",
        "", "{\"driver\":\"file\",\"filename\":7}", "{\"driver\":7,\"filename\":\"/images/web.qcow2\"}",
        "{\"driver\":\"raw\",\"file\":[\"/images/web.qcow2\"]}", "{\"file\":null}", "file.a=b,file=c",
        "driver=file,filename.x=/images/web.qcow2"})
    EXPECT_EQ(replaced_in("blockdev", value), "") << value;
}

TEST(ReplaceImage, BlockdevOfManyLevelsIsNone) {
  const auto json = [](std::size_t levels) {
    std::string value = R"({"driver":"file","filename":"/images/web.qcow2","cache":)";
    for (std::size_t i = 0; i < levels; ++i) value += R"({"a":)";
    return value + "1" + std::string(levels + 1, '}');
  };
  EXPECT_NE(replaced_in("blockdev", json(10)), "");
  EXPECT_EQ(replaced_in("blockdev", json(200000)), "");
  std::string pairs = "driver=file,filename=/images/web.qcow2,cache";
  for (int i = 0; i < 200000; ++i) pairs += ".a";
  EXPECT_EQ(replaced_in("blockdev", pairs + "=1"), "");
}

// ---- which one --------------------------------------------------------------------

TEST(ReplaceImage, AnImageThatIsNamedNowhereIsFalse) {
  EXPECT_THAT(replaced({}), ElementsAre());
  EXPECT_THAT(replaced({"-S", "-m", "64", "-drive", "file=/other", "-hda", "other", "third"}), ElementsAre());
  EXPECT_THAT(replaced({"-hda", kImage}, {}), ElementsAre());
}

TEST(ReplaceImage, TheFirstOfTheChainThatIsNamedWins) {
  const Strings arguments{"-drive", "file=/images/base,if=none,id=a", "-drive",
                          "file=/images/middle,if=none,id=b"};
  EXPECT_THAT(replaced(arguments, {"/images/top", "/images/middle", "/images/base"}),
              ElementsAre("-drive", "file=/images/base,if=none,id=a", "-drive",
                          "if=none,id=b,file=/overlays/new.qcow2,format=qcow2"));
  EXPECT_THAT(replaced(arguments, {"/images/top", "/images/base"}),
              ElementsAre("-drive", "if=none,id=a,file=/overlays/new.qcow2,format=qcow2", "-drive",
                          "file=/images/middle,if=none,id=b"));
}

TEST(ReplaceImage, OneOptionIsReplacedAtATime) {
  EXPECT_THAT(replaced({"-hda", kImage, "-hdb", kImage}), ElementsAre("-hda", kOverlay, "-hdb", kImage));
}

TEST(ReplaceImage, RelativePathsStartFromTheWorkingDirectory) {
  for (const char* path : {"web.qcow2", "./web.qcow2", "../images/web.qcow2", "/images/./web.qcow2",
                           "/images//web.qcow2", "/images/sub/../web.qcow2", "file:web.qcow2"})
    EXPECT_THAT(replaced({"-hda", path}, {kImage}, kOverlay, "/images"), ElementsAre("-hda", kOverlay))
        << path;
  EXPECT_THAT(replaced({"-hda", "web.qcow2"}, {kImage}, kOverlay, "/"), ElementsAre());
  EXPECT_THAT(replaced({"-blockdev", "file,node-name=d,filename=web.qcow2"}, {"/images/../images/web.qcow2"},
                       kOverlay, "/images"),
              ElementsAre("-blockdev",
                          "driver=qcow2,file.driver=file,file.filename=/overlays/new.qcow2,node-name=d"));
}

TEST(ReplaceImage, AllElseStaysAsItIs) {
  const Strings before{"-name", "web,debug-threads=on", "-M", "q35", "-device", R"({"driver":"virtio-rng"})"};
  const Strings behind{"-blockdev", "null-co,node-name=n", "-S", "-serial", "file:/images/web.qcow2"};
  Strings arguments = before;
  arguments.insert(arguments.end(), {"-hda", kImage});
  arguments.insert(arguments.end(), behind.begin(), behind.end());
  Strings expected = before;
  expected.insert(expected.end(), {"-hda", kOverlay});
  expected.insert(expected.end(), behind.begin(), behind.end());
  EXPECT_EQ(replaced(arguments), expected);
}

TEST(ReplaceImage, WhatWasReplacedIsFoundAgain) {
  for (const Strings& arguments :
       {Strings{"-drive", "file=/images/web.qcow2,if=virtio"}, Strings{kImage},
        Strings{"-blockdev", "file,node-name=d,filename=/images/web.qcow2"},
        Strings{"-blockdev", "file,node-name=f,filename=/images/web.qcow2", "-blockdev",
                "raw,node-name=d,file=f"},
        Strings{
            "-blockdev",
            R"({"driver":"raw","node-name":"d","file":{"driver":"file","filename":"/images/web.qcow2"}})"}}) {
    const Strings once = replaced(arguments);
    EXPECT_EQ(replaced(once, {kOverlay}), once);
    EXPECT_EQ(replaced(replaced(once, {kOverlay}, "/third"), {"/third"}, kOverlay), once);
  }
}

// ---- what was under it ---------------------------------------------------------

TEST(ReplaceImage, NodesThatOnlyTheImageHadUnderItGo) {
  EXPECT_THAT(replaced({"-blockdev", "driver=file,node-name=bf,filename=/images/base.qcow2",  //
                        "-blockdev", "driver=qcow2,node-name=b,file=bf",                      //
                        "-blockdev", "driver=file,node-name=f,filename=/images/web.qcow2",    //
                        "-blockdev", "driver=qcow2,node-name=t,file=f,backing=b",             //
                        "-device", "virtio-blk-pci,drive=t"}),
              ElementsAre("-blockdev", "driver=file,filename=/overlays/new.qcow2,node-name=f",  //
                          "-blockdev", "driver=qcow2,file=f,node-name=t",                       //
                          "-device", "virtio-blk-pci,drive=t"));
}

TEST(ReplaceImage, NodesThatOthersHaveTooStay) {
  EXPECT_THAT(
      replaced({"-blockdev", "driver=qcow2,node-name=b,file.driver=file,file.filename=/images/base.qcow2",
                "-blockdev",
                "driver=qcow2,node-name=t,backing=b,file.driver=file,file.filename=/images/web.qcow2",
                "-device", "virtio-blk-pci,drive=b"}),
      ElementsAre("-blockdev", "driver=qcow2,node-name=b,file.driver=file,file.filename=/images/base.qcow2",
                  "-blockdev", "driver=qcow2,file.driver=file,file.filename=/overlays/new.qcow2,node-name=t",
                  "-device", "virtio-blk-pci,drive=b"));
}

TEST(ReplaceImage, AnImageInAClusterHoweverItIsWritten) {
  const Strings chain = {"rbd:vms/web"};
  EXPECT_EQ(replaced_in("drive", "file=rbd:vms/web:conf=/etc/c,format=raw,if=virtio", chain),
            "if=virtio,file=/overlays/new.qcow2,format=qcow2");
  EXPECT_EQ(
      replaced_in("drive", "if=none,id=d,format=raw,file.driver=rbd,file.pool=vms,file.image=web", chain),
      "if=none,id=d,file=/overlays/new.qcow2,format=qcow2");
  EXPECT_EQ(replaced_in("drive", "file=rbd:vms/web2,if=virtio", chain), "");
  EXPECT_EQ(replaced_in("drive", "file=rbd:vms/web,if=virtio"), "");
  const Json bare = Json::parse(replaced_in(
      "blockdev", R"({"driver":"rbd","node-name":"d","pool":"vms","image":"web","cache":{"direct":true}})",
      chain));
  EXPECT_EQ(bare,
            Json({{"driver", "qcow2"},
                  {"node-name", "d"},
                  {"cache", {{"direct", true}}},
                  {"file", {{"driver", "file"}, {"filename", kOverlay}, {"cache", {{"direct", true}}}}}}));
  EXPECT_EQ(
      replaced_in("blockdev", "driver=raw,node-name=d,file.driver=rbd,file.pool=vms,file.image=web", chain),
      "driver=qcow2,file.driver=file,file.filename=/overlays/new.qcow2,node-name=d");
  EXPECT_EQ(replaced({"-blockdev", "driver=rbd,node-name=f,pool=vms,image=web", "-blockdev",
                      "driver=raw,node-name=d,file=f"},
                     chain),
            (Strings{"-blockdev", "driver=file,filename=/overlays/new.qcow2,node-name=f", "-blockdev",
                     "driver=qcow2,file=f,node-name=d"}));
}

TEST(ReplaceImage, DriveOfAFileInJson) {
  EXPECT_EQ(
      replaced_in("drive", R"(if=virtio,file=json:{"driver":"qcow2",,"file":{"driver":"file",,"filename":)"
                           R"("/images/web.qcow2"}})"),
      "if=virtio,file=/overlays/new.qcow2,format=qcow2");
}

}  // namespace
}  // namespace vmsieve
