/* A 32-bit process under a 64-bit kernel: system calls by INT 0x80 and by the vDSO's way (SYSENTER or SYSCALL), a segment of its own in the
 * LDT, a fault and a signal. It has no C library, so that no 32-bit one need be installed.
 *
 * Built by the tests: gcc -m32 -O2 -static -nostdlib -ffreestanding -fno-pic -no-pie -fno-stack-protector. */
typedef unsigned int u32;

enum { SYS_exit = 1, SYS_write = 4, SYS_getpid = 20, SYS_modify_ldt = 123, SYS_rt_sigaction = 174 };
enum { AT_NULL = 0, AT_SYSINFO = 32 };
enum { EIP = 14, STORE_SIZE = 6 };
enum { SIGSEGV = 11, SA_SIGINFO = 4, SA_RESTORER = 0x04000000 };

static u32 sysinfo;

static int by_interrupt(int number, u32 a, u32 b, u32 c, u32 d)
{
    int result;
    __asm__ volatile("int $0x80" : "=a"(result) : "0"(number), "b"(a), "c"(b), "d"(c), "S"(d) : "memory");
    return result;
}

static int by_vdso(int number, u32 a, u32 b, u32 c)
{
    int result;
    __asm__ volatile("call *%5" : "=a"(result) : "0"(number), "b"(a), "c"(b), "d"(c), "m"(sysinfo) : "memory");
    return result;
}

static void say(const char *text)
{
    u32 length = 0;
    while (text[length])
        length++;
    by_interrupt(SYS_write, 1, (u32)text, length, 0);
}

static void verdict(const char *what, int good)
{
    say("compat32: ");
    say(what);
    say(good ? ": right\n" : ": WRONG\n");
}

struct user_desc {
    u32 entry_number, base_addr, limit;
    u32 flags;
};

static volatile u32 in_segment[4] = {0xabcd0001, 0xabcd0002, 0xabcd0003, 0xabcd0004};
static volatile u32 faults;

static void on_fault(int number, void *info, void *context)
{
    u32 *registers = (u32 *)((char *)context + 20); /* ucontext: flags, link, stack (3 words), then gs, fs, ... */
    (void)info;
    faults += number == SIGSEGV;
    registers[EIP] += STORE_SIZE;
}

__asm__(".text\nrestorer: mov $173, %eax\nint $0x80\n");
extern char restorer[];

struct sigaction32 {
    u32 handler, flags, restorer, mask[2];
};

void start(u32 *stack)
{
    u32 argc = stack[0], *words = stack + 1 + argc + 1;
    while (*words)
        words++;
    for (words++; words[0] != AT_NULL; words += 2)
        if (words[0] == AT_SYSINFO)
            sysinfo = words[1];

    int pid = by_interrupt(SYS_getpid, 0, 0, 0, 0);
    verdict("INT 0x80", pid > 1);
    if (sysinfo)
        verdict("the vDSO's system call", by_vdso(SYS_getpid, 0, 0, 0) == pid);
    else
        say("compat32: no vDSO\n");

    struct user_desc segment = {0, (u32)in_segment, sizeof in_segment - 1, 1 | 1 << 6}; /* 32-bit, usable */
    verdict("modify_ldt", by_interrupt(SYS_modify_ldt, 1, (u32)&segment, sizeof segment, 0) == 0);
    u32 found;
    __asm__ volatile("push %%fs\n mov %1, %%fs\n mov %%fs:8, %0\n pop %%fs" : "=&r"(found) : "r"(7));
    verdict("a segment in the LDT", found == 0xabcd0003);

    struct sigaction32 action = {(u32)on_fault, SA_SIGINFO | SA_RESTORER, (u32)restorer, {0, 0}};
    verdict("rt_sigaction", by_interrupt(SYS_rt_sigaction, SIGSEGV, (u32)&action, 0, 8) == 0);
    __asm__ volatile(".byte 0x89, 0x0d\n .long 16" ::: "memory"); /* mov [16], ecx */
    verdict("a signal for a fault", faults == 1);
    say("compat32: end\n");
    by_interrupt(SYS_exit, 0, 0, 0, 0);
}

__asm__(".globl _start\n_start: mov %esp, %eax\nand $-16, %esp\nsub $12, %esp\npush %eax\ncall start\n");
