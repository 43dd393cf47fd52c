// SPDX-License-Identifier: Apache-2.0
// vmsieve-libvirt: what vmsieve asks of libvirt, in a process of its own, so that vmsieve itself needs no
// libvirt and the monitor of a domain outlives it. LibvirtDomain (qemu/libvirt_domain.h) is the other side.
//
//   vmsieve-libvirt serve SOCKET NAME [URI]   a QMP monitor on SOCKET for the domain
//   vmsieve-libvirt restore FILE running|paused [URI]   what `virsh restore FILE` does
//   vmsieve-libvirt redisk   a domain's XML ("xml") in which other images are its disks ("disks": "chain" of
//                            the image, "overlay"), both from an object of JSON on standard input
//
// All print one line of JSON: an object with what is asked for, or {"error": TEXT, "kind": KIND}.

#include <libvirt/libvirt-qemu.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <nlohmann/json.hpp>

#include "vmsieve/base/fd.h"
#include "vmsieve/libvirt/domain_xml.h"
#include "vmsieve/qemu/qmp_wire.h"

namespace vmsieve {
namespace {

using Json = nlohmann::json;

/// After vmsieve has died its pause guard may come to let the guest run on.
constexpr int kGraceMilliseconds = 10000;
constexpr std::size_t kMostPassed = 16;
constexpr std::size_t kMostInput = 32 << 20;

struct ConnectionCloser {
  void operator()(virConnectPtr connection) const { virConnectClose(connection); }
};
struct DomainFree {
  void operator()(virDomainPtr domain) const { virDomainFree(domain); }
};
struct SnapshotFree {
  void operator()(virDomainSnapshotPtr snapshot) const { virDomainSnapshotFree(snapshot); }
};
struct Free {
  void operator()(char* text) const { std::free(text); }
};
using Connection = std::unique_ptr<virConnect, ConnectionCloser>;
using Domain = std::unique_ptr<virDomain, DomainFree>;
using Snapshot = std::unique_ptr<virDomainSnapshot, SnapshotFree>;
using Text = std::unique_ptr<char, Free>;

void print_line(const Json& json) {
  const std::string line = json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  (void)std::fwrite(line.data(), 1, line.size(), stdout);
  (void)std::fflush(stdout);
}

/// Says libvirt's last error; the exit status.
int fail(const std::string& what) {
  const virErrorPtr error = virGetLastError();
  const int code = error != nullptr ? error->code : VIR_ERR_INTERNAL_ERROR;
  const char* kind = code == VIR_ERR_NO_DOMAIN                                      ? "not-found"
                     : code == VIR_ERR_AUTH_FAILED || code == VIR_ERR_ACCESS_DENIED ? "permission"
                     : code == VIR_ERR_OPERATION_INVALID                            ? "refused"
                     : code == VIR_ERR_NO_CONNECT || code == VIR_ERR_SYSTEM_ERROR   ? "vanished"
                                                                                    : "refused";
  const char* text = virGetLastErrorMessage();
  print_line(
      {{"error", what + ": " + (text != nullptr ? text : "libvirt does not say why")}, {"kind", kind}});
  return 1;
}

Connection connect(const char* uri) { return Connection{virConnectOpen(uri)}; }

Domain find_domain(virConnectPtr connection, const std::string& name) {
  if (virDomainPtr by_uuid = virDomainLookupByUUIDString(connection, name.c_str())) return Domain{by_uuid};
  return Domain{virDomainLookupByName(connection, name.c_str())};
}

std::vector<std::string> strings_in(const Json& object, const char* key) {
  std::vector<std::string> strings;
  const auto it = object.is_object() ? object.find(key) : object.end();
  if (it == object.end() || !it->is_array()) return strings;
  for (const Json& one : *it) {
    if (one.is_string()) strings.push_back(one);
  }
  return strings;
}

const Json& objects_in(const Json& object, const char* key) {
  static const Json none = Json::array();
  const auto it = object.is_object() ? object.find(key) : object.end();
  return it != object.end() && it->is_array() ? *it : none;
}

const char* last_words() {
  const virErrorPtr error = virGetLastError();
  return error != nullptr && error->message != nullptr ? error->message : "unknown";
}

/// What is asked of libvirt and not of the domain's QEMU, as commands of the monitor.
class DiskCommands {
 public:
  explicit DiskCommands(virDomainPtr domain) : domain_(domain) {}

  static bool has(const std::string& name) { return name.starts_with("vmsieve-"); }

  Result<Json> run(const std::string& name, const Json& arguments) {
    if (name == "vmsieve-domain-xml") return domain_xml();
    if (name == "vmsieve-disk-prepare") return prepare(arguments);
    if (name == "vmsieve-disk-snapshot") return snapshot(arguments);
    if (name == "vmsieve-disk-state") return state(arguments);
    if (name == "vmsieve-disk-commit") return commit(arguments);
    if (name == "vmsieve-disk-pivot") return pivot(arguments);
    if (name == "vmsieve-disk-forget-chains") return forget_chains();
    if (name == "vmsieve-disk-go-on") return go_on(arguments);
    return make_error(ErrorKind::kUnsupported, "{} is no command", name);
  }

 private:
  static Error refused() { return Error(ErrorKind::kRefused, last_words()); }

  /// What an image of `virsh save` holds now.
  Result<Json> domain_xml() {
    const Text xml{virDomainGetXMLDesc(domain_, VIR_DOMAIN_XML_SECURE | VIR_DOMAIN_XML_MIGRATABLE)};
    if (!xml) return refused();
    return Json{{"xml", xml.get()}};
  }

  Result<DomainXml> live_xml() {
    const Text xml{virDomainGetXMLDesc(domain_, 0)};
    if (!xml) return refused();
    return DomainXml::parse(xml.get());
  }

  /// Before the pause: what snapshot() is to be given for images and files over them.
  Result<Json> prepare(const Json& arguments) {
    std::vector<SnapshotDisk> disks;
    for (const Json& disk : objects_in(arguments, "disks"))
      disks.push_back({json_string(disk, "image"), json_string(disk, "overlay")});
    VMSIEVE_ASSIGN(const DomainXml domain, live_xml());
    VMSIEVE_ASSIGN(const std::string xml, snapshot_xml(domain, disks));
    return Json{{"xml", xml}};
  }

  Result<Json> snapshot(const Json& arguments) {
    const Snapshot made{virDomainSnapshotCreateXML(
        domain_, json_string(arguments, "xml").c_str(),
        VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC |
            VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA | VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT)};
    if (!made) return refused();
    return Json::object();
  }

  /// In which disk's chain a file is, what is under it, and what libvirt does with that disk; an empty object
  /// when it is in none.
  Result<Json> state(const Json& arguments) {
    const std::string file = json_string(arguments, "file");
    VMSIEVE_ASSIGN(const DomainXml domain, live_xml());
    for (const DomainXmlDisk& disk : domain.disks()) {
      const auto it = std::ranges::find_if(disk.chain, [&](const std::string& one) {
        std::error_code error;
        return one == file || (std::filesystem::equivalent(one, file, error) && !error);
      });
      if (it == disk.chain.end()) continue;
      virDomainBlockJobInfo info{};
      const int jobs = virDomainGetBlockJobInfo(domain_, disk.target.c_str(), &info, 0);
      if (jobs < 0) return refused();
      Json state{{"target", disk.target},
                 {"file", *it},
                 {"under", it + 1 != disk.chain.end() ? *(it + 1) : ""},
                 {"active", it == disk.chain.begin()}};
      if (jobs > 0) {
        state["job"] = info.type == VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT          ? "commit"
                       : info.type == VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT ? "active-commit"
                                                                              : "another";
        state["mirror"] = disk.mirror;
        state["ready"] = disk.mirror_ready;
        state["done"] = info.cur;
        state["total"] = info.end;
      }
      return state;
    }
    return Json::object();
  }

  /// Begins to put what is in `file` into what is under it.
  Result<Json> commit(const Json& arguments) {
    const unsigned flags = json_true(arguments, "active") ? VIR_DOMAIN_BLOCK_COMMIT_ACTIVE : 0;
    if (virDomainBlockCommit(domain_, json_string(arguments, "target").c_str(),
                             json_string(arguments, "under").c_str(), json_string(arguments, "file").c_str(),
                             0, flags) != 0)
      return refused();
    return Json::object();
  }

  /// An active commit that is ready: the disk is the image under the file. Returns when it is.
  Result<Json> pivot(const Json& arguments) {
    if (virDomainBlockJobAbort(domain_, json_string(arguments, "target").c_str(),
                               VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT) != 0)
      return refused();
    return Json::object();
  }

  /// With a snapshot libvirt writes down in the persistent XML what is under the disk's file, and would not
  /// find what is merged while the domain is off.
  Result<Json> forget_chains() {
    if (virDomainIsPersistent(domain_) != 1) return Json::object();
    const Text text{virDomainGetXMLDesc(domain_, VIR_DOMAIN_XML_SECURE | VIR_DOMAIN_XML_INACTIVE)};
    if (!text) return refused();
    VMSIEVE_ASSIGN(DomainXml xml, DomainXml::parse(text.get()));
    if (!xml.forget_chains()) return Json::object();
    const Domain defined{virDomainDefineXML(virDomainGetConnect(domain_), xml.text().c_str())};
    if (!defined) return refused();
    return Json::object();
  }

  /// What the domain is started with the next time goes on to other files: from "file" to "overlay", where it
  /// is on that.
  Result<Json> go_on(const Json& arguments) {
    if (virDomainIsPersistent(domain_) != 1) return Json::object();
    const Text text{virDomainGetXMLDesc(domain_, VIR_DOMAIN_XML_SECURE | VIR_DOMAIN_XML_INACTIVE)};
    if (!text) return refused();
    VMSIEVE_ASSIGN(DomainXml xml, DomainXml::parse(text.get()));
    bool any = false;
    for (const Json& disk : objects_in(arguments, "disks")) {
      const auto replaced = xml.replace_image({json_string(disk, "file")}, json_string(disk, "overlay"));
      if (!replaced && replaced.error().kind() != ErrorKind::kIncompatible) return replaced.error();
      any = any || replaced.ok();
    }
    if (!any) return Json::object();
    const Domain defined{virDomainDefineXML(virDomainGetConnect(domain_), xml.text().c_str())};
    if (!defined) return refused();
    return Json::object();
  }

  virDomainPtr domain_;
};

/// One client of the monitor.
class Session {
 public:
  Session(UniqueFd socket, virDomainPtr domain, std::string greeting, std::atomic<bool>& stopped)
      : socket_(std::move(socket)), domain_(domain), greeting_(std::move(greeting)), stopped_(stopped) {}

  void run() {
    if (!send(greeting_)) return;
    for (;;) {
      while (const auto line = lines_.next_line()) {
        if (!answer(*line)) return;
      }
      if (!receive()) return;
    }
  }

 private:
  bool send(const std::string& line) {
    for (std::size_t done = 0; done < line.size();) {
      const ssize_t n = ::send(socket_.get(), line.data() + done, line.size() - done, MSG_NOSIGNAL);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;
      done += static_cast<std::size_t>(n);
    }
    return true;
  }

  bool send(const Json& json) {
    return send(json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\r\n");
  }

  bool send_error(const Json& id, const std::string& text) {
    Json reply = {{"error", {{"class", "GenericError"}, {"desc", text}}}};
    if (!id.is_null()) reply["id"] = id;
    return send(reply);
  }

  bool receive() {
    char chunk[65536];
    iovec data{chunk, sizeof chunk};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMostPassed)];
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t n = ::recvmsg(socket_.get(), &message, MSG_CMSG_CLOEXEC);
    if (n < 0 && errno == EINTR) return true;
    if (n <= 0) return false;
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
         header = CMSG_NXTHDR(&message, header)) {
      if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
      const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (std::size_t i = 0; i < count; ++i) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
        passed_.emplace_back(fd);
      }
    }
    return lines_.feed({chunk, static_cast<std::size_t>(n)}).ok();
  }

  bool answer(const std::string& line) {
    const Json command = Json::parse(line, nullptr, false);
    if (!command.is_object() || !command.contains("execute") || !command["execute"].is_string())
      return send_error({}, "this is no command");
    const Json id = command.value("id", Json());
    const std::string name = command["execute"];
    if (name == "qmp_capabilities") return send_value(id, Json::object());
    if (DiskCommands::has(name)) return answer_itself(command.value("arguments", Json::object()), name, id);
    return pass_on(command, name, id);
  }

  bool send_value(const Json& id, Json value) {
    Json reply{{"return", std::move(value)}};
    if (!id.is_null()) reply["id"] = id;
    return send(reply);
  }

  bool send_failure(const Json& id, const std::string& words) {
    // libvirt has gone: whoever comes for the guest needs a new connection. Our parent makes one.
    if (virConnectIsAlive(virDomainGetConnect(domain_)) != 1) std::_Exit(1);
    // Its QEMU has gone: as if it had closed its monitor.
    if (virDomainIsActive(domain_) != 1) return false;
    return send_error(id, words);
  }

  bool answer_itself(const Json& arguments, const std::string& name, const Json& id) {
    passed_.clear();
    auto value = DiskCommands(domain_).run(name, arguments);
    if (!value) return send_failure(id, value.error().message());
    return send_value(id, std::move(*value));
  }

  bool pass_on(Json command, const std::string& name, const Json& id) {
    command.erase("id");
    std::vector<int> descriptors;
    for (const UniqueFd& fd : passed_) descriptors.push_back(fd.get());
    // What is stopped is noted before, what runs after: who asks in between lets the guest run once too
    // often.
    if (name == "stop") stopped_ = true;
    char* answered = nullptr;
    const int failed = virDomainQemuMonitorCommandWithFiles(
        domain_, command.dump().c_str(), static_cast<unsigned>(descriptors.size()), descriptors.data(),
        nullptr, nullptr, &answered, 0);
    const Text text{answered};
    passed_.clear();
    if (name == "cont" && failed == 0) stopped_ = false;
    if (failed != 0) return send_failure(id, last_words());
    Json reply = Json::parse(text.get() != nullptr ? text.get() : "", nullptr, false);
    if (!reply.is_object()) return send_error(id, "libvirt passed on no QMP reply");
    reply.erase("id");
    if (!id.is_null()) reply["id"] = id;
    return send(reply);
  }

  UniqueFd socket_;
  virDomainPtr domain_;
  std::string greeting_;
  std::atomic<bool>& stopped_;
  LineAssembler lines_;
  std::vector<UniqueFd> passed_;
};

/// The greeting of QEMU's own monitor; empty when libvirt does not pass on its version.
std::string greeting(virDomainPtr domain) {
  char* answered = nullptr;
  if (virDomainQemuMonitorCommand(domain, R"({"execute":"query-version"})", &answered, 0) != 0) return {};
  const Text text{answered};
  const Json reply = Json::parse(text.get(), nullptr, false);
  if (!reply.is_object() || !reply.contains("return")) return {};
  const Json greeting = {{"QMP", {{"version", reply["return"]}, {"capabilities", Json::array()}}}};
  return greeting.dump(-1, ' ', false, Json::error_handler_t::replace) + "\r\n";
}

Result<UniqueFd> listen_at(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return make_error(ErrorKind::kUsage, "{} is too long for a socket's path", path);
  std::memcpy(address.sun_path, path.data(), path.size());
  UniqueFd socket{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  if (!socket.valid() || ::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      ::chmod(path.c_str(), 0600) != 0 || ::listen(socket.get(), 8) != 0) {
    return errno_error(errno, fmt::format("cannot listen on {}", path));
  }
  return socket;
}

/// Clients come and go until vmsieve has closed our standard input, and nobody is left.
void serve_clients(int listener, virDomainPtr domain, const std::string& greeting,
                   std::atomic<bool>& stopped) {
  const auto clients = std::make_shared<std::atomic<int>>(0);
  bool left = false;     // vmsieve has
  bool goodbye = false;  // and did so in peace
  for (int idle = 0; !goodbye && (!left || *clients > 0 || idle < kGraceMilliseconds);) {
    constexpr int kBeat = 100;
    pollfd polled[] = {{listener, POLLIN, 0}, {left ? -1 : STDIN_FILENO, POLLIN, 0}};
    const int ready = ::poll(polled, 2, left ? kBeat : -1);
    if (left) idle = *clients > 0 ? 0 : idle + kBeat;
    if (ready <= 0) continue;
    if (polled[0].revents != 0) {
      UniqueFd socket{::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC)};
      if (!socket.valid()) continue;
      ++*clients;
      std::thread([session = std::make_unique<Session>(std::move(socket), domain, greeting, stopped),
                   clients]() mutable {
        session->run();
        session.reset();
        --*clients;
      }).detach();
    }
    if (polled[1].revents != 0) {
      char byte = 0;
      const ssize_t n = ::read(STDIN_FILENO, &byte, 1);
      goodbye = goodbye || n > 0;
      left = left || n == 0;
    }
  }
}

int serve(const std::string& path, const std::string& name, const char* uri, std::atomic<bool>& stopped) {
  const Connection connection = connect(uri);
  if (!connection) return fail("cannot reach libvirt");
  const char* type = virConnectGetType(connection.get());
  if (type == nullptr || std::strcmp(type, "QEMU") != 0) return fail("this libvirt is none of QEMU's");
  const Domain domain = find_domain(connection.get(), name);
  if (!domain) return fail("libvirt:" + name);
  if (virDomainIsActive(domain.get()) != 1) {
    print_line({{"error", "libvirt:" + name + ": the domain does not run"}, {"kind", "not-found"}});
    return 1;
  }
  const Text canonical_uri{virConnectGetURI(connection.get())};
  char uuid[VIR_UUID_STRING_BUFLEN] = {};
  const std::string hello = greeting(domain.get());
  if (!canonical_uri || virDomainGetUUIDString(domain.get(), uuid) != 0 || hello.empty())
    return fail("libvirt:" + name);
  const auto listener = listen_at(path);
  if (!listener) {
    print_line({{"error", listener.error().message()}, {"kind", "io"}});
    return 1;
  }
  print_line({{"name", virDomainGetName(domain.get())}, {"uuid", uuid}, {"uri", canonical_uri.get()}});
  (void)std::fclose(stdout);
  serve_clients(listener->get(), domain.get(), hello, stopped);
  (void)::unlink(path.c_str());
  std::_Exit(0);  // threads may still be about to end
}

/// Lets the guest run on, as soon as libvirt can be reached; not one that does not run any more.
void let_run(const std::string& name, const char* uri) {
  constexpr int kTries = 600;
  for (int i = 0; i < kTries; ++i, std::this_thread::sleep_for(std::chrono::seconds(1))) {
    const Connection connection = connect(uri);
    if (!connection) continue;
    const Domain domain = find_domain(connection.get(), name);
    if (!domain || virDomainIsActive(domain.get()) == 0) return;
    char* answer = nullptr;
    const int failed = virDomainQemuMonitorCommand(domain.get(), R"({"execute":"cont"})", &answer, 0);
    const Text text{answer};
    if (failed == 0) return;
  }
}

/// Serves in a child. However that ends, a guest that was stopped through it runs on.
int serve_watched(const std::string& path, const std::string& name, const char* uri) {
  void* shared =
      ::mmap(nullptr, sizeof(std::atomic<bool>), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) {
    print_line({{"error", "there is no memory"}, {"kind", "io"}});
    return 1;
  }
  auto* stopped = new (shared) std::atomic<bool>(false);
  const pid_t child = ::fork();
  if (child < 0) {
    print_line({{"error", "cannot fork"}, {"kind", "io"}});
    return 1;
  }
  if (child == 0) return serve(path, name, uri, *stopped);
  (void)std::fclose(stdout);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  (void)::unlink(path.c_str());
  // Also when it was told to go while libvirt was still about to stop the guest.
  if (*stopped) let_run(name, uri);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

int restore(const std::string& file, bool running, const char* uri) {
  const Connection connection = connect(uri);
  if (!connection) return fail("cannot reach libvirt");
  const unsigned flags = running ? VIR_DOMAIN_SAVE_RUNNING : VIR_DOMAIN_SAVE_PAUSED;
  if (virDomainRestoreFlags(connection.get(), file.c_str(), nullptr, flags) != 0)
    return fail("libvirt does not restore it");
  print_line(Json::object());
  return 0;
}

/// Standard input, to its end.
Result<std::string> read_input() {
  std::string text;
  char chunk[65536];
  for (;;) {
    const ssize_t n = ::read(STDIN_FILENO, chunk, sizeof chunk);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error(errno, "cannot read what is asked for");
    if (n == 0) return text;
    text.append(chunk, static_cast<std::size_t>(n));
    if (text.size() > kMostInput) return Error(ErrorKind::kDamaged, "the domain's XML is too long");
  }
}

Result<std::string> with_disks() {
  VMSIEVE_ASSIGN(const std::string input, read_input());
  const Json asked = Json::parse(input, nullptr, false);
  VMSIEVE_ASSIGN(DomainXml xml, DomainXml::parse(json_string(asked, "xml")));
  for (const Json& disk : objects_in(asked, "disks"))
    VMSIEVE_TRY(xml.replace_image(strings_in(disk, "chain"), json_string(disk, "overlay")));
  return xml.text();
}

int redisk() {
  const auto xml = with_disks();
  if (xml) {
    print_line({{"xml", *xml}});
    return 0;
  }
  const bool incompatible = xml.error().kind() == ErrorKind::kIncompatible;
  print_line({{"error", xml.error().message()}, {"kind", incompatible ? "incompatible" : "damaged"}});
  return 1;
}

int usage() {
  (void)std::fputs(
      "usage: vmsieve-libvirt serve SOCKET NAME [URI] | restore FILE running|paused [URI] | redisk\n",
      stderr);
  return 2;
}

int run(const std::vector<std::string>& arguments) {
  if (arguments == std::vector<std::string>{"redisk"}) return redisk();
  virSetErrorFunc(nullptr, [](void*, virErrorPtr) {});
  if (virInitialize() != 0) return fail("libvirt does not start");
  if (arguments.size() < 3 || arguments.size() > 4) return usage();
  const char* uri = arguments.size() == 4 ? arguments[3].c_str() : nullptr;
  if (arguments[0] == "serve") return serve_watched(arguments[1], arguments[2], uri);
  if (arguments[0] == "restore" && (arguments[2] == "running" || arguments[2] == "paused"))
    return restore(arguments[1], arguments[2] == "running", uri);
  return usage();
}

}  // namespace
}  // namespace vmsieve

int main(int argc, char** argv) { return vmsieve::run({argv + 1, argv + argc}); }
