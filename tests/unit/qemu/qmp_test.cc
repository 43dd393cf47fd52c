// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/qemu/qmp.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <atomic>
#include <cstring>
#include <functional>
#include <future>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/qemu/real_qemu.h"

namespace vmsieve {
namespace {

using namespace std::chrono_literals;
using test::RealQemu;
using testing::HasSubstr;

constexpr char kGreeting[] =
    R"({"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "P"}, "capabilities": []}})"
    "\r\n";
constexpr char kCapabilitiesDone[] = "{\"return\": {}, \"id\": 1}\r\n";

/// A peer that misbehaves as no real QEMU would: serves one connection by a script.
class FakeMonitor {
 public:
  using Script = std::function<void(FakeMonitor&)>;

  explicit FakeMonitor(Script script) {
    listener_ = UniqueFd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path().c_str(), sizeof address.sun_path - 1);
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(::listen(listener_.get(), 0), 0);
    thread_ = std::thread{[this, script = std::move(script)] {
      client_ = UniqueFd{::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)};
      script(*this);
    }};
  }
  ~FakeMonitor() { thread_.join(); }

  std::string path() const { return folder_.path() + "/m"; }
  void say(std::string_view text) const { EXPECT_TRUE(write_all(client_.get(), as_bytes(text), "client")); }
  /// One line from the client.
  std::string hear() const {
    std::string line;
    char c = 0;
    while (::read(client_.get(), &c, 1) == 1 && c != '\n') line += c;
    return line;
  }
  void greet() const {
    say(kGreeting);
    hear();
    say(kCapabilitiesDone);
  }
  void hang_up() { client_.reset(); }
  /// Reads until the client is gone.
  void wait_for_end() const {
    char buffer[4096];
    while (::read(client_.get(), buffer, sizeof buffer) > 0) {
    }
  }

 private:
  static std::span<const std::byte> as_bytes(std::string_view text) {
    return std::as_bytes(std::span{text.data(), text.size()});
  }

  test::TemporaryFolder folder_;
  UniqueFd listener_;
  UniqueFd client_;
  std::thread thread_;
};

ErrorKind kind_of(const auto& result) { return result.ok() ? ErrorKind::kUsage : result.error().kind(); }

TEST(Qmp, ReadsTheVersionFromTheGreeting) {
  FakeMonitor monitor{[](FakeMonitor& m) { m.greet(); }};
  const auto client = QmpClient::connect(monitor.path());
  ASSERT_TRUE(client) << client.error().message();
  EXPECT_EQ((*client)->version(), "10.0.2");
  EXPECT_EQ((*client)->package(), "P");
  EXPECT_EQ((*client)->path(), monitor.path());
}

TEST(Qmp, EventsBeforeTheGreetingArePassedOver) {
  FakeMonitor monitor{[](FakeMonitor& m) {
    m.say("{\"event\": \"RESUME\"}\r\n{\"event\": \"STOP\"}\r\n");
    m.greet();
  }};
  const auto client = QmpClient::connect(monitor.path());
  ASSERT_TRUE(client) << client.error().message();
  EXPECT_EQ((*client)->version(), "10.0.2");
}

TEST(Qmp, ReplyInPiecesBetweenEventsIsPutTogether) {
  FakeMonitor monitor{[](FakeMonitor& m) {
    m.greet();
    m.hear();
    m.say("{\"event\": \"STOP\"}\r\n{\"ret");
    std::this_thread::sleep_for(20ms);
    m.say("urn\": 5, \"id\": 2}\r\n{\"event\": \"RESUME\"}\r\n");
  }};
  const auto client = QmpClient::connect(monitor.path());
  ASSERT_TRUE(client);
  const auto reply = (*client)->execute("x");
  ASSERT_TRUE(reply) << reply.error().message();
  EXPECT_EQ(*reply, 5);
  EXPECT_TRUE((*client)->wait_event("RESUME", 1s));
  EXPECT_TRUE((*client)->wait_event("STOP", 1s));
}

TEST(Qmp, LateReplyOfACommandGivenUpIsSkipped) {
  FakeMonitor monitor{[](FakeMonitor& m) {
    m.greet();
    m.hear();
    m.hear();
    m.say("{\"return\": \"late\", \"id\": 2}\r\n{\"return\": \"mine\", \"id\": 3}\r\n");
  }};
  const auto client = QmpClient::connect(monitor.path());
  ASSERT_TRUE(client);
  EXPECT_EQ(kind_of((*client)->execute("slow", {}, 20ms)), ErrorKind::kTimeout);
  const auto reply = (*client)->execute("next");
  ASSERT_TRUE(reply) << reply.error().message();
  EXPECT_EQ(*reply, "mine");
}

TEST(Qmp, ErrorReplyCarriesQemusWords) {
  FakeMonitor monitor{[](FakeMonitor& m) {
    m.greet();
    m.hear();
    m.say(R"({"id": 2, "error": {"class": "GenericError", "desc": "not today"}})"
          "\r\n");
  }};
  const auto client = QmpClient::connect(monitor.path());
  ASSERT_TRUE(client);
  const auto reply = (*client)->execute("x");
  EXPECT_EQ(kind_of(reply), ErrorKind::kRefused);
  EXPECT_THAT(reply.error().message(), HasSubstr("not today"));
}

TEST(Qmp, ErrorWithoutIdIsTakenForOurs) {
  FakeMonitor monitor{[](FakeMonitor& m) {
    m.greet();
    m.hear();
    m.say(R"({"error": {"class": "GenericError", "desc": "JSON parse error"}})"
          "\r\n");
  }};
  const auto client = QmpClient::connect(monitor.path());
  ASSERT_TRUE(client);
  EXPECT_EQ(kind_of((*client)->execute("x")), ErrorKind::kRefused);
}

TEST(Qmp, SilentPeerIsHeldByAnother) {
  FakeMonitor monitor{[](FakeMonitor& m) { m.wait_for_end(); }};
  const auto client = QmpClient::connect(monitor.path(), 50ms);
  EXPECT_EQ(kind_of(client), ErrorKind::kBusy);
  EXPECT_THAT(client.error().message(), HasSubstr("another"));
}

TEST(Qmp, PeerThatSpeaksSomethingElseIsNoMonitor) {
  for (const char* words :
       {"SSH-2.0-OpenSSH\r\n", "{\"return\": {}}\r\n", "{\"QMP\": {}}\r\n", "{\"QMP\": 3}\r\n"}) {
    FakeMonitor monitor{[=](FakeMonitor& m) { m.say(words); }};
    EXPECT_EQ(kind_of(QmpClient::connect(monitor.path(), 1s)), ErrorKind::kIncompatible) << words;
  }
}

TEST(Qmp, PeerThatHangsUpHasVanished) {
  FakeMonitor monitor{[](FakeMonitor& m) {
    m.greet();
    m.hear();
    m.hang_up();
  }};
  const auto client = QmpClient::connect(monitor.path());
  ASSERT_TRUE(client);
  EXPECT_EQ(kind_of((*client)->execute("x")), ErrorKind::kVanished);
  EXPECT_EQ(kind_of((*client)->execute("x")), ErrorKind::kVanished);
}

TEST(Qmp, WaitingForAnEventThatDoesNotComeTimesOut) {
  FakeMonitor monitor{[](FakeMonitor& m) {
    m.greet();
    m.say("{\"event\": \"OTHER\"}\r\n");
    m.wait_for_end();
  }};
  const auto client = QmpClient::connect(monitor.path());
  ASSERT_TRUE(client);
  EXPECT_EQ(kind_of((*client)->wait_event("STOP", 30ms)), ErrorKind::kTimeout);
  EXPECT_TRUE((*client)->wait_event("OTHER", 0ms));
}

TEST(Qmp, OnlyTheLastEventsAreKept) {
  FakeMonitor monitor{[](FakeMonitor& m) {
    m.greet();
    m.hear();
    for (int i = 0; i < 300; ++i) m.say(fmt::format("{{\"event\": \"E{}\"}}\r\n", i));
    m.say("{\"return\": {}, \"id\": 2}\r\n");
    m.wait_for_end();
  }};
  const auto client = QmpClient::connect(monitor.path());
  ASSERT_TRUE(client);
  ASSERT_TRUE((*client)->execute("x"));
  EXPECT_FALSE((*client)->wait_event("E43", 0ms));
  EXPECT_TRUE((*client)->wait_event("E44", 0ms));
  EXPECT_TRUE((*client)->wait_event("E299", 0ms));
}

TEST(Qmp, HalfSentCommandIsUndoneBeforeTheNext) {
  std::promise<void> go_on;
  std::string next;
  FakeMonitor monitor{[&](FakeMonitor& m) {
    m.greet();
    go_on.get_future().wait();
    // The half command, cut off by 0xFF at whatever place, then the next one.
    std::string line = m.hear();
    EXPECT_THAT(line, testing::EndsWith("\xff"));
    next = m.hear();
    m.say(R"({"error": {"class": "GenericError", "desc": "JSON parse error"}})"
          "\r\n{\"return\": 1, \"id\": 3}\r\n");
  }};
  const auto client = QmpClient::connect(monitor.path());
  ASSERT_TRUE(client);
  const auto large = (*client)->execute("x", {{"data", std::string(8 << 20, 'a')}}, 50ms);
  EXPECT_EQ(kind_of(large), ErrorKind::kTimeout);
  go_on.set_value();
  const auto reply = (*client)->execute("y");
  EXPECT_TRUE(reply) << reply.error().message();
  EXPECT_THAT(next, HasSubstr("\"execute\":\"y\""));
}

TEST(Qmp, NoSuchPathIsNotFound) {
  EXPECT_EQ(kind_of(QmpClient::connect("/nonexistent/socket")), ErrorKind::kNotFound);
}

TEST(Qmp, DeadSocketHasVanished) {
  test::TemporaryFolder folder;
  const std::string path = folder.path() + "/dead";
  const UniqueFd socket{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
  ASSERT_EQ(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  EXPECT_EQ(kind_of(QmpClient::connect(path)), ErrorKind::kVanished);
}

class RealQmp : public testing::TestWithParam<test::QemuProgram> {};

TEST_P(RealQmp, SpeaksWithQemu) {
  RealQemu qemu{GetParam().path, {"-M", "q35", "-m", "64"}};
  ASSERT_TRUE(qemu.running()) << qemu.complaint();
  const auto client = test::must_connect(qemu.monitor());
  ASSERT_NE(client, nullptr);
  EXPECT_THAT(client->version(), testing::MatchesRegex("[0-9]+\\.[0-9]+\\.[0-9]+"));
  const auto pid = client->peer_pid();
  ASSERT_TRUE(pid);
  EXPECT_EQ(*pid, qemu.pid());
  const auto text = client->human("info name");
  EXPECT_TRUE(text) << text.error().message();
  EXPECT_EQ(kind_of(client->execute("no-such-command")), ErrorKind::kRefused);
  ASSERT_TRUE(client->execute("stop"));
  EXPECT_TRUE(client->wait_event("STOP", 1s));
  qemu.kill();
  EXPECT_EQ(kind_of(client->execute("query-status")), ErrorKind::kVanished);
}

TEST_P(RealQmp, SecondClientOfAMonitorIsToldSo) {
  RealQemu qemu{GetParam().path, {"-M", "q35", "-m", "64"}};
  ASSERT_TRUE(qemu.running()) << qemu.complaint();
  const auto client = test::must_connect(qemu.monitor());
  std::vector<Result<std::unique_ptr<QmpClient>>> others;
  // The listener's short queue takes some; the rest finds it full.
  std::vector<UniqueFd> waiting;
  for (int i = 0; i < 4; ++i) {
    const auto other = QmpClient::connect(qemu.monitor(), 30ms);
    EXPECT_EQ(kind_of(other), ErrorKind::kBusy) << i;
    EXPECT_THAT(other.error().message(), HasSubstr("libvirt"));
    waiting.emplace_back(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, qemu.monitor().c_str(), sizeof address.sun_path - 1);
    (void)::connect(waiting.back().get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
  }
}

TEST_P(RealQmp, HalfSentCommandDoesNoHarmToTheNext) {
  RealQemu qemu{GetParam().path, {"-M", "q35", "-m", "64"}};
  ASSERT_TRUE(qemu.running()) << qemu.complaint();
  for (const char* torn :
       {"{\"execute\":", "{\"execute\": \"xen-sa", "{", "{\"a\": [1, {", "\"str\\", "", "12"}) {
    const auto client = test::must_connect(qemu.monitor());
    ASSERT_NE(client, nullptr);
    const std::string text =
        std::string{torn} + std::string{kQmpResync} + "{\"execute\":\"stop\",\"id\":99}\r\n";
    ASSERT_EQ(::send(client->socket(), text.data(), text.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(text.size()));
    EXPECT_TRUE(client->wait_event("STOP", 2s)) << torn;
    (void)client->execute("query-name").ok();
    ASSERT_TRUE(client->execute("cont")) << torn;
  }
}

TEST_P(RealQmp, LongSocketPathsAreReached) {
  test::TemporaryFolder folder;
  const std::string deep = folder.path() + "/" + std::string(120, 'd');
  ASSERT_EQ(::symlink(folder.path().c_str(), deep.c_str()), 0);
  RealQemu qemu{GetParam().path,
                {"-M", "q35", "-m", "64", "-qmp", "unix:" + folder.path() + "/s,server=on,wait=off"}};
  ASSERT_TRUE(qemu.running()) << qemu.complaint();
  const auto client = QmpClient::connect(deep + "/s");
  EXPECT_TRUE(client) << client.error().message();
}

INSTANTIATE_TEST_SUITE_P(Qemu, RealQmp, testing::ValuesIn(test::qemu_programs()),
                         [](const auto& instance) { return instance.param.label; });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(RealQmp);

}  // namespace
}  // namespace vmsieve
