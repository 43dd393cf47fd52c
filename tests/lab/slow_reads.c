// SPDX-License-Identifier: Apache-2.0
// Preloaded into vmsieve, makes its store a slow one: SLOW_READS_BYTES bytes a second, for all threads together.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

typedef ssize_t (*pread_function)(int, void *, size_t, off64_t);

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

static void take_time(ssize_t bytes)
{
	const char *text = getenv("SLOW_READS_BYTES");
	double seconds = text && bytes > 0 ? (double)bytes / atof(text) : 0;
	struct timespec pause = { (time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9) };

	pthread_mutex_lock(&turn);
	nanosleep(&pause, NULL);
	pthread_mutex_unlock(&turn);
}

ssize_t pread64(int fd, void *buffer, size_t count, off64_t offset)
{
	static pread_function real;

	if (!real)
		real = (pread_function)dlsym(RTLD_NEXT, "pread64");
	ssize_t got = real(fd, buffer, count, offset);

	take_time(got);
	return got;
}

ssize_t pread(int fd, void *buffer, size_t count, off_t offset)
{
	return pread64(fd, buffer, count, offset);
}
