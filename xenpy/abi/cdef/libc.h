uint64_t mmap(uint64_t addr, size_t length, int prot, int flags, int fd, int64_t offset);
int munmap(uint64_t addr, size_t length);
int madvise(uint64_t addr, size_t length, int advice);
int ioctl(int fd, unsigned long request, uint64_t arg);
/* glibc's struct sigaction on x86-64; its sa_restorer is filled in by the library */
struct xenpy_sigaction { uint64_t sa_handler; uint64_t sa_mask[16]; int sa_flags; uint64_t sa_restorer; };
int sigaction(int signum, struct xenpy_sigaction *action, struct xenpy_sigaction *old);
struct xenpy_sigevent { uint64_t sigev_value; int sigev_signo; int sigev_notify; int sigev_notify_thread_id; int pad[11]; };
struct xenpy_itimerspec { int64_t interval_sec; int64_t interval_nsec; int64_t value_sec; int64_t value_nsec; };
int timer_create(int clock, struct xenpy_sigevent *event, uint64_t *timer);
int timer_settime(uint64_t timer, int flags, struct xenpy_itimerspec *value, struct xenpy_itimerspec *old);
int timer_delete(uint64_t timer);
int pthread_sigqueue(uint64_t thread, int sig, uint64_t value);
typedef uint64_t (*native_word_op)(uint64_t word, uint64_t a, uint64_t b);
int fallocate(int fd, int mode, int64_t offset, int64_t len);
