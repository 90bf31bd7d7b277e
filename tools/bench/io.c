/*
 * Disk and network load for the benchmarks; the same program on the host and, linked statically, in guests.
 * Each measurement prints one line, "bytes operations nanoseconds", as the receiving end saw it.
 *
 *   io disk PATH read|write seq|rand BLOCK MILLISECONDS THREADS [direct]
 *   io serve PORT
 *   io tcp-up|tcp-down|tcp-echo|udp-up|udp-echo ADDRESS PORT SIZE MILLISECONDS
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define LARGEST (1 << 20)
#define WAIT_MS 200
#define TRIES 50

struct result {
	uint64_t bytes, operations, ns;
};

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void print(struct result r)
{
	printf("%llu %llu %llu\n", (unsigned long long)r.bytes, (unsigned long long)r.operations,
	       (unsigned long long)r.ns);
	fflush(stdout);
}

/* -- disks ---------------------------------------------------------------------------------------------------------- */

static struct {
	int fd, writing, random;
	size_t block;
	uint64_t blocks, end;
	atomic_uint_fast64_t next, done;
} disk;

static void *load(void *number)
{
	uint64_t state = 88172645463325252ull + (uintptr_t)number * 7919;
	void *buffer;

	if (posix_memalign(&buffer, 4096, disk.block))
		errx(1, "no memory");
	memset(buffer, 1 + (int)(uintptr_t)number, disk.block);
	while (now() < disk.end) {
		uint64_t block;

		if (disk.random) {
			state ^= state << 13, state ^= state >> 7, state ^= state << 17;
			block = state % disk.blocks;
		} else {
			block = atomic_fetch_add(&disk.next, 1) % disk.blocks;
		}
		ssize_t moved = disk.writing ? pwrite(disk.fd, buffer, disk.block, block * disk.block)
					     : pread(disk.fd, buffer, disk.block, block * disk.block);
		if (moved != (ssize_t)disk.block)
			err(1, "block %llu", (unsigned long long)block);
		atomic_fetch_add(&disk.done, 1);
	}
	return NULL;
}

static void measure_disk(char **args, int count)
{
	int threads = atoi(args[5]);
	pthread_t ids[64];

	disk.writing = !strcmp(args[1], "write");
	disk.random = !strcmp(args[2], "rand");
	disk.block = atol(args[3]);
	disk.fd = open(args[0], O_RDWR | (count > 6 ? O_DIRECT : 0));
	if (disk.fd < 0)
		err(1, "%s", args[0]);
	disk.blocks = lseek(disk.fd, 0, SEEK_END) / disk.block;
	uint64_t start = now();
	disk.end = start + atol(args[4]) * 1000000ull;
	for (int i = 0; i < threads && i < 64; i++)
		pthread_create(&ids[i], NULL, load, (void *)(uintptr_t)i);
	for (int i = 0; i < threads && i < 64; i++)
		pthread_join(ids[i], NULL);
	print((struct result){disk.done * disk.block, disk.done, now() - start});
}

/* -- network: a TCP connection begins with a letter for what is measured, a datagram that is one byte long asks for the count */

static char buffer[LARGEST];

static void write_all(int fd, const void *data, size_t size)
{
	for (ssize_t sent; size; data = (const char *)data + sent, size -= sent)
		if ((sent = write(fd, data, size)) < 0)
			err(1, "write");
}

static int read_all(int fd, void *data, size_t size)
{
	for (ssize_t got; size; data = (char *)data + got, size -= got)
		if ((got = read(fd, data, size)) <= 0)
			return 0;
	return 1;
}

static struct result drain(int fd)
{
	struct result r = {0};
	uint64_t start = now();

	for (ssize_t got; (got = read(fd, buffer, sizeof buffer)) > 0; r.operations++)
		r.bytes += got;
	r.ns = now() - start;
	return r;
}

static void fill(int fd, size_t size, uint64_t end)
{
	while (now() < end)
		write_all(fd, buffer, size);
	shutdown(fd, SHUT_WR);
}

static void no_delay(int fd)
{
	int on = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static void serve_connection(int fd)
{
	struct {
		char what;
		uint32_t size, ms;
	} order;
	no_delay(fd);
	if (read_all(fd, &order, sizeof order) && order.size <= sizeof buffer) {
		if (order.what == 'u') {
			struct result r = drain(fd);
			write_all(fd, &r, sizeof r);
		} else if (order.what == 'd') {
			fill(fd, order.size, now() + order.ms * 1000000ull);
			drain(fd);
		} else {
			while (read_all(fd, buffer, order.size))
				write_all(fd, buffer, order.size);
		}
	}
	close(fd);
}

static void serve_datagrams(int fd)
{
	struct result r = {0};
	uint64_t first = 0, last = 0;

	for (;;) {
		struct sockaddr_in from;
		socklen_t length = sizeof from;
		ssize_t got = recvfrom(fd, buffer, sizeof buffer, 0, (void *)&from, &length);
		if (got > 1 && buffer[0] == 'e') {
			sendto(fd, buffer, got, 0, (void *)&from, length);
		} else if (got > 1) {
			last = now();
			if (!r.operations++)
				first = last;
			r.bytes += got;
		} else if (got == 1 && buffer[0] == 'q') {
			r.ns = last - first;
			sendto(fd, &r, sizeof r, 0, (void *)&from, length);
		} else if (got == 1) {
			r = (struct result){0};
			sendto(fd, buffer, 1, 0, (void *)&from, length);
		}
	}
}

static void serve(int port)
{
	struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(port)};
	int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0), datagrams = socket(AF_INET, SOCK_DGRAM, 0);

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (bind(listener, (void *)&here, sizeof here) || listen(listener, 8) ||
	    bind(datagrams, (void *)&here, sizeof here))
		err(1, "port %d", port);
	if (!fork()) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		serve_datagrams(datagrams);
	}
	puts("serving");
	fflush(stdout);
	for (int fd; (fd = accept(listener, NULL, NULL)) >= 0;)
		serve_connection(fd);
}

static void measure_tcp(const char *what, struct sockaddr_in *there, uint32_t size, uint32_t ms)
{
	struct {
		char what;
		uint32_t size, ms;
	} order = {*what, size, ms};
	struct result r = {0};
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (connect(fd, (void *)there, sizeof *there))
		err(1, "connect");
	no_delay(fd);
	write_all(fd, &order, sizeof order);
	uint64_t start = now(), end = start + ms * 1000000ull;
	if (*what == 'u') {
		fill(fd, size, end);
		if (!read_all(fd, &r, sizeof r))
			errx(1, "no result");
	} else if (*what == 'd') {
		r = drain(fd);
	} else {
		for (; now() < end; r.operations++, r.bytes += size) {
			write_all(fd, buffer, size);
			if (!read_all(fd, buffer, size))
				errx(1, "no echo");
		}
		r.ns = now() - start;
	}
	print(r);
}

/* Sends a datagram until there is an answer. */
static ssize_t ask(int fd, const void *data, size_t size, void *answer, size_t room)
{
	struct pollfd ready = {fd, POLLIN, 0};

	for (int i = 0; i < TRIES; i++) {
		send(fd, data, size, 0);
		if (poll(&ready, 1, WAIT_MS) == 1)
			return recv(fd, answer, room, 0);
	}
	errx(1, "no answer");
}

static void measure_udp(const char *what, struct sockaddr_in *there, size_t size, uint32_t ms)
{
	struct result r = {0};
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	uint64_t start, end;

	if (connect(fd, (void *)there, sizeof *there))
		err(1, "connect");
	ask(fd, "b", 1, buffer, sizeof buffer);
	memset(buffer, *what, size);
	start = now(), end = start + ms * 1000000ull;
	if (*what == 'u') {
		while (now() < end)
			send(fd, buffer, size, 0);
		usleep(WAIT_MS * 1000);
		while (ask(fd, "q", 1, &r, sizeof r) != sizeof r)
			;
	} else {
		for (; now() < end; r.operations++, r.bytes += size)
			ask(fd, buffer, size, buffer, sizeof buffer);
		r.ns = now() - start;
	}
	print(r);
}

int main(int argc, char **argv)
{
	if (argc >= 8 && !strcmp(argv[1], "disk")) {
		measure_disk(argv + 2, argc - 2);
	} else if (argc == 3 && !strcmp(argv[1], "serve")) {
		serve(atoi(argv[2]));
	} else if (argc == 6) {
		struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[3]))};
		inet_pton(AF_INET, argv[2], &there.sin_addr);
		if (!strncmp(argv[1], "tcp-", 4))
			measure_tcp(argv[1] + 4, &there, atol(argv[4]), atol(argv[5]));
		else
			measure_udp(argv[1] + 4, &there, atol(argv[4]), atol(argv[5]));
	} else {
		errx(2, "see the head of io.c");
	}
	return 0;
}
