/*
 * Stands in for the Xen libraries under Debian's xenstored, so that the daemon runs on a machine without Xen.
 *
 * LD_PRELOADed. A folder named by XENSTUB_DIR is the "hypervisor":
 *   ring-DOMID      the domain's xenstore page; the domain exists while this file does
 *   shutdown-DOMID  exists once the domain has shut down
 *   dying-DOMID     exists once the domain is dying
 *   to-xenstored    fifo of native u32 ports: events for xenstored
 *   from-xenstored  fifo of native u32 ports: notifications by xenstored
 * A domain's remote port number is also xenstored's local one; VIRQ_DOM_EXC is port 1, dom0's store port is 2.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <xenctrl.h>
#include <xenevtchn.h>
#include <xengnttab.h>

#define VIRQ_PORT 1
#define DOM0_PORT "2"
#define TIME_FACTOR 1000
#define NS_PER_S 1000000000L

static int event_fd = -1, notify_fd = -1;

static int stub_open(const char *kind, unsigned int domid, int flags)
{
    char path[512];

    snprintf(path, sizeof(path), "%s/%s-%u", getenv("XENSTUB_DIR"), kind, domid);
    return open(path, flags | O_CLOEXEC);
}

static int stub_flag(const char *kind, unsigned int domid)
{
    int fd = stub_open(kind, domid, O_RDONLY);

    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

/* Dom0's page and port come from files of Linux's xenfs. */
int open64(const char *path, int flags, ...)
{
    mode_t mode = 0;
    va_list args;

    if (!strcmp(path, "/proc/xen/xsd_kva"))
        return stub_open("ring", 0, flags);
    if (!strcmp(path, "/proc/xen/xsd_port")) {
        int fd = memfd_create("xsd_port", MFD_CLOEXEC);

        if (fd >= 0 && (write(fd, DOM0_PORT, 1) != 1 || lseek(fd, 0, SEEK_SET)))
            return -1;
        return fd;
    }
    if (flags & O_CREAT) {
        va_start(args, flags);
        mode = va_arg(args, mode_t);
        va_end(args);
    }
    return openat(AT_FDCWD, path, flags, mode);
}

int open(const char *path, int flags, ...) __attribute__((alias("open64")));
int __open_2(const char *path, int flags)
{
    return open64(path, flags);
}
int __open64_2(const char *path, int flags) __attribute__((alias("__open_2")));

/*
 * Let time fly: the daemon lets a domain wait whose writes made others' transactions fail, for longer than a test has.
 */
int clock_gettime(clockid_t id, struct timespec *now)
{
    int rc = syscall(SYS_clock_gettime, id, now);

    now->tv_sec = now->tv_sec * TIME_FACTOR + now->tv_nsec / (NS_PER_S / TIME_FACTOR);
    now->tv_nsec = now->tv_nsec % (NS_PER_S / TIME_FACTOR) * TIME_FACTOR;
    return rc;
}

int poll(struct pollfd *fds, nfds_t count, int timeout)
{
    return syscall(SYS_poll, fds, count, timeout > 0 ? timeout / TIME_FACTOR : timeout);
}

xc_interface *xc_interface_open(xentoollog_logger *log, xentoollog_logger *dombuild, unsigned flags)
{
    (void)log, (void)dombuild, (void)flags;
    return (xc_interface *)&event_fd;
}

int xc_interface_close(xc_interface *xch)
{
    (void)xch;
    return 0;
}

int xc_domain_getinfo(xc_interface *xch, uint32_t first, unsigned int max, xc_dominfo_t *info)
{
    (void)xch;
    if (!max || (first && !stub_flag("ring", first)))
        return 0;
    memset(info, 0, sizeof(*info));
    info->domid = first;
    info->shutdown = stub_flag("shutdown", first);
    info->dying = stub_flag("dying", first);
    return 1;
}

static int fifo(const char *name)
{
    char path[512];

    snprintf(path, sizeof(path), "%s/%s", getenv("XENSTUB_DIR"), name);
    return open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
}

xenevtchn_handle *xenevtchn_open(xentoollog_logger *log, unsigned flags)
{
    (void)log, (void)flags;
    event_fd = fifo("to-xenstored");
    notify_fd = fifo("from-xenstored");
    return event_fd < 0 || notify_fd < 0 ? NULL : (xenevtchn_handle *)&event_fd;
}

xenevtchn_handle *xenevtchn_fdopen(xentoollog_logger *log, int fd, unsigned flags)
{
    (void)fd;
    return xenevtchn_open(log, flags);
}

int xenevtchn_fd(xenevtchn_handle *xce)
{
    (void)xce;
    return event_fd;
}

xenevtchn_port_or_error_t xenevtchn_pending(xenevtchn_handle *xce)
{
    uint32_t port;

    (void)xce;
    return read(event_fd, &port, sizeof(port)) == sizeof(port) ? (int)port : -1;
}

int xenevtchn_notify(xenevtchn_handle *xce, evtchn_port_t port)
{
    uint32_t value = port;

    (void)xce;
    /* A reader that fell behind polls the ring anyway: a full fifo loses nothing. */
    return write(notify_fd, &value, sizeof(value)) < 0 && errno != EAGAIN ? -1 : 0;
}

int xenevtchn_unmask(xenevtchn_handle *xce, evtchn_port_t port)
{
    (void)xce, (void)port;
    return 0;
}

int xenevtchn_unbind(xenevtchn_handle *xce, evtchn_port_t port)
{
    (void)xce, (void)port;
    return 0;
}

xenevtchn_port_or_error_t xenevtchn_bind_virq(xenevtchn_handle *xce, unsigned int virq)
{
    (void)xce, (void)virq;
    return VIRQ_PORT;
}

xenevtchn_port_or_error_t xenevtchn_bind_interdomain(xenevtchn_handle *xce, uint32_t domid, evtchn_port_t remote)
{
    (void)xce, (void)domid;
    return remote;
}

xengnttab_handle *xengnttab_open(xentoollog_logger *log, unsigned flags)
{
    (void)log, (void)flags;
    return (xengnttab_handle *)&notify_fd;
}

int xengnttab_close(xengnttab_handle *xgt)
{
    (void)xgt;
    return 0;
}

int xengnttab_set_max_grants(xengnttab_handle *xgt, uint32_t nr)
{
    (void)xgt, (void)nr;
    return 0;
}

void *xengnttab_map_grant_ref(xengnttab_handle *xgt, uint32_t domid, uint32_t ref, int prot)
{
    int fd = stub_open("ring", domid, O_RDWR);
    void *page;

    (void)xgt, (void)ref;
    if (fd < 0)
        return NULL;
    page = mmap(NULL, 4096, prot, MAP_SHARED, fd, 0);
    close(fd);
    return page == MAP_FAILED ? NULL : page;
}

int xengnttab_unmap(xengnttab_handle *xgt, void *start, uint32_t count)
{
    (void)xgt;
    return munmap(start, (size_t)count * 4096);
}
