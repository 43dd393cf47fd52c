// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/restore/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace vmsieve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using Strings = std::vector<std::string>;

QemuCommandLine parsed(const Strings& arguments) {
  auto line = QemuCommandLine::parse(arguments);
  EXPECT_TRUE(line.ok());
  return std::move(*line);
}

Strings stripped(const Strings& arguments) {
  QemuCommandLine line = parsed(arguments);
  line.strip_for_restore();
  return line.arguments();
}

Strings pinned(const Strings& arguments, const std::string& type = "pc-q35-7.2") {
  QemuCommandLine line = parsed(arguments);
  line.pin_machine(type);
  return line.arguments();
}

Strings with_accelerator(const Strings& arguments, const std::string& accelerator) {
  QemuCommandLine line = parsed(arguments);
  line.pin_accelerator(accelerator);
  return line.arguments();
}

Strings with_set(const Strings& arguments, const std::string& assignment) {
  QemuCommandLine line = parsed(arguments);
  const auto set = line.set(assignment);
  EXPECT_TRUE(set.ok());
  return line.arguments();
}

// ---- taking apart ----------------------------------------------------------

TEST(CommandLineParse, KnownFlagTakesNoArgument) {
  EXPECT_THAT(parsed({"-snapshot", "disk.img"}).options(),
              ElementsAre(QemuOption{"snapshot", {}}, QemuOption{"", "disk.img"}));
}

TEST(CommandLineParse, KnownOptionTakesWhateverFollows) {
  EXPECT_THAT(parsed({"-append", "-v"}).options(), ElementsAre(QemuOption{"append", "-v"}));
}

TEST(CommandLineParse, UnknownOptionTakesWhatIsNoOption) {
  EXPECT_THAT(parsed({"-newer", "value"}).options(), ElementsAre(QemuOption{"newer", "value"}));
}

TEST(CommandLineParse, UnknownOptionBeforeAnOptionIsAFlag) {
  EXPECT_THAT(parsed({"-newer", "-m", "64"}).options(),
              ElementsAre(QemuOption{"newer", {}}, QemuOption{"m", "64"}));
}

TEST(CommandLineParse, UnknownOptionAtTheEndIsAFlag) {
  EXPECT_THAT(parsed({"-newer"}).options(), ElementsAre(QemuOption{"newer", {}}));
}

TEST(CommandLineParse, TwoDashesAreOne) {
  EXPECT_THAT(parsed({"--kernel", "vmlinuz"}).options(), ElementsAre(QemuOption{"kernel", "vmlinuz"}));
}

TEST(CommandLineParse, EmptyArgumentIsKept) {
  EXPECT_THAT(parsed({"-cdrom", ""}).options(), ElementsAre(QemuOption{"cdrom", ""}));
}

TEST(CommandLineParse, LoneDashesAreRefused) {
  EXPECT_FALSE(QemuCommandLine::parse({"-"}).ok());
  EXPECT_FALSE(QemuCommandLine::parse({"--"}).ok());
  EXPECT_FALSE(QemuCommandLine::parse({"---m", "64"}).ok());
}

TEST(CommandLineParse, MissingArgumentIsRefused) {
  const auto line = QemuCommandLine::parse({"-m"});
  ASSERT_FALSE(line.ok());
  EXPECT_EQ(line.error().kind(), ErrorKind::kUnsupported);
}

TEST(CommandLineParse, ArgumentsComeBackAsTheyWere) {
  const Strings arguments{"-name", "a,,b",  "-M",     "q35",       "-device", R"({"driver":"virtio-rng"})",
                          "-S",    "d.img", "-newer", "some=thing"};
  EXPECT_EQ(parsed(arguments).arguments(), arguments);
}

// ---- replacing and removing ------------------------------------------------

TEST(CommandLineReplace, FirstIsReplacedAndOthersGo) {
  QemuCommandLine line = parsed({"-serial", "a", "-m", "64", "-serial", "b"});
  line.replace("serial", "c");
  EXPECT_THAT(line.arguments(), ElementsAre("-serial", "c", "-m", "64"));
}

TEST(CommandLineReplace, MissingIsAdded) {
  QemuCommandLine line = parsed({"-m", "64"});
  line.replace("S", std::nullopt);
  EXPECT_THAT(line.arguments(), ElementsAre("-m", "64", "-S"));
}

TEST(CommandLineReplace, BothSpellingsOfAnOptionAreOne) {
  QemuCommandLine line = parsed({"-M", "pc"});
  line.replace("machine", "q35");
  EXPECT_THAT(line.arguments(), ElementsAre("-machine", "q35"));
}

TEST(CommandLineRemove, BareArgumentsStay) {
  QemuCommandLine line = parsed({"disk.img", "-m", "64"});
  line.remove("m");
  EXPECT_THAT(line.arguments(), ElementsAre("disk.img"));
}

// ---- machine ---------------------------------------------------------------

TEST(CommandLinePinMachine, AliasIsReplaced) {
  EXPECT_THAT(pinned({"-machine", "q35"}), ElementsAre("-machine", "pc-q35-7.2"));
}

TEST(CommandLinePinMachine, ShortSpelling) {
  EXPECT_THAT(pinned({"-M", "q35,kernel-irqchip=off"}),
              ElementsAre("-machine", "pc-q35-7.2,kernel-irqchip=off"));
}

TEST(CommandLinePinMachine, TypeGivenByKey) {
  EXPECT_THAT(pinned({"-machine", "smm=off,type=q35"}), ElementsAre("-machine", "pc-q35-7.2,smm=off"));
}

TEST(CommandLinePinMachine, SeveralAreMergedAndTheLastWins) {
  EXPECT_THAT(pinned({"-machine", "q35,smm=on", "-m", "64", "-machine", "smm=off,usb=on"}),
              ElementsAre("-machine", "pc-q35-7.2,smm=off,usb=on", "-m", "64"));
}

TEST(CommandLinePinMachine, DoubledCommasStay) {
  EXPECT_THAT(pinned({"-machine", "q35,dumpdtb=a,,b"}), ElementsAre("-machine", "pc-q35-7.2,dumpdtb=a,,b"));
}

TEST(CommandLinePinMachine, MissingIsAdded) {
  EXPECT_THAT(pinned({"-m", "64"}), ElementsAre("-m", "64", "-machine", "pc-q35-7.2"));
}

// ---- accelerator -----------------------------------------------------------

TEST(CommandLinePinAccelerator, OfSeveralOptionsTheRecordedOneStays) {
  EXPECT_THAT(with_accelerator({"-accel", "kvm", "-accel", "tcg,thread=multi"}, "tcg"),
              ElementsAre("-accel", "tcg,thread=multi"));
}

TEST(CommandLinePinAccelerator, OfAMachineListTheRecordedOneStays) {
  EXPECT_THAT(with_accelerator({"-machine", "q35,accel=kvm:tcg"}, "tcg"),
              ElementsAre("-machine", "q35,accel=tcg"));
}

TEST(CommandLinePinAccelerator, AnotherAloneIsLeft) {
  EXPECT_THAT(with_accelerator({"-accel", "xen"}, "tcg"), ElementsAre("-accel", "xen"));
  EXPECT_THAT(with_accelerator({"-enable-kvm"}, "kvm"), ElementsAre("-enable-kvm"));
}

TEST(CommandLinePinAccelerator, WhereNoneIsNamedItIsAdded) {
  EXPECT_THAT(with_accelerator({"-m", "64"}, "kvm"), ElementsAre("-m", "64", "-accel", "kvm"));
}

// ---- --set -----------------------------------------------------------------

TEST(CommandLineSet, ReplacesAllOfAName) {
  EXPECT_THAT(with_set({"-serial", "stdio", "-serial", "null"}, "serial=file:OUT"),
              ElementsAre("-serial", "file:OUT"));
}

TEST(CommandLineSet, ReplacesTheOneOfTheSameId) {
  EXPECT_THAT(with_set({"-netdev", "tap,id=n0,fd=3", "-netdev", "user,id=n1"}, "netdev=user,id=n0"),
              ElementsAre("-netdev", "user,id=n0", "-netdev", "user,id=n1"));
}

TEST(CommandLineSet, ReplacesAJsonOptionOfTheSameId) {
  EXPECT_THAT(with_set({"-netdev", R"({"type":"tap","id":"n0","fd":"3"})"}, "netdev=user,id=n0"),
              ElementsAre("-netdev", "user,id=n0"));
}

TEST(CommandLineSet, ReplacesTheBlockDeviceOfTheSameNodeName) {
  EXPECT_THAT(with_set({"-blockdev", "file,node-name=f,filename=a"}, "blockdev=file,node-name=f,filename=b"),
              ElementsAre("-blockdev", "file,node-name=f,filename=b"));
}

TEST(CommandLineSet, AddsANewId) {
  EXPECT_THAT(with_set({"-netdev", "user,id=n0"}, "netdev=user,id=n1"),
              ElementsAre("-netdev", "user,id=n0", "-netdev", "user,id=n1"));
}

TEST(CommandLineSet, MachinePropertiesAreMerged) {
  EXPECT_THAT(with_set({"-machine", "pc-q35-7.2,smm=on"}, "machine=smm=off"),
              ElementsAre("-machine", "pc-q35-7.2,smm=off"));
}

TEST(CommandLineSet, MachineTypeIsReplaced) {
  EXPECT_THAT(with_set({"-machine", "pc-q35-7.2,smm=on"}, "machine=pc-q35-8.0"),
              ElementsAre("-machine", "pc-q35-8.0,smm=on"));
}

TEST(CommandLineSet, AcceleratorReplacesEverySpelling) {
  EXPECT_THAT(with_set({"-machine", "q35,accel=kvm", "-enable-kvm", "-accel", "kvm"}, "accel=tcg"),
              ElementsAre("-machine", "q35", "-accel", "tcg"));
}

TEST(CommandLineSet, AcceleratorEmptiesAMachineOptionOfItsOwn) {
  EXPECT_THAT(with_set({"-machine", "accel=kvm"}, "accel=tcg"), ElementsAre("-accel", "tcg"));
}

TEST(CommandLineSet, FlagIsAdded) { EXPECT_THAT(with_set({}, "snapshot"), ElementsAre("-snapshot")); }

TEST(CommandLineSet, ValueMayHoldEqualsSigns) {
  EXPECT_THAT(with_set({}, "append=root=/dev/vda"), ElementsAre("-append", "root=/dev/vda"));
}

TEST(CommandLineSet, UnknownOptionsAreTaken) {
  EXPECT_THAT(with_set({}, "newer=x"), ElementsAre("-newer", "x"));
}

TEST(CommandLineSet, WrongOnesAreUsageErrors) {
  QemuCommandLine line = parsed({});
  for (const char* wrong : {"", "=x", "-serial=null", "no option=1", "snapshot=on", "kernel"}) {
    const auto set = line.set(wrong);
    ASSERT_FALSE(set.ok()) << wrong;
    EXPECT_EQ(set.error().kind(), ErrorKind::kUsage) << wrong;
  }
  EXPECT_THAT(line.arguments(), IsEmpty());
}

// ---- what a restore does not replay ----------------------------------------

TEST(CommandLineStrip, MonitorsInTheirOwnOptions) {
  EXPECT_THAT(stripped({"-qmp", "unix:a,server", "-qmp-pretty", "tcp::1", "-monitor", "vc", "-m", "64"}),
              ElementsAre("-m", "64"));
}

TEST(CommandLineStrip, MonitorWithItsCharacterDevice) {
  EXPECT_THAT(stripped({"-chardev", "socket,id=m,path=q", "-mon", "chardev=m,mode=control"}), IsEmpty());
}

TEST(CommandLineStrip, MonitorByImpliedKey) {
  EXPECT_THAT(stripped({"-chardev", "socket,id=m,path=q", "-mon", "m,mode=control"}), IsEmpty());
}

TEST(CommandLineStrip, MonitorThatNamesACharacterDevice) {
  EXPECT_THAT(stripped({"-chardev", "socket,id=m,path=q", "-qmp", "chardev:m"}), IsEmpty());
}

TEST(CommandLineStrip, CharacterDeviceSharedWithASerialPortStays) {
  EXPECT_THAT(stripped({"-chardev", "socket,id=m,path=q,mux=on", "-mon", "m", "-serial", "chardev:m"}),
              ElementsAre("-chardev", "socket,id=m,path=q,mux=on", "-serial", "chardev:m"));
}

TEST(CommandLineStrip, CharacterDeviceSharedWithADeviceStays) {
  EXPECT_THAT(
      stripped({"-chardev", "pty,id=m,mux=on", "-mon", "m", "-device", R"({"driver":"x","chardev":"m"})"}),
      ElementsAre("-chardev", "pty,id=m,mux=on", "-device", R"({"driver":"x","chardev":"m"})"));
}

TEST(CommandLineStrip, OtherCharacterDevicesStay) {
  EXPECT_THAT(stripped({"-chardev", "pty,id=other"}), ElementsAre("-chardev", "pty,id=other"));
}

TEST(CommandLineStrip, StartAndLifeOfTheProcess) {
  EXPECT_THAT(stripped({"-S", "-incoming", "tcp:0:4444", "-loadvm", "x", "-daemonize", "-pidfile", "p", "-D",
                        "log", "--preconfig", "-dump-vmstate", "f"}),
              IsEmpty());
}

TEST(CommandLineStrip, SerialOnTheTerminalGoesNowhere) {
  EXPECT_THAT(stripped({"-serial", "stdio"}), ElementsAre("-serial", "null"));
}

TEST(CommandLineStrip, SerialSharedWithTheMonitorGoesNowhere) {
  EXPECT_THAT(stripped({"-serial", "mon:stdio"}), ElementsAre("-serial", "null"));
}

TEST(CommandLineStrip, SerialSharedWithAMonitorElsewhereStaysThere) {
  EXPECT_THAT(stripped({"-serial", "mon:telnet::1,server"}), ElementsAre("-serial", "telnet::1,server"));
}

TEST(CommandLineStrip, CharacterDeviceOnTheTerminalGoesNowhere) {
  EXPECT_THAT(stripped({"-chardev", "stdio,id=c,mux=on,signal=off", "-mon", "c", "-serial", "chardev:c"}),
              ElementsAre("-chardev", "null,id=c,mux=on", "-serial", "chardev:c"));
}

TEST(CommandLineStrip, NographicKeepsItsSerialPort) {
  EXPECT_THAT(stripped({"-nographic"}), ElementsAre("-nographic", "-serial", "null"));
}

TEST(CommandLineStrip, NographicWithSerialOptionGetsNoSecondPort) {
  EXPECT_THAT(stripped({"-nographic", "-serial", "file:x"}), ElementsAre("-nographic", "-serial", "file:x"));
}

TEST(CommandLineStrip, NographicWithoutDefaultPortGetsNone) {
  EXPECT_THAT(stripped({"-nographic", "-nodefaults"}), ElementsAre("-nographic", "-nodefaults"));
  EXPECT_THAT(stripped({"-nographic", "-device", "isa-serial,chardev=c"}),
              ElementsAre("-nographic", "-device", "isa-serial,chardev=c"));
  EXPECT_THAT(stripped({"-nographic", "-global", "isa-serial.index=1"}),
              ElementsAre("-nographic", "-global", "isa-serial.index=1"));
}

TEST(CommandLineStrip, TextDisplayIsTurnedOff) {
  EXPECT_THAT(stripped({"-display", "curses,charset=CP437"}), ElementsAre("-display", "none"));
  EXPECT_THAT(stripped({"-curses"}), ElementsAre("-display", "none"));
}

TEST(CommandLineStrip, StrippingTwiceChangesNothing) {
  const Strings once = stripped({"-nographic", "-serial", "mon:stdio", "-chardev", "stdio,id=a", "-S"});
  EXPECT_EQ(stripped(once), once);
}

}  // namespace
}  // namespace vmsieve
