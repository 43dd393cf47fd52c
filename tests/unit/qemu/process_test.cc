// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/process.h"

#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/qemu/real_qemu.h"
#include "vmsieve/qemu/option_string.h"
#include "vmsieve/qemu/process_monitors.h"

namespace vmsieve {
namespace {

using test::RealQemu;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(OptionString, SplitsAtSingleCommasOnly) {
  const OptionString options{"socket,id=a,path=/x,,y,server", "backend"};
  EXPECT_EQ(options.get("backend"), "socket");
  EXPECT_EQ(options.get("path"), "/x,y");
  EXPECT_EQ(options.get("server"), "on");
  EXPECT_EQ(options.get("none"), std::nullopt);
}

TEST(OptionString, LastValueCounts) { EXPECT_EQ(OptionString("a=1,a=2", "").get("a"), "2"); }

TEST(OptionString, OddTextIsTaken) {
  EXPECT_EQ(OptionString("", "k").get("k"), std::nullopt);
  EXPECT_EQ(OptionString(",", "k").get("k"), "");
  EXPECT_EQ(OptionString("a=b=c,", "k").get("a"), "b=c");
  EXPECT_EQ(OptionString(",,,", "k").get("k"), ",");
}

std::vector<std::string> paths_of(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "qemu-system-x86_64");
  std::vector<std::string> paths;
  for (const MonitorSocket& socket : monitor_sockets(arguments)) {
    paths.push_back(socket.descriptor ? fmt::format("fd:{}", *socket.descriptor) : socket.path);
  }
  return paths;
}

TEST(MonitorSockets, OfEachOptionThatMakesOne) {
  EXPECT_THAT(paths_of({"-qmp", "unix:/a,server=on,wait=off"}), ElementsAre("/a"));
  EXPECT_THAT(paths_of({"--qmp-pretty", "unix:b,server,nowait"}), ElementsAre("b"));
  EXPECT_THAT(paths_of({"-chardev", "socket,id=c,path=/c,server=on", "-mon", "chardev=c,mode=control"}),
              ElementsAre("/c"));
  EXPECT_THAT(paths_of({"-mon", "c,mode=control", "-chardev", "socket,path=/c,id=c,server=on"}),
              ElementsAre("/c"));
  EXPECT_THAT(paths_of({"-chardev", "socket,id=c,path=/c,server=on", "-qmp", "chardev:c"}),
              ElementsAre("/c"));
  EXPECT_THAT(
      paths_of({"-chardev", "socket,id=m,fd=26,server=on,wait=off", "-mon", "chardev=m,mode=control"}),
      ElementsAre("fd:26"));
}

TEST(MonitorSockets, WhatCannotBeConnectedToIsLeftOut) {
  EXPECT_THAT(paths_of({"-qmp", "stdio"}), ElementsAre());
  EXPECT_THAT(paths_of({"-qmp", "tcp:localhost:4444,server=on"}), ElementsAre());
  EXPECT_THAT(paths_of({"-qmp", "unix:/client"}), ElementsAre());
  EXPECT_THAT(paths_of({"-qmp", "unix:/x,server=on,abstract=on"}), ElementsAre());
  EXPECT_THAT(paths_of({"-monitor", "unix:/hmp,server=on"}), ElementsAre());
  EXPECT_THAT(paths_of({"-chardev", "socket,id=c,path=/c,server=on", "-mon", "chardev=c,mode=readline"}),
              ElementsAre());
  EXPECT_THAT(paths_of({"-chardev", "socket,id=c,fd=x,server=on", "-mon", "c,mode=control"}), ElementsAre());
  EXPECT_THAT(paths_of({"-chardev", "pty,id=c", "-mon", "chardev=c,mode=control"}), ElementsAre());
  EXPECT_THAT(paths_of({"-chardev", "socket,id=c,server=on", "-mon", "chardev=c,mode=control"}),
              ElementsAre());
  EXPECT_THAT(paths_of({"-qmp"}), ElementsAre());
}

TEST(GuestName, InBothForms) {
  EXPECT_EQ(guest_name({"q", "-name", "web"}), "web");
  EXPECT_EQ(guest_name({"q", "-name", "guest=a,,b,debug-threads=on"}), "a,b");
  EXPECT_EQ(guest_name({"q", "-name", "debug-threads=on"}), "");
  EXPECT_EQ(guest_name({"q", "--name", "x", "-name", "y"}), "y");
  EXPECT_EQ(guest_name({"q"}), "");
}

TEST(QemuProgramName, AlsoOfADeletedFile) {
  EXPECT_TRUE(is_qemu_program("/usr/bin/qemu-system-x86_64"));
  EXPECT_TRUE(is_qemu_program("/usr/bin/qemu-system-x86_64 (deleted)"));
  EXPECT_TRUE(is_qemu_program("/usr/libexec/qemu-kvm"));
  EXPECT_FALSE(is_qemu_program("/usr/bin/qemu-img"));
  EXPECT_FALSE(is_qemu_program("/qemu-system-x/vim"));
  EXPECT_FALSE(is_qemu_program(""));
}

TEST(ProcessStat, NameMayHoldAnything) {
  const std::string rest = " S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 4242 99 11\n";
  EXPECT_EQ(start_ticks_of_stat("77 (a) b 9) (x)" + rest), 4242u);
  EXPECT_EQ(start_ticks_of_stat("77 (a) S 1"), std::nullopt);
  EXPECT_EQ(start_ticks_of_stat(""), std::nullopt);
}

TEST(UnixSocketPaths, ByInode) {
  const auto paths = unix_socket_paths(
      "Num       RefCount Protocol Flags    Type St Inode Path\n"
      "0000000000000000: 00000002 00000000 00010000 0001 01 123 /run/a b\n"
      "0000000000000000: 00000003 00000000 00000000 0001 03 124\n"
      "0000000000000000: 00000002 00000000 00010000 0001 01 125 @abstract\n"
      "garbage\n");
  EXPECT_THAT(paths, ElementsAre(testing::Pair(123u, "/run/a b")));
}

TEST(Cmdline, EndsWithOrWithoutNul) {
  using namespace std::string_literals;
  EXPECT_THAT(split_cmdline("a\0\0b\0"s), ElementsAre("a", "", "b"));
  EXPECT_THAT(split_cmdline("a"), ElementsAre("a"));
  EXPECT_THAT(split_cmdline(""), ElementsAre());
}

TEST(ReadQemuProcess, OthersAreRefused) {
  EXPECT_EQ(read_qemu_process(::getpid()).error().kind(), ErrorKind::kUnsupported);
  EXPECT_EQ(read_qemu_process(0).error().kind(), ErrorKind::kNotFound);
  EXPECT_EQ(read_qemu_process(-5).error().kind(), ErrorKind::kNotFound);
}

TEST(ReadQemuProcess, ZombieIsNoQemu) {
  const pid_t zombie = ::fork();
  if (zombie == 0) ::_exit(0);
  siginfo_t info{};
  ::waitid(P_PID, static_cast<id_t>(zombie), &info, WEXITED | WNOWAIT);
  EXPECT_FALSE(read_qemu_process(zombie));
  ::waitpid(zombie, nullptr, 0);
}

TEST(ResolveVm, NonsenseIsRefused) {
  EXPECT_EQ(resolve_vm("").error().kind(), ErrorKind::kUsage);
  EXPECT_EQ(resolve_vm("pid:").error().kind(), ErrorKind::kUsage);
  EXPECT_EQ(resolve_vm("pid:12x").error().kind(), ErrorKind::kUsage);
  EXPECT_EQ(resolve_vm("pid:999999999").error().kind(), ErrorKind::kNotFound);
  EXPECT_EQ(resolve_vm("libvirt:web").error().kind(), ErrorKind::kUnsupported);
  EXPECT_EQ(resolve_vm("/dev/null").error().kind(), ErrorKind::kUsage);
  EXPECT_EQ(resolve_vm("/no/such/path").error().kind(), ErrorKind::kNotFound);
  EXPECT_EQ(resolve_vm("no-such-guest-anywhere").error().kind(), ErrorKind::kNotFound);
}

class Process : public testing::TestWithParam<test::QemuProgram> {
 protected:
  std::string unique_name(const char* tail = "") const {
    return fmt::format("vmsieve-test-{}{}", ::getpid(), tail);
  }
};

TEST_P(Process, IsReadWhole) {
  RealQemu qemu{GetParam().path,
                {"-M", "q35", "-m", "64", "-name", "guest=" + unique_name() + ",debug-threads=on"}};
  ASSERT_TRUE(qemu.running()) << qemu.complaint();
  const auto process = read_qemu_process(qemu.pid());
  ASSERT_TRUE(process) << process.error().message();
  EXPECT_EQ(process->name, unique_name());
  EXPECT_THAT(process->qmp_paths, ElementsAre(qemu.monitor(), qemu.second_monitor()));
  EXPECT_EQ(process->working_directory, std::filesystem::current_path());
  EXPECT_GT(process->start_ticks, 0u);
  EXPECT_THAT(process->executable, HasSubstr("qemu-system"));
  const auto all = list_qemu_processes();
  ASSERT_TRUE(all);
  EXPECT_TRUE(
      std::any_of(all->begin(), all->end(), [&](const QemuProcess& p) { return p.pid == qemu.pid(); }));
}

TEST_P(Process, IsFoundByEachOfItsNames) {
  RealQemu qemu{GetParam().path, {"-M", "q35", "-m", "64", "-name", unique_name()}};
  ASSERT_TRUE(qemu.running()) << qemu.complaint();
  for (const std::string& spec : {unique_name(), fmt::format("pid:{}", qemu.pid()), qemu.monitor()}) {
    const auto vm = resolve_vm(spec);
    ASSERT_TRUE(vm) << vm.error().message();
    EXPECT_EQ(vm->process.pid, qemu.pid()) << spec;
    EXPECT_EQ(vm->qmp_path, qemu.monitor()) << spec;
  }
}

TEST_P(Process, MonitorThatIsHeldIsPassedOver) {
  RealQemu qemu{GetParam().path, {"-M", "q35", "-m", "64", "-name", unique_name()}};
  ASSERT_TRUE(qemu.running()) << qemu.complaint();
  const auto holder = test::must_connect(qemu.monitor());
  const auto vm = resolve_vm(unique_name());
  ASSERT_TRUE(vm) << vm.error().message();
  EXPECT_EQ(vm->qmp_path, qemu.second_monitor());
}

TEST_P(Process, TwoOfOneNameAreAmbiguous) {
  RealQemu one{GetParam().path, {"-M", "microvm", "-m", "64", "-name", unique_name()}};
  RealQemu two{GetParam().path, {"-M", "microvm", "-m", "64", "-name", unique_name()}};
  ASSERT_TRUE(one.running() && two.running());
  const auto vm = resolve_vm(unique_name());
  ASSERT_FALSE(vm);
  EXPECT_EQ(vm.error().kind(), ErrorKind::kAmbiguous);
  EXPECT_THAT(vm.error().message(), HasSubstr(fmt::format("pid:{}", one.pid())));
}

TEST_P(Process, SocketPathThatNoCommandLineNamesIsAskedForItsListener) {
  test::TemporaryFolder folder;
  RealQemu qemu{GetParam().path, {"-M", "q35", "-m", "64"}};
  ASSERT_TRUE(qemu.running()) << qemu.complaint();
  const auto client = test::must_connect(qemu.monitor());
  ASSERT_NE(client, nullptr);
  const std::string path = folder.path() + "/added";
  ASSERT_TRUE(client->execute(
      "chardev-add",
      {{"id", "late"},
       {"backend",
        {{"type", "socket"},
         {"data",
          {{"addr", {{"type", "unix"}, {"data", {{"path", path}}}}}, {"server", true}, {"wait", false}}}}}}));
  const auto vm = resolve_vm(path);
  ASSERT_TRUE(vm) << vm.error().message();
  EXPECT_EQ(vm->process.pid, qemu.pid());
}

TEST_P(Process, RelativeSocketPathsStartAtItsFolder) {
  test::TemporaryFolder folder;
  const auto before = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  RealQemu qemu{GetParam().path, {"-M", "q35", "-m", "64", "-qmp", "unix:./here,server=on,wait=off"}};
  std::filesystem::current_path(before);
  ASSERT_TRUE(qemu.running()) << qemu.complaint();
  const auto process = read_qemu_process(qemu.pid());
  ASSERT_TRUE(process);
  EXPECT_EQ(process->qmp_paths.back(), folder.path() + "/here");
}

INSTANTIATE_TEST_SUITE_P(Qemu, Process, testing::ValuesIn(test::qemu_programs()),
                         [](const auto& instance) { return instance.param.label; });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Process);

}  // namespace
}  // namespace vmsieve
