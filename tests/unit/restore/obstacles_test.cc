// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/obstacles.h"

#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "unit/restore/firmware_guest.h"

namespace vmsieve {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using Strings = std::vector<std::string>;

class Obstacles : public ::testing::Test {
 protected:
  Strings of(const Strings& arguments) const {
    auto line = QemuCommandLine::parse(arguments);
    EXPECT_TRUE(line.ok());
    return find_obstacles(*line, folder_.path());
  }
  void make_file(const std::string& name, const std::string& text = "") const {
    std::ofstream{folder_ / name} << text;
  }
  test::Folder folder_;
};

TEST_F(Obstacles, NoneInAPlainCommandLine) {
  EXPECT_THAT(of({"-m", "64", "-netdev", "user,id=n0", "-serial", "null"}), IsEmpty());
}

TEST_F(Obstacles, MissingWorkingDirectory) {
  auto line = QemuCommandLine::parse({});
  EXPECT_THAT(find_obstacles(*line, folder_ / "gone"), ElementsAre(HasSubstr("gone is not there")));
}

TEST_F(Obstacles, MissingKernelNamesTheOption) {
  EXPECT_THAT(of({"-kernel", "vmlinuz"}),
              ElementsAre(AllOf(HasSubstr(folder_ / "vmlinuz"), HasSubstr("--set kernel=PATH"))));
}

TEST_F(Obstacles, FileBesideTheWorkingDirectoryIsFound) {
  make_file("vmlinuz");
  EXPECT_THAT(of({"-kernel", "vmlinuz"}), IsEmpty());
}

TEST_F(Obstacles, EachMissingFileOption) {
  for (const char* option : {"initrd", "dtb", "pflash", "cdrom", "hda", "hdd", "fda", "sd", "readconfig"}) {
    EXPECT_THAT(of({std::string{"-"} + option, "gone"}),
                ElementsAre(HasSubstr(std::string{"--set "} + option + "=PATH")))
        << option;
  }
}

TEST_F(Obstacles, FirmwareByPlainNameIsSearchedByQemu) {
  EXPECT_THAT(of({"-bios", "bios-256k.bin"}), IsEmpty());
  EXPECT_THAT(of({"-bios", "./bios.bin"}), ElementsAre(HasSubstr("--set bios=PATH")));
}

TEST_F(Obstacles, ListOfInitrdsIsLeftToQemu) { EXPECT_THAT(of({"-initrd", "a,b"}), IsEmpty()); }

TEST_F(Obstacles, MissingBareDisk) {
  EXPECT_THAT(of({"disk.img"}), ElementsAre(HasSubstr("--set hda=PATH")));
}

TEST_F(Obstacles, MissingDriveWithId) {
  EXPECT_THAT(of({"-drive", "file=a,,b.img,id=d0"}),
              ElementsAre(AllOf(HasSubstr("a,b.img is not there"), HasSubstr("--set drive=...,id=d0"))));
}

TEST_F(Obstacles, DriveThatIsNoFile) {
  EXPECT_THAT(of({"-drive", "file=nbd://host/x", "-drive", "file=json:{},if=none", "-drive", "if=none,id=x"}),
              IsEmpty());
}

TEST_F(Obstacles, MissingBlockDevice) {
  EXPECT_THAT(of({"-blockdev", "driver=file,node-name=f,filename=x.img"}),
              ElementsAre(HasSubstr("--set blockdev=...,node-name=f")));
}

TEST_F(Obstacles, MissingBlockDeviceInJson) {
  EXPECT_THAT(
      of({"-blockdev", R"({"driver":"qcow2","node-name":"f","file":{"driver":"file","filename":"x"}})"}),
      ElementsAre(HasSubstr("--set blockdev=...,node-name=f")));
}

TEST_F(Obstacles, OneOfSeveralAcpiTables) {
  make_file("a.aml");
  EXPECT_THAT(of({"-acpitable", "data=a.aml:b.aml"}), ElementsAre(HasSubstr("b.aml is not there")));
}

TEST_F(Obstacles, InheritedDescriptors) {
  for (const Strings& arguments :
       {Strings{"-netdev", "tap,id=n0,fd=27"}, Strings{"-netdev", "tap,id=n0,fds=3:4"},
        Strings{"-netdev", "user,id=n0,vhostfd=5"},
        Strings{"-netdev", "stream,id=n0,addr.type=fd,addr.str=7"},
        Strings{"-netdev", R"({"type":"tap","fd":"27","id":"n0"})"}}) {
    EXPECT_THAT(of(arguments), ElementsAre(HasSubstr("--set netdev=...,id=n0"))) << arguments[1];
  }
}

TEST_F(Obstacles, FirmwareFileIsNoDescriptor) {
  make_file("OVMF.fd");
  EXPECT_THAT(of({"-bios", "OVMF.fd"}), IsEmpty());
}

TEST_F(Obstacles, DescriptorSets) {
  EXPECT_THAT(of({"-add-fd", "set=1,fd=3"}), ElementsAre(HasSubstr("--set add-fd=...")));
  EXPECT_THAT(of({"-drive", "file=/dev/fdset/1,id=d0"}), ElementsAre(HasSubstr("descriptor")));
  EXPECT_THAT(of({"-kernel", "/dev/fdset/1"}), ElementsAre(HasSubstr("descriptor")));
}

TEST_F(Obstacles, IncomingDescriptor) {
  EXPECT_THAT(of({"-incoming", "fd:7"}), ElementsAre(HasSubstr("descriptor")));
}

TEST_F(Obstacles, MemoryFileIsMadeByQemu) {
  EXPECT_THAT(of({"-object", "memory-backend-file,id=m,mem-path=ram.img,size=64M"}), IsEmpty());
}

TEST_F(Obstacles, MemoryFileInAMissingFolder) {
  EXPECT_THAT(of({"-object", "memory-backend-file,id=m,mem-path=gone/ram.img,size=64M"}),
              ElementsAre(HasSubstr("--set object=...,id=m")));
}

TEST_F(Obstacles, ReadconfigWithAMonitor) {
  make_file("c.cfg", "[mon \"m\"]\n  chardev = \"c\"\n");
  EXPECT_THAT(of({"-readconfig", "c.cfg"}), ElementsAre(HasSubstr("defines a monitor")));
}

TEST_F(Obstacles, ReadconfigWithoutAMonitor) {
  make_file("c.cfg", "[device]\n  driver = \"virtio-rng\"\n");
  EXPECT_THAT(of({"-readconfig", "c.cfg"}), IsEmpty());
}

TEST_F(Obstacles, SocketThatSomebodyListensOn) {
  const std::string path = folder_ / "s";
  const UniqueFd listener{::socket(AF_UNIX, SOCK_STREAM, 0)};
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  const Strings chardev{"-chardev", "socket,id=c,path=s,server=on,wait=off"};
  EXPECT_THAT(of(chardev), IsEmpty());

  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(listener.get(), 1), 0);
  EXPECT_THAT(of(chardev), ElementsAre(HasSubstr("--set chardev=...,id=c")));
  EXPECT_THAT(of({"-serial", "unix:s,server"}), ElementsAre(HasSubstr("--set serial=...")));
  EXPECT_THAT(of({"-vnc", "unix:s"}), ElementsAre(HasSubstr("--set vnc=...")));
  EXPECT_THAT(of({"-serial", "unix:s"}), IsEmpty()) << "a client may connect";
}

TEST_F(Obstacles, FileThatSomebodyWritesTo) {
  const Strings appended{"-chardev", "file,id=c,path=log,append=on"};
  const std::vector<Strings> emptied = {{"-serial", "file:log"},
                                        {"-chardev", "file,id=c,path=log"},
                                        {"-chardev", "null,id=c,logfile=log"},
                                        {"-D", "log"}};
  make_file("log", "words of the first VM");
  for (const Strings& arguments : emptied) EXPECT_THAT(of(arguments), IsEmpty()) << arguments[1];
  const UniqueFd reader{::open((folder_ / "log").c_str(), O_RDONLY)};
  for (const Strings& arguments : emptied) EXPECT_THAT(of(arguments), IsEmpty()) << arguments[1];

  const UniqueFd writer{::open((folder_ / "log").c_str(), O_WRONLY)};
  ASSERT_TRUE(writer.valid());
  const std::string process = fmt::format("process {} writes to", ::getpid());
  for (const Strings& arguments : emptied) {
    EXPECT_THAT(of(arguments), ElementsAre(AllOf(HasSubstr(process), HasSubstr("--set ")))) << arguments[1];
  }
  EXPECT_THAT(of(appended), IsEmpty());
  EXPECT_THAT(of({"-serial", "file:other"}), IsEmpty());
}

TEST(ListensOn, OnlyListeningSocketsOfThatPath) {
  const char* text =
      "Num       RefCount Protocol Flags    Type St Inode Path\n"
      "0000: 00000002 00000000 00010000 0001 01 100 /run/listening\n"
      "0000: 00000003 00000000 00000000 0001 03 101 /run/connected\n";
  EXPECT_TRUE(listens_on(text, "/run/listening"));
  EXPECT_FALSE(listens_on(text, "/run/connected"));
  EXPECT_FALSE(listens_on(text, "/run/other"));
}

TEST(ResolvePath, RelativeToTheWorkingDirectory) {
  EXPECT_EQ(resolve_path("a", "/w"), "/w/a");
  EXPECT_EQ(resolve_path("a", "/"), "/a");
  EXPECT_EQ(resolve_path("/a", "/w"), "/a");
}

}  // namespace
}  // namespace vmsieve
