// SPDX-License-Identifier: Apache-2.0
#include "vmsieve/formats/libvirt_fifo.h"

#include <fcntl.h>
#include <unistd.h>
#include <csignal>
#include <future>
#include <string>

#include <gtest/gtest.h>

#include "vmsieve/base/endian.h"

namespace vmsieve {
namespace {

class LibvirtFifoTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::signal(SIGPIPE, SIG_IGN);
    auto made = LibvirtFifo::make();
    ASSERT_TRUE(made.ok()) << made.error().message();
    fifo_ = std::move(*made);
  }

  /// Serves in another thread, and writes "stream" behind the head.
  void serve() {
    served_ = std::async(std::launch::async, [this]() -> Result<void> {
      VMSIEVE_ASSIGN(const UniqueFd fd,
                     fifo_->serve_head(as_byte_span(head_), [this] { return loading_.load(); }));
      return write_all(fd.get(), as_byte_span("stream"), "the FIFO");
    });
  }
  UniqueFd open() const { return UniqueFd{::open(fifo_->path().c_str(), O_RDONLY | O_CLOEXEC)}; }
  static std::string read(const UniqueFd& fd, std::size_t bytes) {
    std::string text(bytes, '\0');
    std::size_t done = 0;
    while (done < bytes) {
      const ssize_t n = ::read(fd.get(), text.data() + done, bytes - done);
      if (n <= 0) break;
      done += static_cast<std::size_t>(n);
    }
    text.resize(done);
    return text;
  }

  std::unique_ptr<LibvirtFifo> fifo_;
  std::string head_ = "head";
  std::atomic<bool> loading_ = false;
  std::future<Result<void>> served_;
};

TEST_F(LibvirtFifoTest, WhoReadsOnGetsTheStreamBehindTheHead) {
  serve();
  const UniqueFd reader = open();
  EXPECT_EQ(read(reader, 4), "head");
  loading_ = true;
  EXPECT_EQ(read(reader, 100), "stream");
  EXPECT_TRUE(served_.get().ok());
}

TEST_F(LibvirtFifoTest, WhoOpensItAgainGetsTheHeadAgain) {
  serve();
  for (int turn = 0; turn < 20; ++turn) {
    const UniqueFd reader = open();
    EXPECT_EQ(read(reader, 4), "head") << turn;
  }
  const UniqueFd reader = open();
  EXPECT_EQ(read(reader, 4), "head");
  loading_ = true;
  EXPECT_EQ(read(reader, 100), "stream");
  EXPECT_TRUE(served_.get().ok());
}

TEST_F(LibvirtFifoTest, TheHeadMayBeLargerThanThePipe) {
  head_ = std::string(300'000, 'h');
  serve();
  EXPECT_EQ(read(open(), head_.size()), head_);
  const UniqueFd reader = open();
  EXPECT_EQ(read(reader, head_.size()), head_);
  loading_ = true;
  EXPECT_EQ(read(reader, 100), "stream");
}

TEST_F(LibvirtFifoTest, NobodyWhoComesIsAnError) {
  serve();
  fifo_->give_up();
  EXPECT_EQ(served_.get().error().kind(), ErrorKind::kVanished);
}

TEST_F(LibvirtFifoTest, NobodyWhoComesAgainIsAnError) {
  serve();
  EXPECT_EQ(read(open(), 4), "head");
  fifo_->give_up();
  EXPECT_EQ(served_.get().error().kind(), ErrorKind::kVanished);
}

TEST_F(LibvirtFifoTest, ItIsGoneAfterwards) {
  const std::string path = fifo_->path();
  EXPECT_EQ(::access(path.c_str(), F_OK), 0);
  fifo_.reset();
  EXPECT_NE(::access(path.c_str(), F_OK), 0);
}

}  // namespace
}  // namespace vmsieve
