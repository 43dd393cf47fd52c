// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/formats/import.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <thread>

#include <fcntl.h>
#include <sys/stat.h>

#include "vmsieve/base/endian.h"
#include "vmsieve/base/fd.h"
#include "vmsieve/formats/decompressor.h"
#include "vmsieve/formats/import_dump.h"
#include "vmsieve/formats/libvirt_image.h"
#include "vmsieve/qemu/libvirt_domain.h"
#include "vmsieve/qemu/process.h"
#include "vmsieve/restore/command_line.h"
#include "vmsieve/restore/launch.h"
#include "vmsieve/restore/missing_guard.h"
#include "vmsieve/restore/preflight.h"
#include "vmsieve/restore/qmp_place.h"
#include "vmsieve/restore/ram_files.h"

namespace vmsieve {

namespace {

constexpr std::size_t kBeginningBytes = 4096;
constexpr std::size_t kPieceBytes = 1 << 20;
// The whole file may have to come from a slow disk by QEMU's own reading.
constexpr std::chrono::hours kLoadPatience{24};

constexpr std::string_view kStreamMagic = "QEVM";
constexpr std::string_view kElfMagic =
    "\x7f"
    "ELF";
constexpr std::string_view kKdumpMagic = "KDUMP   ";              // makedumpfile's IMPLEMENTATION
constexpr std::string_view kFlatMagic = "makedumpfile";           // a flattened one
constexpr std::string_view kLibvirtPartial = "LibvirtQemudPart";  // qemu_saveimage.h, QEMU_SAVE_PARTIAL
constexpr std::string_view kMappedRam = "mapped-ram";
constexpr std::chrono::seconds kQuitPatience{30};
constexpr int kShutOffTries = 100;
constexpr std::chrono::milliseconds kShutOffInterval{100};

struct SourceFile {
  std::string path;  ///< absolute: QEMU reads it itself in another working directory
  UniqueFd fd;
  ImportFormat format = ImportFormat::kQemu;
  LibvirtImageHead libvirt;  ///< of kLibvirt
  u64 bytes = 0;
  u64 allocated_bytes = 0;
};

Result<void> read_libvirt_head(SourceFile& file, std::span<const std::byte> beginning) {
  VMSIEVE_ASSIGN(file.libvirt, LibvirtImageHead::decode_fixed(beginning));
  if (file.libvirt.stream_offset > file.bytes)
    return Error(ErrorKind::kDamaged, "the libvirt image ends within the domain's XML");
  std::vector<std::byte> data(file.libvirt.stream_offset - LibvirtImageHead::kFixedBytes);
  VMSIEVE_TRY(pread_exact(file.fd.get(), data, LibvirtImageHead::kFixedBytes, file.path));
  return file.libvirt.take_xml(data);
}

Result<SourceFile> open_source(const std::string& path) {
  SourceFile file;
  file.path = std::filesystem::absolute(path).string();
  VMSIEVE_ASSIGN(file.fd, open_file(path, O_RDONLY));
  struct stat status {};
  if (::fstat(file.fd.get(), &status) != 0) return errno_error(errno, fmt::format("cannot look at {}", path));
  if (!S_ISREG(status.st_mode)) return make_error(ErrorKind::kUsage, "{} is no regular file", path);
  file.bytes = static_cast<u64>(status.st_size);
  file.allocated_bytes = static_cast<u64>(status.st_blocks) * 512;
  std::vector<std::byte> beginning(std::min<u64>(file.bytes, kBeginningBytes));
  VMSIEVE_TRY(pread_exact(file.fd.get(), beginning, 0, path));
  auto format = recognise_import(beginning);
  if (!format) return format.error().with_context(path);
  file.format = *format;
  if (*format == ImportFormat::kLibvirt) {
    if (const auto head = read_libvirt_head(file, beginning); !head) return head.error().with_context(path);
  }
  return file;
}

Result<QemuCommandLine> build_command_line(const ImportOptions& options) {
  if (options.command_line.empty())
    return Error(ErrorKind::kUsage, "a QEMU command line is needed behind `--`, for the file holds none");
  VMSIEVE_ASSIGN(QemuCommandLine line,
                 QemuCommandLine::parse({options.command_line.begin() + 1, options.command_line.end()}));
  line.strip_for_restore();
  VMSIEVE_TRY(check_accelerator(line));
  VMSIEVE_TRY(check_obstacles(line, options.working_directory));
  return line;
}

Result<std::unique_ptr<RunningQemu>> start_qemu(const SourceFile& file, const ImportOptions& options,
                                                const QemuCommandLine& line) {
  VMSIEVE_ASSIGN(const std::string executable, find_executable(options.command_line.front()));
  VMSIEVE_ASSIGN(const RamFileCheck ram_files,
                 check_ram_files(find_ram_files(line, options.working_directory)));
  if (ram_files.old_bytes_show)
    return Error(ErrorKind::kUnsupported, "its memory would hold something already: give it other memory");
  VMSIEVE_TRY(clear_ram_files(ram_files.to_clear));
  VMSIEVE_ASSIGN(QmpPlace place, claim_default_qmp_place({}, options.working_directory, "import", ""));
  return RunningQemu::start({.executable = executable,
                             .arguments = line.arguments(),
                             .working_directory = options.working_directory,
                             .stopped = true,
                             .defer = file.format == ImportFormat::kQemuMappedRam},
                            std::move(place));
}

Result<void> send_all(const SourceFile& file, RunningQemu& qemu, const ProgressFunction& progress) {
  std::vector<std::byte> piece(kPieceBytes);
  for (u64 done = file.libvirt.stream_offset; done < file.bytes;) {
    const std::span<std::byte> next = std::span{piece}.first(std::min<u64>(kPieceBytes, file.bytes - done));
    VMSIEVE_TRY(pread_exact(file.fd.get(), next, done, file.path));
    const auto sent = qemu.send(next);
    // It has what it wants, or cannot use it: it tells which.
    if (!sent && sent.error().kind() == ErrorKind::kVanished) break;
    VMSIEVE_TRY(sent);
    done += next.size();
    progress({"loading", done, file.bytes});
  }
  qemu.close_stream();
  return {};
}

/// What the compressed part of a libvirt image is, by the program that libvirt itself runs for it.
Result<void> send_decompressed(const SourceFile& file, RunningQemu& qemu, const ProgressFunction& progress) {
  VMSIEVE_ASSIGN(Decompressor program,
                 Decompressor::start(file.libvirt.stream, file.fd.get(), file.libvirt.stream_offset));
  std::vector<std::byte> piece(kPieceBytes);
  for (u64 done = 0;;) {
    VMSIEVE_ASSIGN(const std::size_t read, program.read(piece));
    if (read == 0) break;
    const auto sent = qemu.send(std::span{piece}.first(read));
    if (!sent && sent.error().kind() == ErrorKind::kVanished) {
      qemu.close_stream();
      return {};
    }
    VMSIEVE_TRY(sent);
    done += read;
    progress({"loading", done, 0});
  }
  qemu.close_stream();
  return program.finish();
}

Result<void> load(const SourceFile& file, RunningQemu& qemu, const ProgressFunction& progress) {
  if (file.format == ImportFormat::kLibvirt && file.libvirt.stream != LibvirtStream::kRaw) {
    VMSIEVE_TRY(send_decompressed(file, qemu, progress));
  } else if (file.format != ImportFormat::kQemuMappedRam) {
    VMSIEVE_TRY(send_all(file, qemu, progress));
  } else {
    using Json = QmpClient::Json;
    const Json mapped_ram = {{"capability", std::string(kMappedRam)}, {"state", true}};
    VMSIEVE_TRY(
        qemu.qmp().execute("migrate-set-capabilities", {{"capabilities", Json::array({mapped_ram})}}));
    VMSIEVE_TRY(qemu.qmp().execute("migrate-incoming", {{"uri", "file:" + file.path}}));
  }
  return qemu.wait_until_loaded(kLoadPatience);
}

SaveOptions saving_of(const SourceFile& file, const ImportOptions& options) {
  SaveOptions saving = options.saving;
  saving.disks.way.reset();  // those of the QEMU that reads the file are not the guest's
  saving.mode = SaveMode::kPaused;
  saving.incremental = false;
  if (!saving.was_running)
    saving.was_running = file.format != ImportFormat::kLibvirt || file.libvirt.was_running;
  return saving;
}

/// The QEMU, with all of the file in it, saved.
Result<SaveReport> save_loaded(const SourceFile& file, RunningQemu& qemu, Store& store,
                               const ImportOptions& options, const ProgressFunction& progress) {
  VMSIEVE_ASSIGN(const QemuProcess process, read_qemu_process(qemu.pid()));
  qemu.leave_monitor();
  return save({process, qemu.qmp_path()}, store, saving_of(file, options), progress);
}

/// As libvirt writes it into every domain's XML.
Result<std::string> uuid_in(const std::string& xml) {
  constexpr std::string_view kTag = "<uuid>";
  constexpr std::size_t kUuidLength = 36;
  const std::size_t at = xml.find(kTag);
  if (at != std::string::npos && xml.find("</uuid>", at) == at + kTag.size() + kUuidLength) {
    const std::string uuid = xml.substr(at + kTag.size(), kUuidLength);
    if (uuid.find_first_not_of("0123456789abcdefABCDEF-") == std::string::npos) return uuid;
  }
  return Error(ErrorKind::kDamaged, "the domain's XML in the libvirt image tells no UUID");
}

/// libvirt takes a moment to notice that a domain's QEMU has ended, and would not start or restore it before.
void wait_until_shut_off(const std::string& uuid) {
  for (int i = 0; i < kShutOffTries; ++i) {
    const auto vm = resolve_vm("libvirt:" + uuid);
    if (!vm && vm.error().kind() == ErrorKind::kNotFound) return;
    std::this_thread::sleep_for(kShutOffInterval);
  }
}

/// libvirt loads the image and lets the domain stand; it is saved like any other, and ended.
Result<SaveReport> import_domain(const SourceFile& file, Store& store, const ImportOptions& options,
                                 const ProgressFunction& progress) {
  VMSIEVE_ASSIGN(const std::string uuid, uuid_in(file.libvirt.xml));
  progress({"libvirt restores it", 0, 0});
  VMSIEVE_TRY(restore_libvirt_image(file.path, false, ""));
  VMSIEVE_ASSIGN(const VmAddress vm, resolve_vm("libvirt:" + uuid));
  VMSIEVE_ASSIGN(const UniqueFd handle, open_process(vm.process.pid));
  auto saved = save(vm, store, saving_of(file, options), progress);
  VMSIEVE_ASSIGN(const auto qmp, QmpClient::connect(vm.qmp_path));
  // What comes of it is seen by the process, not by the answer, which may be lost with QEMU.
  (void)qmp->execute("quit");
  if (!has_ended(handle.get(), kQuitPatience))
    return make_error(ErrorKind::kTimeout, "the domain {} that libvirt restored does not end", uuid);
  wait_until_shut_off(uuid);
  return saved;
}

bool begins_with(std::span<const std::byte> bytes, std::string_view magic) {
  return bytes.size() >= magic.size() && std::ranges::equal(bytes.first(magic.size()), as_byte_span(magic));
}

}  // namespace

std::string_view to_string(ImportFormat format) {
  switch (format) {
    case ImportFormat::kQemu: return "qemu";
    case ImportFormat::kQemuMappedRam: return "qemu-mapped-ram";
    case ImportFormat::kLibvirt: return "libvirt";
    case ImportFormat::kElf: return "elf";
  }
  return "";
}

Result<ImportFormat> recognise_import(std::span<const std::byte> beginning) {
  if (begins_with(beginning, kElfMagic)) return ImportFormat::kElf;
  if (begins_with(beginning, kKdumpMagic) || begins_with(beginning, kFlatMagic))
    return Error(
        ErrorKind::kUnsupported,
        "this is a dump in makedumpfile's own format: an ELF core can be imported (makedumpfile -E, or "
        "dump-guest-memory without compression)");
  if (begins_with(beginning, LibvirtImageHead::kMagic)) return ImportFormat::kLibvirt;
  if (begins_with(beginning, kLibvirtPartial))
    return Error(ErrorKind::kDamaged, "this is an image of `virsh save` that was not finished");
  if (!begins_with(beginning, kStreamMagic))
    return Error(ErrorKind::kUnsupported, "this is no migration stream of QEMU");
  const auto word = as_byte_span(kMappedRam);
  const bool mapped =
      std::search(beginning.begin(), beginning.end(), word.begin(), word.end()) != beginning.end();
  return mapped ? ImportFormat::kQemuMappedRam : ImportFormat::kQemu;
}

Result<ImportReport> import_file(const std::string& path, Store& store, const ImportOptions& options,
                                 const ProgressFunction& progress) {
  VMSIEVE_ASSIGN(SourceFile file, open_source(path));
  if (file.format == ImportFormat::kElf) {
    auto saved = import_dump(std::move(file.fd), file.bytes, path, store, options.saving, progress);
    if (!saved) return saved.error().with_context(path);
    return ImportReport{std::move(*saved), file.format, file.bytes, file.allocated_bytes};
  }
  if (file.format == ImportFormat::kLibvirt && options.command_line.empty()) {
    auto saved = import_domain(file, store, options, progress);
    if (!saved) return saved.error().with_context(path);
    return ImportReport{std::move(*saved), file.format, file.bytes, file.allocated_bytes};
  }
  VMSIEVE_ASSIGN(const QemuCommandLine line, build_command_line(options));
  progress({"starting QEMU", 0, 0});
  VMSIEVE_ASSIGN(const auto qemu, start_qemu(file, options, line));
  // With all of its stream, or one that it reads itself, it would live on without us.
  VMSIEVE_ASSIGN(const UniqueFd handle, open_process(qemu->pid()));
  VMSIEVE_ASSIGN(const UniqueFd log, open_file(qemu->log_path(), O_WRONLY | O_APPEND));
  VMSIEVE_ASSIGN(const auto guard, MissingGuard::make(handle.get(), log.get()));
  if (const auto loaded = load(file, *qemu, progress); !loaded) {
    guard->dismiss();
    return qemu->explain(loaded.error()).with_context(path);
  }
  auto saved = save_loaded(file, *qemu, store, options, progress);
  guard->dismiss();
  if (!saved) return qemu->explain(saved.error());
  return ImportReport{std::move(*saved), file.format, file.bytes, file.allocated_bytes};
}

}  // namespace vmsieve
