// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/frozen_file_systems.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/qemu/real_qemu.h"

namespace vmsieve {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;
using Clock = std::chrono::steady_clock;

/// Sits on the socket where QEMU passes on what the guest's agent says; serves one connection by a script.
class FakeAgent {
 public:
  explicit FakeAgent(std::function<void(FakeAgent&)> script) {
    listener_ = UniqueFd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path().c_str(), sizeof address.sun_path - 1);
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(::listen(listener_.get(), 0), 0);
    thread_ = std::thread{[this, script = std::move(script)] {
      client_ = UniqueFd{::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)};
      script(*this);
      client_.reset();
    }};
  }
  ~FakeAgent() { thread_.join(); }

  /// The VM whose agent it is.
  QemuProcess vm() const {
    return {.pid = ::getpid(),
            .executable = "",
            .arguments = {"qemu-system-x86_64", "-chardev",
                          fmt::format("socket,path={},server=on,wait=off,id=agent", path()), "-device",
                          "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"},
            .working_directory = folder_.path(),
            .name = "",
            .qmp_paths = {},
            .start_ticks = 0};
  }

  void say(std::string_view text) const {
    (void)::send(client_.get(), text.data(), text.size(), MSG_NOSIGNAL);
  }
  /// The next line that is a command.
  nlohmann::json hear() const {
    for (;;) {
      std::string line;
      char c = 0;
      while (::read(client_.get(), &c, 1) == 1 && c != '\n') line += c;
      if (line.empty() || line.front() == '{') return nlohmann::json::parse(line, nullptr, false);
    }
  }
  /// Answers guest-sync-delimited.
  void synchronise() const {
    const nlohmann::json asked = hear();
    EXPECT_EQ(asked["execute"], "guest-sync-delimited");
    say("\xff{\"return\": " + asked["arguments"]["id"].dump() + "}\n");
  }
  /// Says the same over and over, until nobody listens any more, or this time has passed.
  void talk(const std::string& words, std::chrono::milliseconds most) const {
    std::string many;
    while (many.size() < 64 << 10) many += words;
    const auto end = Clock::now() + most;
    while (Clock::now() < end) {
      const ssize_t n = ::send(client_.get(), many.data(), many.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n < 0 && errno != EAGAIN) return;
      if (n < 0) std::this_thread::sleep_for(1ms);
    }
  }

 private:
  std::string path() const { return folder_.path() + "/agent"; }

  test::TemporaryFolder folder_;
  UniqueFd listener_;
  UniqueFd client_;
  std::thread thread_;
};

TEST(FrozenFileSystems, AreFrozenAndThawed) {
  FakeAgent agent{[](FakeAgent& a) {
    a.synchronise();
    EXPECT_EQ(a.hear()["execute"], "guest-fsfreeze-freeze");
    a.say("{\"return\": 2}\n");
    a.synchronise();
    EXPECT_EQ(a.hear()["execute"], "guest-fsfreeze-thaw");
    a.say("{\"return\": 2}\n");
  }};
  const auto frozen = FrozenFileSystems::freeze(agent.vm(), 20s);
  ASSERT_TRUE(frozen) << frozen.error().message();
  EXPECT_EQ((*frozen)->count(), 2u);
  EXPECT_TRUE((*frozen)->thaw());
}

// ---- an agent that never stops: it talks far longer than anybody is to listen -------------

constexpr auto kEver = 20s;

TEST(FrozenFileSystems, ALineWithoutAnEndIsListenedToUpToASize) {
  FakeAgent agent{[](FakeAgent& a) { a.talk("x", kEver); }};
  const auto frozen = FrozenFileSystems::freeze(agent.vm(), kEver * 2);
  ASSERT_FALSE(frozen);
  EXPECT_EQ(frozen.error().kind(), ErrorKind::kDamaged);
  EXPECT_THAT(frozen.error().message(), HasSubstr("guest agent"));
}

class FrozenFileSystemsLines : public testing::TestWithParam<const char*> {};

TEST_P(FrozenFileSystemsLines, WithoutAnAnswerAreListenedToUpToALimit) {
  FakeAgent agent{[](FakeAgent& a) { a.talk(GetParam(), kEver); }};
  const auto begun = Clock::now();
  const auto frozen = FrozenFileSystems::freeze(agent.vm(), 300ms);
  ASSERT_FALSE(frozen);
  EXPECT_EQ(frozen.error().kind(), ErrorKind::kTimeout) << frozen.error().message();
  EXPECT_LT(Clock::now() - begun, 5s);
}

INSTANTIATE_TEST_SUITE_P(All, FrozenFileSystemsLines,
                         testing::Values("{\"return\": 1}\n", "{\"error\": {\"desc\": \"no\"}}\n",
                                         "{\"event\": \"x\"}\n", "x\n"));

TEST(FrozenFileSystems, LinesInsteadOfTheAnswerToAFreezeAreListenedToUpToALimit) {
  FakeAgent agent{[](FakeAgent& a) {
    a.synchronise();
    a.hear();
    // Not for ever: the thaw that follows listens to it as well.
    a.talk("{\"event\": \"x\"}\n", 2s);
  }};
  const auto frozen = FrozenFileSystems::freeze(agent.vm(), 300ms);
  ASSERT_FALSE(frozen);
  EXPECT_EQ(frozen.error().kind(), ErrorKind::kTimeout) << frozen.error().message();
  // Its child goes on by itself, until it sees that the agent has hung up.
  while (::waitpid(-1, nullptr, 0) > 0) {
  }
}

}  // namespace
}  // namespace vmsieve
