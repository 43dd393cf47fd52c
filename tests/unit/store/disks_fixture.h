// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "unit/store/store_fixture.h"

namespace vmsieve {

/// The store takes any text for a record.
inline constexpr const char* kText = "a record\n";

class DisksTest : public StoreTest {
 protected:
  void commit_with_disks(const std::string& id = kId) {
    auto writer = store_->begin_as(id);
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE((*writer)->note_disks(kText).ok());
    const auto manifest = write_sample(**writer, {.id = id});
    ASSERT_TRUE(manifest.ok());
    ASSERT_TRUE((*writer)->commit(*manifest).ok());
  }

  /// A record of what never became a checkpoint.
  void forsake(const std::string& id = kId) {
    auto writer = store_->begin_as(id);
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE((*writer)->note_disks(kText).ok());
  }

  /// kOther needs kId, which has a record.
  void commit_chain() {
    commit_with_disks();
    const Frame frame = (*CheckpointReader::open(*store_, kId))->index().frames[2];
    const auto committed = commit_sample(*store_, {.id = kOther, .ancestor = kId, .ancestor_frame = frame});
    ASSERT_TRUE(committed.ok()) << committed.error().message();
  }

  Result<void> change_to(const std::string& text) {
    return store_->change_disks(kId, [&](const std::string&) -> Result<std::string> { return text; });
  }

  std::vector<std::string> names(const std::string& id = kId) const {
    std::vector<std::string> out;
    for (const auto& entry : fs::directory_iterator(folder(id))) out.push_back(entry.path().filename());
    return out;
  }

  std::string record(const std::string& id = kId) const {
    const auto text = store_->read_disks(id);
    return text.ok() ? *text : std::string{to_string(text.error().kind())};
  }
};

}  // namespace vmsieve
