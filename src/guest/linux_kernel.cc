// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/guest/linux_kernel.h"

#include <algorithm>

#include "vmsieve/guest/arm64_kernel.h"
#include "vmsieve/guest/kernel_description.h"
#include "vmsieve/guest/kernel_symbols.h"
#include "vmsieve/guest/vmcoreinfo_pointer.h"
#include "vmsieve/guest/vmcoreinfo_search.h"
#include "vmsieve/guest/x86_kernel.h"

namespace vmsieve {
namespace {

constexpr unsigned kSearchThreads = 2;
constexpr std::size_t kReasonsShown = 3;

// What is to be read of the vCPUs at the instant that the answer is about, before any kernel is known.
// Of arm64's, the registers are enough: the tables of the kernel's half do not change with the process.
using Evidence = std::variant<std::vector<VcpuTables>, std::vector<Arm64Vcpu>>;

struct EvidenceReader {
  const GuestMemory& memory;

  Result<Evidence> operator()(const std::vector<X86Vcpu>& vcpus) const {
    VMSIEVE_ASSIGN(auto tables, read_vcpu_tables(memory, vcpus));
    return Evidence{std::move(tables)};
  }
  Result<Evidence> operator()(const std::vector<Arm64Vcpu>& vcpus) const {
    VMSIEVE_TRY(check_arm64_modes(vcpus));
    return Evidence{vcpus};
  }
  Result<Evidence> operator()(const UnknownVcpus& vcpus) const {
    return make_error(ErrorKind::kIncompatible, "kernels for {} processors are not understood",
                      vcpus.architecture);
  }
};

Result<Evidence> read_evidence(const GuestMemory& memory, const Vcpus& vcpus) {
  return std::visit(EvidenceReader{memory}, vcpus);
}

// Check C, second half.
struct VcpuCheck {
  const GuestMemory& memory;
  const LinuxKernel& kernel;

  Result<void> operator()(const std::vector<VcpuTables>& vcpus) const {
    return check_x86_vcpus(memory, kernel.image(), kernel.release(), vcpus);
  }
  Result<void> operator()(const std::vector<Arm64Vcpu>& vcpus) const {
    return check_arm64_vcpus(memory, kernel.image(), kernel.release(), vcpus);
  }
};

// Check A again: the text that was found is still there.
Result<void> check_text(const GuestMemory& memory, const LinuxKernel& kernel) {
  const KernelWitness& witness = kernel.witness();
  std::string now(witness.text.size(), '\0');
  const auto read = memory.read(witness.address, std::as_writable_bytes(std::span{now}));
  if (!read.ok()) return read.error().with_context("reading again the text by which the kernel was found");
  if (now != witness.text) {
    return make_error(ErrorKind::kIncompatible, "the text by which {} was found is no longer at {:#x}",
                      kernel.release(), witness.address.value);
  }
  return {};
}

// Check B: the kernel's own tables map its text where its own numbers say.
Result<void> check_own_tables(const GuestMemory& memory, const LinuxKernel& kernel) {
  const KernelImage& image = kernel.image();
  const auto found = translate(memory, image.page_tables, image.text);
  if (!found.ok()) {
    return make_error(ErrorKind::kIncompatible, "the page tables of {} do not map its text: {}",
                      kernel.release(), found.error().message());
  }
  if (*found != image.text_physical) {
    return make_error(ErrorKind::kIncompatible, "the page tables of {} map its text at {:#x}, not at {:#x}",
                      kernel.release(), found->value, image.text_physical.value);
  }
  return {};
}

// What is wrong with a kernel is one kind of error, failing to read the guest another.
Error as_incompatible(const Error& error) {
  const bool guest_says_so = error.kind() == ErrorKind::kNotFound || error.kind() == ErrorKind::kDamaged;
  return guest_says_so ? Error(ErrorKind::kIncompatible, error.message()) : error;
}

Result<void> check_all(const GuestMemory& memory, const LinuxKernel& kernel, const Evidence& evidence) {
  for (const auto& result : {check_text(memory, kernel), check_own_tables(memory, kernel)}) {
    if (!result.ok()) return as_incompatible(result.error());
  }
  const auto result = std::visit(VcpuCheck{memory, kernel}, evidence);
  if (!result.ok()) return as_incompatible(result.error());
  return {};
}

// Do the vCPUs hold all that check C needs?
Result<void> check_complete(const Vcpus& vcpus) {
  const auto* arm64 = std::get_if<std::vector<Arm64Vcpu>>(&vcpus);
  if (arm64 == nullptr) return {};
  for (const Arm64Vcpu& vcpu : *arm64) {
    if (vcpu.system) continue;
    return make_error(ErrorKind::kIncompatible, "the system registers of vCPU {} are not known", vcpu.index);
  }
  return {};
}

Result<LinuxKernel> try_candidate(const GuestMemory& memory, const VmcoreInfoCandidate& candidate,
                                  const Evidence& evidence) {
  VMSIEVE_ASSIGN(VmcoreInfo info, VmcoreInfo::parse(candidate.text));
  VMSIEVE_ASSIGN(LinuxKernel kernel, LinuxKernel::from_vmcoreinfo(std::move(info), candidate.address));
  VMSIEVE_TRY(check_all(memory, kernel, evidence));
  return kernel;
}

// The banner of the kernel with these names, from which its release is known, as far as it is in one page.
Result<KernelWitness> banner_of(const GuestMemory& memory, const PageTableRoot& tables,
                                const KernelSymbols& symbols, std::string_view release) {
  const auto banner = symbols.symbols().address("linux_banner");
  if (!banner) return Error(ErrorKind::kNotFound, "the kernel has no banner");
  VMSIEVE_ASSIGN(const GuestPhysical address, translate(memory, tables, *banner));
  KernelWitness witness{address, fmt::format("Linux version {}", release)};
  witness.text.resize(std::min<u64>(witness.text.size(), kPageSize - address.value % kPageSize));
  return witness;
}

// A kernel whose VMCOREINFO is missing or cut off. `names` are its kallsyms, `written` the beginning of the
// text if there is one.
Result<LinuxKernel> describe(const GuestMemory& memory, const PageTableRoot& tables, Kallsyms names,
                             const std::optional<VmcoreInfo>& written, GuestPhysical written_at) {
  VMSIEVE_ASSIGN(const KernelSymbols symbols, KernelSymbols::read(memory, tables, std::move(names)));
  VMSIEVE_ASSIGN(VmcoreInfo info, describe_kernel(memory, tables, symbols, written ? &*written : nullptr));
  if (written) return LinuxKernel::from_description(std::move(info), {written_at, written->text()});
  VMSIEVE_ASSIGN(KernelWitness banner, banner_of(memory, tables, symbols, info.release()));
  return LinuxKernel::from_description(std::move(info), std::move(banner));
}

Result<LinuxKernel> by_own_names(const GuestMemory& memory, const PageTableRoot& tables, Kallsyms names) {
  std::optional<VmcoreInfo> written;
  const auto candidate = follow_vmcoreinfo_pointer(memory, tables, names);
  if (candidate.ok()) {
    auto parsed = VmcoreInfo::parse(candidate->text);
    if (parsed.ok()) written = *std::move(parsed);
  }
  if (written && describes_kernel(*written))
    return LinuxKernel::from_vmcoreinfo(*std::move(written), candidate->address);
  const GuestPhysical at = candidate.ok() ? candidate->address : GuestPhysical{};
  return describe(memory, tables, std::move(names), written, at);
}

// The kernel that the first vCPU's own page tables map, when its own names lead to all that is to be known
// of it, and it passes. No search through all of memory, and no text that somebody else put there. Of a
// kernel that has names, the reason why not is one of `reasons`.
std::optional<LinuxKernel> try_own_names(const GuestMemory& memory, const Evidence& evidence,
                                         std::vector<std::string>& reasons) {
  const auto* x86 = std::get_if<std::vector<VcpuTables>>(&evidence);
  if (x86 == nullptr || x86->empty()) return std::nullopt;
  for (const PageTableRoot& tables : x86->front().roots()) {
    auto names = Kallsyms::search(memory, tables);
    if (!names.ok()) continue;
    auto kernel = by_own_names(memory, tables, *std::move(names));
    const auto passes = kernel.ok() ? check_all(memory, *kernel, evidence) : Result<void>(kernel.error());
    if (passes.ok()) return *std::move(kernel);
    reasons.push_back(passes.error().message());
  }
  return std::nullopt;
}

// The data page holds at most the beginning of what the note holds.
bool same_text(std::string_view a, std::string_view b) { return a.starts_with(b) || b.starts_with(a); }

Error none_alive(const GuestMemory& memory, const std::vector<std::string>& reasons) {
  if (reasons.empty()) {
    u64 pages = 0;
    for (const PfnRange& range : memory.ram()) pages += range.count;
    return make_error(ErrorKind::kNotFound,
                      "no VMCOREINFO in {} MiB of guest memory: not Linux, or not started yet",
                      pages * kPageSize / kMiB);
  }
  std::string text;
  for (std::size_t i = 0; i < std::min(reasons.size(), kReasonsShown); ++i) {
    text += (i == 0 ? "" : "; ") + reasons[i];
  }
  if (reasons.size() > kReasonsShown) text += fmt::format("; and {} more", reasons.size() - kReasonsShown);
  return make_error(ErrorKind::kIncompatible, "no live Linux kernel: {}", text);
}

}  // namespace

u64 vcpu_count(const Vcpus& vcpus) {
  struct Count {
    u64 operator()(const std::vector<X86Vcpu>& x86) const { return x86.size(); }
    u64 operator()(const std::vector<Arm64Vcpu>& arm64) const { return arm64.size(); }
    u64 operator()(const UnknownVcpus& unknown) const { return unknown.count; }
  };
  return std::visit(Count{}, vcpus);
}

Result<LinuxKernel> LinuxKernel::from_vmcoreinfo(VmcoreInfo info, GuestPhysical address) {
  KernelWitness witness{address, info.text()};
  return from_description(std::move(info), std::move(witness));
}

Result<LinuxKernel> LinuxKernel::from_description(VmcoreInfo info, KernelWitness witness) {
  // Each architecture prints where its image lies under a name of its own.
  const auto image_of = [&]() -> Result<KernelImage> {
    if (info.number("phys_base")) return x86_kernel_image(info);
    if (info.number("kimage_voffset")) return arm64_kernel_image(info);
    return make_error(
        ErrorKind::kUnsupported,
        "VMCOREINFO of {} without NUMBER(phys_base) and NUMBER(kimage_voffset): neither an x86-64 "
        "nor an arm64 kernel",
        info.release());
  };
  VMSIEVE_ASSIGN(const KernelImage image, image_of());
  return LinuxKernel(std::move(info), image, std::move(witness));
}

Result<void> LinuxKernel::prove_live(const GuestMemory& memory, const Vcpus& vcpus) const {
  VMSIEVE_TRY(check_complete(vcpus));
  return seems_live(memory, vcpus);
}

Result<void> LinuxKernel::seems_live(const GuestMemory& memory, const Vcpus& vcpus) const {
  VMSIEVE_ASSIGN(const Evidence evidence, read_evidence(memory, vcpus));
  return check_all(memory, *this, evidence);
}

Result<LinuxKernel> find_linux_kernel(const GuestMemory& memory, const Vcpus& vcpus) {
  const auto evidence = read_evidence(memory, vcpus);
  if (!evidence.ok()) {
    return make_error(ErrorKind::kIncompatible, "no live Linux kernel: {}", evidence.error().message());
  }
  std::vector<std::string> reasons;
  if (auto own = try_own_names(memory, *evidence, reasons)) return *std::move(own);
  VMSIEVE_ASSIGN(const auto candidates, search_vmcoreinfo(memory, kSearchThreads));
  std::optional<LinuxKernel> live;
  for (const VmcoreInfoCandidate& candidate : candidates) {
    auto kernel = try_candidate(memory, candidate, *evidence);
    if (!kernel.ok()) {
      reasons.push_back(
          fmt::format("{} (VMCOREINFO at {:#x})", kernel.error().message(), candidate.address.value));
    } else if (!live) {
      live = *std::move(kernel);
    } else if (!same_text(live->vmcoreinfo().text(), kernel->vmcoreinfo().text())) {
      return make_error(ErrorKind::kIncompatible,
                        "two different kernels seem to be alive, {} (VMCOREINFO at {:#x}) and {} (at {:#x})",
                        live->release(), live->witness().address.value, kernel->release(),
                        candidate.address.value);
    }
  }
  if (!live) return none_alive(memory, reasons);
  return *std::move(live);
}

}  // namespace vmsieve
