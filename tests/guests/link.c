// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "link.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pattern.h"
#include "verdict.h"

enum { MESSAGE_MAX = 16 << 10 };

static uint64_t message[MESSAGE_MAX / 8];

void link_send(struct link* link) {
  uint64_t number = link->next++;
  pattern_fill(message, link->bytes, stream_start(link->seed, 0, number), STEP_MOTION);
  message[0] = number;
  if (!write_exactly(link->fd, message, link->bytes))
    fail("%s message=%llu cannot be sent", link->name, (unsigned long long)number);
}

void link_receive(struct link* link) {
  uint64_t number = link->next++, start = stream_start(link->seed, 0, number);
  if (!read_exactly(link->fd, message, link->bytes)) {
    fail("%s message=%llu other end is gone", link->name, (unsigned long long)number);
    return;
  }
  if (message[0] != number)
    fail("%s number expected=%llu got=%llu", link->name, (unsigned long long)number,
         (unsigned long long)message[0]);
  message[0] = pattern_word(start, STEP_MOTION, 0);
  ptrdiff_t wrong = pattern_verify(message, link->bytes, start, STEP_MOTION);
  if (wrong >= 0)
    fail("%s message=%llu word=%td expected=%#llx got=%#llx", link->name, (unsigned long long)number, wrong,
         (unsigned long long)pattern_word(start, STEP_MOTION, (size_t)wrong),
         (unsigned long long)message[wrong]);
}

void tcp_pair(int fds[2]) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (listener < 0 || bind(listener, (struct sockaddr*)&address, size) ||
      getsockname(listener, (struct sockaddr*)&address, &size) || listen(listener, 1))
    die("tcp listener");
  fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fds[0] < 0 || connect(fds[0], (struct sockaddr*)&address, size)) die("tcp connect");
  fds[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  if (fds[1] < 0) die("tcp accept");
  for (int i = 0; i < 2; i++) setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  close(listener);
}

void loopback_up(void) {
  struct ifreq request = {.ifr_name = "lo"};
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &request)) die("lo");
  request.ifr_flags |= IFF_UP | IFF_RUNNING;
  if (ioctl(fd, SIOCSIFFLAGS, &request)) die("lo up");
  close(fd);
}
