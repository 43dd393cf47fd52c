// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/libvirt/domain_xml.h"

#include <libxml/parser.h>
#include <libxml/tree.h>

#include <algorithm>
#include <filesystem>

namespace vmsieve {

namespace {

constexpr std::size_t kMaxXmlBytes = 16 << 20;
constexpr std::size_t kLongestXmlChain = 1000;
constexpr std::string_view kMark = ".vmsieve-";  // as in overlay_path() (disks/image_file.h)

const xmlChar* as_xml(const char* text) { return reinterpret_cast<const xmlChar*>(text); }

std::string taken(xmlChar* text, int bytes) {
  const std::string copy(reinterpret_cast<const char*>(text), static_cast<std::size_t>(bytes));
  xmlFree(text);
  return copy;
}

bool is_element(const xmlNode* node, const char* name) {
  return node->type == XML_ELEMENT_NODE && xmlStrEqual(node->name, as_xml(name)) == 1;
}

xmlNode* child(const xmlNode* node, const char* name) {
  for (xmlNode* one = node != nullptr ? node->children : nullptr; one != nullptr; one = one->next) {
    if (is_element(one, name)) return one;
  }
  return nullptr;
}

std::string attribute(const xmlNode* node, const char* name) {
  xmlChar* const value = node != nullptr ? xmlGetProp(node, as_xml(name)) : nullptr;
  return value != nullptr ? taken(value, xmlStrlen(value)) : "";
}

void set(xmlNode* node, const char* name, const std::string& value) {
  xmlSetProp(node, as_xml(name), as_xml(value.c_str()));
}

void remove(xmlNode* node) {
  xmlUnlinkNode(node);
  xmlFreeNode(node);
}

xmlNode* add(xmlNode* parent, const char* name) {
  return xmlNewChild(parent, nullptr, as_xml(name), nullptr);
}

/// Of a disk, a <backingStore> or a <mirror>.
std::string source_of(const xmlNode* node) {
  const xmlNode* const source = child(node, "source");
  const std::string file = attribute(source, "file");
  return file.empty() ? attribute(source, "dev") : file;
}

std::vector<std::string> chain_in(const xmlNode* disk) {
  std::vector<std::string> chain;
  for (const xmlNode* at = disk; at != nullptr && chain.size() < kLongestXmlChain;
       at = child(at, "backingStore")) {
    const std::string source = source_of(at);
    if (source.empty()) break;
    chain.push_back(source);
  }
  return chain;
}

bool is_same(const std::string& a, const std::string& b) {
  if (a == b) return true;
  std::error_code error;
  return std::filesystem::equivalent(a, b, error) && !error;
}

std::string written(xmlDoc* document) {
  xmlChar* text = nullptr;
  int bytes = 0;
  xmlDocDumpMemoryEnc(document, &text, &bytes, "UTF-8");
  return text != nullptr ? taken(text, bytes) : "";
}

}  // namespace

void DomainXml::DocumentFree::operator()(_xmlDoc* document) const { xmlFreeDoc(document); }

Result<DomainXml> DomainXml::parse(std::string_view text) {
  const Error no_domain(ErrorKind::kDamaged, "this is no XML of a domain");
  if (text.size() > kMaxXmlBytes) return no_domain;
  DomainXml xml(xmlReadMemory(text.data(), static_cast<int>(text.size()), nullptr, nullptr,
                              XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING));
  if (xml.document_ == nullptr) return no_domain;
  // libvirt writes no document type: entities come with one.
  const xmlNode* const root = xmlDocGetRootElement(xml.document_.get());
  if (xml.document_->intSubset != nullptr || root == nullptr || !is_element(root, "domain")) return no_domain;
  return xml;
}

std::vector<_xmlNode*> DomainXml::disk_nodes() const {
  std::vector<_xmlNode*> nodes;
  const xmlNode* const devices = child(xmlDocGetRootElement(document_.get()), "devices");
  for (xmlNode* one = devices != nullptr ? devices->children : nullptr; one != nullptr; one = one->next) {
    if (is_element(one, "disk")) nodes.push_back(one);
  }
  return nodes;
}

std::vector<DomainXmlDisk> DomainXml::disks() const {
  std::vector<DomainXmlDisk> disks;
  for (const xmlNode* const node : disk_nodes()) {
    DomainXmlDisk disk{
        .target = attribute(child(node, "target"), "dev"), .chain = chain_in(node), .mirror = ""};
    const xmlNode* const mirror = child(node, "mirror");
    disk.mirror = source_of(mirror);
    disk.mirror_ready = attribute(mirror, "ready") == "yes";
    disks.push_back(std::move(disk));
  }
  return disks;
}

Result<void> DomainXml::replace_image(const std::vector<std::string>& chain, const std::string& overlay) {
  xmlNode* disk = nullptr;
  for (const std::string& image : chain) {
    for (xmlNode* const node : disk_nodes()) {
      const std::string source = source_of(node);
      if (source.empty() || !is_same(source, image) || std::ranges::count(replaced_, node) != 0) continue;
      disk = node;
      break;
    }
    if (disk != nullptr) break;
  }
  if (disk == nullptr)
    return make_error(ErrorKind::kIncompatible, "the domain's XML has no disk that is on {}",
                      chain.empty() ? "nothing" : chain.front());
  replaced_.push_back(disk);
  set(disk, "type", "file");
  xmlNode* driver = child(disk, "driver");
  if (driver == nullptr) {
    driver = add(disk, "driver");
    set(driver, "name", "qemu");
  }
  set(driver, "type", "qcow2");
  // What else is said of the source is about the image as it was; who may open it stays.
  xmlNode* const old_source = child(disk, "source");
  xmlNode* const source = xmlNewNode(nullptr, as_xml("source"));
  set(source, "file", overlay);
  xmlAddPrevSibling(old_source, source);
  while (xmlNode* const label = child(old_source, "seclabel")) {
    xmlUnlinkNode(label);
    xmlAddChild(source, label);
  }
  remove(old_source);
  for (const char* const name : {"backingStore", "mirror"}) {
    if (xmlNode* const node = child(disk, name)) remove(node);
  }
  return {};
}

bool DomainXml::forget_chains() {
  bool any = false;
  for (const xmlNode* const disk : disk_nodes()) {
    const auto is_ours = [](const std::string& file) { return file.find(kMark) != std::string::npos; };
    xmlNode* const under = child(disk, "backingStore");
    if (under == nullptr || std::ranges::none_of(chain_in(disk), is_ours)) continue;
    remove(under);
    any = true;
  }
  return any;
}

std::string DomainXml::text() const { return written(document_.get()); }

Result<std::string> snapshot_xml(const DomainXml& domain, const std::vector<SnapshotDisk>& disks) {
  std::vector<std::string> targets(disks.size());
  const std::unique_ptr<xmlDoc, void (*)(xmlDoc*)> document{xmlNewDoc(as_xml("1.0")),
                                                            [](xmlDoc* one) { xmlFreeDoc(one); }};
  xmlNode* const root = xmlNewNode(nullptr, as_xml("domainsnapshot"));
  xmlDocSetRootElement(document.get(), root);
  xmlNode* const all = add(root, "disks");
  std::size_t found = 0;
  for (const DomainXmlDisk& one : domain.disks()) {
    xmlNode* const disk = add(all, "disk");
    set(disk, "name", one.target);
    const auto it = std::ranges::find_if(disks, [&](const SnapshotDisk& wanted) {
      return !one.chain.empty() && is_same(one.chain.front(), wanted.image);
    });
    const bool is_wanted = it != disks.end() && targets[it - disks.begin()].empty();
    set(disk, "snapshot", is_wanted ? "external" : "no");
    if (!is_wanted) continue;
    targets[it - disks.begin()] = one.target;
    ++found;
    set(add(disk, "driver"), "type", "qcow2");
    set(add(disk, "source"), "file", it->overlay);
  }
  if (found == disks.size()) return written(document.get());
  const auto missing = std::ranges::find(targets, "");
  return make_error(ErrorKind::kNotFound, "libvirt's XML has no disk that is on {}",
                    disks[missing - targets.begin()].image);
}

}  // namespace vmsieve
