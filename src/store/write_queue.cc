// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/store/write_queue.h"

#include <liburing.h>

#include <utility>
#include <vector>

namespace vmsieve {

struct WriteQueue::Ring {
  io_uring ring{};
  bool ready = false;
  std::vector<Write> writes;       ///< by the number that the kernel gives back
  std::vector<std::size_t> spare;  ///< numbers that are free

  explicit Ring(unsigned depth) : writes(depth) {
    for (std::size_t i = depth; i > 0; --i) spare.push_back(i - 1);
  }
  ~Ring() {
    if (ready) io_uring_queue_exit(&ring);
  }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  Ended take(io_uring_cqe* entry) {
    const auto number = static_cast<std::size_t>(io_uring_cqe_get_data64(entry));
    VMSIEVE_CHECK(number < writes.size());
    Ended ended{std::exchange(writes[number], {}), entry->res};
    io_uring_cqe_seen(&ring, entry);
    spare.push_back(number);
    return ended;
  }
};

WriteQueue::WriteQueue(std::unique_ptr<Ring> ring) : ring_(std::move(ring)) {}
WriteQueue::~WriteQueue() { VMSIEVE_CHECK(ring_->spare.size() == ring_->writes.size()); }

Result<std::unique_ptr<WriteQueue>> WriteQueue::make(unsigned depth) {
  auto ring = std::make_unique<Ring>(depth);
  if (const int failed = io_uring_queue_init(depth, &ring->ring, 0); failed != 0) {
    return make_error(ErrorKind::kUnsupported, "no io_uring: {}", errno_error(-failed, "setup").message());
  }
  ring->ready = true;
  return std::unique_ptr<WriteQueue>(new WriteQueue(std::move(ring)));
}

bool WriteQueue::full() const { return ring_->spare.empty(); }

Result<void> WriteQueue::submit(int fd, Write& write) {
  VMSIEVE_CHECK(!full());
  io_uring_sqe* const entry = io_uring_get_sqe(&ring_->ring);
  VMSIEVE_CHECK(entry != nullptr);  // the ring has as many as there are numbers
  const std::size_t number = ring_->spare.back();
  io_uring_prep_write(entry, fd, write.bytes.data(), static_cast<unsigned>(write.bytes.size()), write.offset);
  io_uring_sqe_set_data64(entry, number);
  int submitted = 0;
  do {
    submitted = io_uring_submit(&ring_->ring);
  } while (submitted == -EINTR);
  // None, without an error, is as good as one: what was not taken would never end.
  if (submitted != 1)
    return errno_error(submitted < 0 ? -submitted : EAGAIN, "cannot begin a write by io_uring");
  ring_->spare.pop_back();
  ring_->writes[number] = std::move(write);
  return {};
}

std::optional<WriteQueue::Ended> WriteQueue::take_ended() {
  io_uring_cqe* entry = nullptr;
  if (io_uring_peek_cqe(&ring_->ring, &entry) != 0 || entry == nullptr) return std::nullopt;
  return ring_->take(entry);
}

std::optional<WriteQueue::Ended> WriteQueue::wait_for_ended() {
  if (ring_->spare.size() == ring_->writes.size()) return std::nullopt;
  io_uring_cqe* entry = nullptr;
  int waited = 0;
  do {
    waited = io_uring_wait_cqe(&ring_->ring, &entry);
  } while (waited == -EINTR || waited == -EAGAIN);
  // Nothing else can go wrong with a ring that works (liburing, src/queue.c), and the kernel still has
  // buffers.
  VMSIEVE_CHECK(waited == 0 && entry != nullptr);
  return ring_->take(entry);
}

}  // namespace vmsieve
