// SPDX-License-Identifier: Apache-2.0
// One direction of a socket or a pipe, over which numbered messages flow.
#pragma once

#include <stddef.h>
#include <stdint.h>

// Message n is its number and a pattern made from the number, so a message that
// was lost, doubled, reordered or damaged is seen. The sender keeps one message
// ahead: there is always one lying in the kernel's buffers.
struct link {
  const char* name;
  int fd;
  size_t bytes;
  uint64_t seed;
  uint64_t next;  // number of the next message on this end
};

void link_send(struct link* link);
void link_receive(struct link* link);

// A connected pair of TCP sockets over the loopback interface.
void tcp_pair(int fds[2]);

// Sets the loopback interface up, which a guest without an init has down.
void loopback_up(void);
