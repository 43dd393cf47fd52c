// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <sys/types.h>

#include "vmsieve/base/fd.h"
#include "vmsieve/base/result.h"
#include "vmsieve/qemu/qmp.h"

namespace vmsieve {

/// A running domain of libvirt's, which holds the monitor of its QEMU. The program vmsieve-libvirt passes on
/// what is said to it: it is a QMP monitor at qmp_path(), for several clients at once, as long as this object
/// lives, and a few seconds longer when this process is killed, so that a PauseGuard finds it. It knows some
/// commands more than QEMU, for what libvirt must do itself: vmsieve-domain-xml, and those of disks.
class LibvirtDomain {
 public:
  /// Starts vmsieve-libvirt for the domain of this name or UUID. `uri` may be empty: then libvirt chooses as
  /// it does for virsh ($LIBVIRT_DEFAULT_URI, its configuration). kNotFound when there is no such domain or
  /// it does not run, kUnsupported when vmsieve-libvirt is not installed, kTimeout when libvirt does not
  /// answer within half a minute; libvirt's own words in any case.
  static Result<std::unique_ptr<LibvirtDomain>> open(const std::string& name, const std::string& uri);
  ~LibvirtDomain();
  LibvirtDomain(const LibvirtDomain&) = delete;
  LibvirtDomain& operator=(const LibvirtDomain&) = delete;

  const std::string& qmp_path() const { return qmp_path_; }
  const std::string& name() const { return name_; }
  const std::string& uuid() const { return uuid_; }
  const std::string& uri() const { return uri_; }

 private:
  LibvirtDomain() = default;

  pid_t pid_ = -1;
  UniqueFd lifeline_;  ///< its standard input
  std::string qmp_path_, name_, uuid_, uri_;
};

/// What libvirt would put into an image of `virsh save` now (VIR_DOMAIN_XML_SECURE |
/// VIR_DOMAIN_XML_MIGRATABLE): passwords are in it. `qmp` is connected to a LibvirtDomain's qmp_path().
Result<std::string> read_domain_xml(QmpClient& qmp);

/// `virsh restore` of an image that is read once, from its beginning to its end: `path` may be a FIFO.
/// kRefused with libvirt's own words.
Result<void> restore_libvirt_image(const std::string& path, bool running, const std::string& uri);

/// An image that a disk of a domain is to have in the place of one of `chain`.
struct DomainOverlay {
  std::vector<std::string> chain;
  std::string overlay;  ///< qcow2
};

/// Such XML with other images. kIncompatible names an image that no disk of it is on; kDamaged when it is no
/// XML of a domain.
Result<std::string> put_overlays_into(const std::string& xml, const std::vector<DomainOverlay>& overlays);

/// What a domain that runs is started with the next time goes on to other files: `chain` is the file that it
/// may be on. `qmp` as above.
Result<void> let_domain_go_on(QmpClient& qmp, const std::vector<DomainOverlay>& overlays);

/// The program vmsieve-libvirt: beside this program, in ../libexec/vmsieve, or in $PATH. kUnsupported when it
/// is nowhere.
Result<std::string> find_libvirt_program();

}  // namespace vmsieve
