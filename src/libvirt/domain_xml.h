// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "vmsieve/base/result.h"

struct _xmlDoc;
struct _xmlNode;

namespace vmsieve {

/// A disk in the XML of a domain.
struct DomainXmlDisk {
  std::string target;              ///< vda: libvirt's name for it
  std::vector<std::string> chain;  ///< its file or block device, and what that is backed by; empty: no medium
  std::string mirror;              ///< where a block job copies it to
  bool mirror_ready = false;       ///< both hold the same
};

/// The XML of a domain, or what is made of it: https://libvirt.org/formatdomain.html. Of one that was kept in
/// a checkpoint nothing is believed but that it is for libvirt to judge.
class DomainXml {
 public:
  /// kDamaged when it is no XML of a domain.
  static Result<DomainXml> parse(std::string_view text);

  std::vector<DomainXmlDisk> disks() const;

  /// Gives the disk that is on one of these files, the first before all others, to the qcow2 image `overlay`.
  /// kIncompatible when there is none.
  Result<void> replace_image(const std::vector<std::string>& chain, const std::string& overlay);

  /// What is said of the images under those disks that have an overlay of ours in their chain is taken out;
  /// libvirt finds them by the images themselves then. False: there was nothing.
  bool forget_chains();

  std::string text() const;

 private:
  struct DocumentFree {
    void operator()(_xmlDoc* document) const;
  };

  explicit DomainXml(_xmlDoc* document) : document_(document) {}
  std::vector<_xmlNode*> disk_nodes() const;

  std::unique_ptr<_xmlDoc, DocumentFree> document_;
  std::vector<const _xmlNode*> replaced_;
};

/// One image of a domain that a snapshot puts a file over.
struct SnapshotDisk {
  std::string image, overlay;
};

/// A <domainsnapshot> of these disks of the domain, and of no other. kNotFound names an image that no disk is
/// on.
Result<std::string> snapshot_xml(const DomainXml& domain, const std::vector<SnapshotDisk>& disks);

}  // namespace vmsieve
