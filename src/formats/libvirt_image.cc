// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/formats/libvirt_image.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "vmsieve/base/clock.h"
#include "vmsieve/base/endian.h"
#include "vmsieve/formats/export.h"
#include "vmsieve/formats/libvirt_fifo.h"
#include "vmsieve/qemu/libvirt_domain.h"
#include "vmsieve/qemu/process.h"
#include "vmsieve/restore/image_check.h"
#include "vmsieve/restore/preflight.h"

namespace vmsieve {

namespace {

constexpr u32 kImageVersion = 2;
constexpr u64 kUnusedWords = 14;

/// QEMUs of this name. Whether libvirt has started them does not show in each command line
/// (started_by_libvirt(): not with a monitor of the owner's beside libvirt's).
std::vector<pid_t> qemus_of(const std::string& domain) {
  std::vector<pid_t> found;
  const auto processes = list_qemu_processes();
  if (!processes.ok()) return found;
  for (const QemuProcess& process : *processes) {
    if (process.name == domain) found.push_back(process.pid);
  }
  return found;
}

Result<RestoredDisks> make_domains_disks(Store& store, const CheckpointReader& reader,
                                         const RestoreOptions& options) {
  const Manifest& manifest = reader.manifest();
  if (manifest.disks.empty() || options.disks_as_they_are) return RestoredDisks{};
  if (options.disks.temporary) {
    return Error(ErrorKind::kUnsupported,
                 "libvirt finds the disks of a domain by their names: temporary ones need a QEMU of its own "
                 "(--qmp PATH)");
  }
  // They are copied out, so that all is read in any case.
  VMSIEVE_TRY(check_copies(store, reader, /*wholly=*/true));
  RestoredDiskOptions disks = options.disks;
  disks.for_another = true;
  return RestoredDisks::make(store, manifest, disks, "");
}

Result<std::string> xml_with(const std::string& xml, const RestoredDisks& disks) {
  if (disks.disks().empty()) return xml;
  std::vector<DomainOverlay> overlays;
  for (const RestoredDisks::Disk& disk : disks.disks()) overlays.push_back({disk.saved.chain, disk.overlay});
  return put_overlays_into(xml, overlays);
}

Result<void> feed_libvirt(const CheckpointReader& reader, const std::string& xml, bool running,
                          unsigned threads, const ProgressFunction& progress) {
  const Manifest& manifest = reader.manifest();
  VMSIEVE_ASSIGN(const auto fifo, LibvirtFifo::make());
  const unsigned used = threads != 0 ? threads : std::max(1U, std::thread::hardware_concurrency());
  // One that runs already is why libvirt will refuse.
  const std::vector<pid_t> others = qemus_of(manifest.libvirt.domain);
  const auto is_loading = [&] {
    return std::ranges::any_of(qemus_of(manifest.libvirt.domain),
                               [&](pid_t pid) { return std::ranges::find(others, pid) == others.end(); });
  };
  const auto write = [&]() -> Result<u64> {
    const auto head = LibvirtImageHead::encode(xml, manifest.was_running);
    VMSIEVE_ASSIGN(UniqueFd fd, fifo->serve_head(head, is_loading));
    return export_libvirt_stream(reader, used, std::move(fd), progress);
  };
  Result<u64> written = Error(ErrorKind::kIo, "nothing was written");
  std::thread writer([&] { written = write(); });
  const auto restored = restore_libvirt_image(fifo->path(), running, manifest.libvirt.uri);
  if (!restored) fifo->give_up();
  writer.join();
  // What went wrong with the checkpoint says more than that libvirt had no more of it.
  if (!written && written.error().kind() == ErrorKind::kDamaged) return written.error();
  return restored;
}

/// What the domain is started with the next time.
Result<void> go_on_with(const RestoredDisks& disks, const VmAddress& address) {
  std::vector<DomainOverlay> overlays;
  for (const RestoredDisks::Disk& disk : disks.disks()) {
    if (!disk.saved.overlay.empty()) overlays.push_back({{disk.saved.overlay}, disk.overlay});
  }
  VMSIEVE_ASSIGN(const auto qmp, QmpClient::connect(address.qmp_path));
  return let_domain_go_on(*qmp, overlays);
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

Result<RestoreReport> restore_in_libvirt(Store& store, const CheckpointReader& reader,
                                         const RestoreOptions& options, const ProgressFunction& progress) {
  const Stopwatch watch;
  const Manifest& manifest = reader.manifest();
  if (options.mode == RestoreMode::kLazy) {
    return Error(
        ErrorKind::kUnsupported,
        "libvirt loads all of a domain's memory before it runs: a lazy restore needs a QEMU of its own");
  }
  VMSIEVE_TRY(check_disks(manifest, options.disks_as_they_are));
  VMSIEVE_ASSIGN(RestoredDisks disks, make_domains_disks(store, reader, options));
  VMSIEVE_ASSIGN(const std::string xml, xml_with(manifest.libvirt.xml, disks));
  RestoreReport report;
  report.was_running = manifest.was_running;
  report.running = options.after == AfterRestore::kAsSaved ? manifest.was_running
                                                           : options.after == AfterRestore::kRunning;
  VMSIEVE_TRY(feed_libvirt(reader, xml, report.running, options.threads, progress));
  report.ready_ms = watch.ms();
  report.vm = "libvirt:" + manifest.libvirt.domain;
  const auto address = resolve_vm(report.vm);
  if (disks.takes_place()) {
    const auto gone_on = address ? go_on_with(disks, *address) : Result<void>{address.error()};
    if (!gone_on) {
      // What the domain is started with the next time must not be removed.
      disks.stay_beside();
      report.warnings.push_back("the domain's persistent XML stays on its old disks, which are kept: " +
                                gone_on.error().message());
    }
  }
  if (const auto kept = disks.keep(store); !kept) report.warnings.push_back(kept.error().message());
  report.disks = disks.overlays();
  report.abandoned = disks.abandoned();
  if (!address) return address.error();
  report.pid = address->process.pid;
  return report;
}

}  // namespace vmsieve
