uint64_t mmap(uint64_t addr, size_t length, int prot, int flags, int fd, int64_t offset);
int munmap(uint64_t addr, size_t length);
int madvise(uint64_t addr, size_t length, int advice);
int ioctl(int fd, unsigned long request, uint64_t arg);
uint64_t signal(int signum, uint64_t handler);
int siginterrupt(int sig, int flag);
typedef uint64_t (*native_word_op)(uint64_t word, uint64_t a, uint64_t b);
int fallocate(int fd, int mode, int64_t offset, int64_t len);
