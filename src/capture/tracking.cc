// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/capture/tracking.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cerrno>
#include <chrono>
#include <thread>

#include "vmsieve/base/runtime_folder.h"
#include "vmsieve/capture/memory_units.h"
#include "vmsieve/image/frame_codec.h"
#include "vmsieve/image/json_fields.h"
#include "vmsieve/qemu/forked_child.h"
#include "vmsieve/qemu/process.h"

namespace vmsieve {

namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr u64 kMaxRecordBytes = 16 * kMiB;
constexpr unsigned kMaxNesting = 8;
constexpr std::string_view kFilePrefix = "tracked-";
constexpr std::chrono::milliseconds kHolderPatience{5000};
constexpr std::chrono::milliseconds kPollInterval{1};

struct flock whole_file(short type) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  return lock;
}

/// The process that has the record lock; 0 when nobody has.
pid_t lock_holder(int file) {
  struct flock lock = whole_file(F_WRLCK);
  if (::fcntl(file, F_GETLK, &lock) != 0 || lock.l_type == F_UNLCK) return 0;
  return lock.l_pid;
}

/// The whole life of the holder, entered right after fork(2) with all signals blocked. Async-signal-safe. It
/// owns the userfaultfd, a handle of QEMU, and the record's file.
[[noreturn]] void hold(int userfaultfd, int qemu, int file, const char* path) noexcept {
  int kept[] = {userfaultfd, qemu, file};
  enter_own_life("vmsieve-holder", kept, 3);
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  if (::chdir("/") != 0 || ::fcntl(file, F_SETLK, &lock) != 0) ::_exit(1);
  // SIGTERM ends it, and the kernel the protection with it.
  struct sigaction standard {};
  standard.sa_handler = SIG_DFL;
  ::sigaction(SIGTERM, &standard, nullptr);
  sigset_t term;
  ::sigemptyset(&term);
  ::sigaddset(&term, SIGTERM);
  ::sigprocmask(SIG_UNBLOCK, &term, nullptr);
  pollfd end{qemu, POLLIN, 0};
  while (::poll(&end, 1, -1) <= 0) {
  }
  ::unlink(path);
  ::_exit(0);
}

}  // namespace

std::string encode_tracking_record(const TrackingRecord& record) {
  OrderedJson json = {{"version", 1},
                      {"qemu", record.qemu},
                      {"vm", json_text(record.vm_name)},
                      {"store", json_text(record.store)},
                      {"checkpoint", record.checkpoint},
                      {"why_none", json_text(record.why_none)},
                      {"blocks", OrderedJson::array()}};
  for (const TrackingRecord::Block& block : record.blocks) {
    json["blocks"].push_back({{"name", json_text(block.name)},
                              {"used_bytes", block.used_bytes},
                              {"start", block.host.start},
                              {"end", block.host.end}});
  }
  const std::string body = json.dump();
  return fmt::format("{:016x}\n{}", checksum(std::as_bytes(std::span{body})), body);
}

Result<TrackingRecord> decode_tracking_record(std::string_view text) {
  const std::size_t line = text.find('\n');
  const auto sum = parse_hex(text.substr(0, line), 16);
  const std::string_view body = line == std::string_view::npos ? "" : text.substr(line + 1);
  if (!sum || *sum != checksum(std::as_bytes(std::span{body})) || json_deeper_than(body, kMaxNesting))
    return Error(ErrorKind::kDamaged, "the record of what is tracked is not whole");
  const auto json = nlohmann::json::parse(body, nullptr, false);
  std::optional<Error> error;
  const JsonFields fields(json, "", error);
  TrackingRecord record;
  u64 version = 0;
  u64 qemu = 0;
  fields.get("version", version);
  fields.get("qemu", qemu);
  fields.get("vm", record.vm_name);
  fields.get("store", record.store);
  fields.get("checkpoint", record.checkpoint);
  fields.get("why_none", record.why_none);
  fields.list("blocks", [&](const JsonFields& block) {
    TrackingRecord::Block& to = record.blocks.emplace_back();
    block.get("name", to.name);
    block.get("used_bytes", to.used_bytes);
    block.get("start", to.host.start);
    block.get("end", to.host.end);
  });
  if (error) return *error;
  if (version != 1)
    return make_error(ErrorKind::kUnsupported, "the record of what is tracked has version {}", version);
  record.qemu = static_cast<pid_t>(qemu);
  return record;
}

std::vector<TrackingRecord::Block> tracked_blocks(const RamLayout& layout) {
  const MemoryUnits units(layout);
  std::vector<TrackingRecord::Block> blocks;
  for (u32 i = 0; i < layout.blocks.size(); ++i)
    blocks.push_back({layout.blocks[i].name, layout.blocks[i].used_bytes, units.block(i)});
  return blocks;
}

Result<std::optional<Tracking>> Tracking::find(pid_t qemu) {
  const std::string folder = runtime_folder();
  if (folder.empty()) return std::optional<Tracking>{};
  const std::string path = fmt::format("{}/{}{}", folder, kFilePrefix, qemu);
  auto file = open_file(path, O_RDWR | O_NOFOLLOW);
  if (!file.ok()) {
    if (file.error().kind() == ErrorKind::kNotFound) return std::optional<Tracking>{};
    return file.error();
  }
  const pid_t holder = lock_holder(file->get());
  // Left by a holder that was killed, or of one that is being started: then it is not for us to remove.
  if (holder == 0) return std::optional<Tracking>{};
  VMSIEVE_ASSIGN(const std::string text, read_text_file(path, kMaxRecordBytes));
  auto record = decode_tracking_record(text);
  if (!record.ok() || record->qemu != qemu) {
    // The writes go on being noted, but it is not known since when.
    record = TrackingRecord{.qemu = qemu,
                            .vm_name = "",
                            .store = "",
                            .checkpoint = "",
                            .why_none = "the last save was killed",
                            .blocks = {}};
  }
  return std::optional<Tracking>{Tracking(path, std::move(*file), holder, std::move(*record))};
}

Result<Tracking> Tracking::start(WriteProtection protection, const TrackingRecord& record) {
  const std::string folder = runtime_folder();
  if (folder.empty())
    return Error(ErrorKind::kIo, "there is no folder for what is tracked (XDG_RUNTIME_DIR)");
  const std::string path = fmt::format("{}/{}{}", folder, kFilePrefix, record.qemu);
  (void)::unlink(path.c_str());
  VMSIEVE_ASSIGN(UniqueFd file, open_file(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600));
  VMSIEVE_ASSIGN(const UniqueFd qemu, open_process(record.qemu));
  pid_t child = -1;
  {
    const SignalBlock block;
    child = ::fork();
    if (child == 0) hold(protection.descriptor(), qemu.get(), file.get(), path.c_str());
  }
  if (child < 0) return errno_error(errno, "cannot fork the holder");
  Tracking tracking(path, std::move(file), child, record);
  const auto deadline = std::chrono::steady_clock::now() + kHolderPatience;
  while (!tracking.is_held()) {
    if (::waitpid(child, nullptr, WNOHANG) != 0 || std::chrono::steady_clock::now() > deadline)
      return Error(ErrorKind::kIo, "the process that keeps the tracking ended early");
    std::this_thread::sleep_for(kPollInterval);
  }
  protection.hand_over();
  VMSIEVE_TRY(tracking.write());
  return tracking;
}

bool Tracking::is_held() const { return lock_holder(file_.get()) == holder_; }

Result<void> Tracking::forget_checkpoint(const std::string& why) {
  record_.store.clear();
  record_.checkpoint.clear();
  record_.why_none = why;
  return write();
}

Result<void> Tracking::set_checkpoint(const std::string& store, const std::string& checkpoint) {
  record_.store = store;
  record_.checkpoint = checkpoint;
  record_.why_none.clear();
  return write();
}

// In place, for the lock is on this file. One that was half-written is found by its checksum.
Result<void> Tracking::write() {
  const std::string text = encode_tracking_record(record_);
  if (::ftruncate(file_.get(), 0) != 0) return errno_error(errno, fmt::format("cannot write {}", path_));
  return pwrite_all(file_.get(), std::as_bytes(std::span{text}), 0, path_);
}

Result<void> Tracking::end() {
  // The lock goes before the userfaultfd does (fs/file_table.c, fput()): only the end of the process says
  // that another one may have the memory.
  const auto process = open_process(holder_);
  if (process.ok() && is_held()) {
    if (::kill(holder_, SIGTERM) != 0 && errno != ESRCH)
      return errno_error(errno, fmt::format("cannot end the process {}, which keeps the tracking", holder_));
    pollfd ended{process->get(), POLLIN, 0};
    const auto deadline = std::chrono::steady_clock::now() + kHolderPatience;
    while (::poll(&ended, 1, static_cast<int>(kPollInterval.count())) <= 0) {
      if (std::chrono::steady_clock::now() > deadline)
        return make_error(ErrorKind::kTimeout, "process {}, which keeps the tracking, does not end", holder_);
    }
    (void)::waitpid(holder_, nullptr, WNOHANG);  // it may be our child
  }
  (void)::unlink(path_.c_str());
  return {};
}

}  // namespace vmsieve
