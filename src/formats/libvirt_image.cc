// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/formats/libvirt_image.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <cstring>
#include <thread>

#include "vmsieve/base/clock.h"
#include "vmsieve/base/endian.h"
#include "vmsieve/base/runtime_folder.h"
#include "vmsieve/formats/export.h"
#include "vmsieve/qemu/libvirt_domain.h"
#include "vmsieve/qemu/process.h"
#include "vmsieve/restore/preflight.h"

namespace vmsieve {

namespace {

constexpr u32 kImageVersion = 2;
constexpr u64 kUnusedWords = 14;

/// A FIFO that only this user may open, gone with this object.
class Fifo {
 public:
  static Result<std::unique_ptr<Fifo>> make() {
    const std::string folder = runtime_folder();
    if (folder.empty()) return Error(ErrorKind::kIo, "there is no place for a FIFO");
    std::unique_ptr<Fifo> fifo{new Fifo(fmt::format("{}/libvirt-restore-{}", folder, ::getpid()))};
    (void)::unlink(fifo->path_.c_str());
    if (::mkfifo(fifo->path_.c_str(), 0600) != 0)
      return errno_error(errno, fmt::format("cannot make {}", fifo->path_));
    return fifo;
  }
  ~Fifo() { (void)::unlink(path_.c_str()); }
  Fifo(const Fifo&) = delete;
  Fifo& operator=(const Fifo&) = delete;

  const std::string& path() const { return path_; }
  /// Whoever waits in open(2) to write goes on, and is told that nobody reads.
  void give_up() const { UniqueFd{::open(path_.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)}; }

 private:
  explicit Fifo(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

Result<void> feed_libvirt(const CheckpointReader& reader, bool running, unsigned threads,
                          const ProgressFunction& progress) {
  VMSIEVE_ASSIGN(const auto fifo, Fifo::make());
  ExportOptions exporting{.format = ExportFormat::kLibvirt};
  exporting.threads = threads != 0 ? threads : std::max(1U, std::thread::hardware_concurrency());
  Result<ExportReport> written = Error(ErrorKind::kIo, "nothing was written");
  std::thread writer([&] { written = export_checkpoint(reader, exporting, fifo->path(), progress); });
  const auto restored = restore_libvirt_image(fifo->path(), running, reader.manifest().libvirt.uri);
  if (!restored) fifo->give_up();
  writer.join();
  // What went wrong with the checkpoint says more than that libvirt had no more of it.
  if (!written && written.error().kind() == ErrorKind::kDamaged) return written.error();
  return restored;
}

}  // namespace

std::vector<std::byte> LibvirtImageHead::encode(std::string_view xml, bool was_running) {
  std::vector<std::byte> head;
  append_bytes(head, as_byte_span(kMagic));
  append_le(head, kImageVersion);
  append_le(head, static_cast<u32>(xml.size() + 1));
  append_le(head, u32{was_running});
  append_le(head, static_cast<u32>(LibvirtStream::kRaw));
  append_le(head, u32{0});
  head.resize(head.size() + kUnusedWords * sizeof(u32));
  append_bytes(head, as_byte_span(xml));
  head.push_back(std::byte{0});
  return head;
}

Result<LibvirtImageHead> LibvirtImageHead::decode_fixed(std::span<const std::byte> fixed) {
  if (fixed.size() < kFixedBytes || std::memcmp(fixed.data(), kMagic.data(), kMagic.size()) != 0)
    return Error(ErrorKind::kDamaged, "the head of a libvirt image is not whole");
  const std::byte* words = fixed.data() + kMagic.size();
  const u32 version = load_le<u32>(words);
  const u32 data_bytes = load_le<u32>(words + 4);
  const u32 stream = load_le<u32>(words + 12);
  if (version == load_be<u32>(std::as_bytes(std::span{&kImageVersion, 1}).data()))
    return Error(ErrorKind::kUnsupported, "a libvirt image of a host with the other byte order");
  if (version != kImageVersion)
    return make_error(ErrorKind::kUnsupported, "a libvirt image of version {}, not {}", version,
                      kImageVersion);
  if (data_bytes == 0 || data_bytes > kMaxDataBytes)
    return make_error(ErrorKind::kDamaged, "a libvirt image with {} bytes of XML", data_bytes);
  if (stream > static_cast<u32>(LibvirtStream::kZstd))
    return make_error(ErrorKind::kUnsupported, "a libvirt image of an unknown form ({})", stream);
  LibvirtImageHead head;
  head.was_running = load_le<u32>(words + 8) != 0;
  head.stream = LibvirtStream{stream};
  head.stream_offset = kFixedBytes + data_bytes;
  return head;
}

Result<void> LibvirtImageHead::take_xml(std::span<const std::byte> data) {
  const auto end = std::find(data.begin(), data.end(), std::byte{0});
  if (end == data.end() || end == data.begin())
    return Error(ErrorKind::kDamaged, "the domain's XML in a libvirt image is not whole");
  xml.assign(reinterpret_cast<const char*>(data.data()), static_cast<std::size_t>(end - data.begin()));
  return {};
}

bool belongs_to_libvirt(const Manifest& manifest, const RestoreOptions& options) {
  return !manifest.libvirt.xml.empty() && !options.qemu_executable && !options.qmp_path &&
         options.set.empty() && options.extra_arguments.empty() && !options.omitted_fill;
}

Result<RestoreReport> restore_in_libvirt(const CheckpointReader& reader, const RestoreOptions& options,
                                         const ProgressFunction& progress) {
  const Stopwatch watch;
  const Manifest& manifest = reader.manifest();
  if (options.mode == RestoreMode::kLazy) {
    return Error(
        ErrorKind::kUnsupported,
        "libvirt loads all of a domain's memory before it runs: a lazy restore needs a QEMU of its own");
  }
  VMSIEVE_TRY(check_disks(manifest, options.disks_as_they_are));
  RestoreReport report;
  report.was_running = manifest.was_running;
  report.running = options.after == AfterRestore::kAsSaved ? manifest.was_running
                                                           : options.after == AfterRestore::kRunning;
  VMSIEVE_TRY(feed_libvirt(reader, report.running, options.threads, progress));
  report.ready_ms = watch.ms();
  report.vm = "libvirt:" + manifest.libvirt.domain;
  VMSIEVE_ASSIGN(const VmAddress address, resolve_vm(report.vm));
  report.pid = address.process.pid;
  return report;
}

}  // namespace vmsieve
