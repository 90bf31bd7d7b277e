/* User space that leans on what a hypervisor can get wrong: forks, copy-on-write, exec, reused pages, changed protections, signals in the
 * middle of vector arithmetic, threads and their thread-local storage, pipes. Everything written is checked when read again.
 *
 * usage: torture SECONDS FORKS    works until both are reached, says so every ten seconds, and ends with a line of totals.
 * Built by the tests: gcc -O2 -static -pthread. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORKERS = 6 };
enum { EXEC_PATTERN = 0x5a17c0de };

static volatile uint32_t initialised = EXEC_PATTERN;
static _Thread_local uint64_t tls_word = 0x1122334455667788; /* of .tdata: a page of an old process would show here */

struct totals {
    volatile uint64_t forks, execs, maps, faults, signals, threads, bytes, errors;
};
static struct totals *totals;

static void wrong(const char *what, uint64_t expected, uint64_t found)
{
    __sync_fetch_and_add(&totals->errors, 1);
    printf("torture: WRONG %s: expected %llx, found %llx\n", what, (unsigned long long)expected, (unsigned long long)found);
    fflush(stdout);
}

static void check(const char *what, uint64_t expected, uint64_t found)
{
    if (expected != found)
        wrong(what, expected, found);
}

static uint64_t next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

static void fill(uint64_t *words, size_t count, uint64_t seed)
{
    for (size_t i = 0; i < count; i++)
        words[i] = next(&seed);
}

static void verify(const char *what, const uint64_t *words, size_t count, uint64_t seed)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t expected = next(&seed);
        if (words[i] != expected) {
            wrong(what, expected, words[i]);
            return;
        }
    }
    __sync_fetch_and_add(&totals->bytes, count * 8);
}

/* One child that runs this program anew, and checks that it looks as the file says. */
static void exec_once(void)
{
    pid_t child = fork();
    if (child == 0) {
        execl("/proc/self/exe", "torture", "child", (char *)NULL);
        _exit(99);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0)
        wrong("exec", 0, child < 0 ? (uint64_t)errno : (uint64_t)status);
    __sync_fetch_and_add(&totals->forks, 1);
    __sync_fetch_and_add(&totals->execs, 1);
}

static int child_main(void)
{
    uint64_t stack[512];
    fill(stack, 512, 7);
    if (initialised != EXEC_PATTERN || tls_word != 0x1122334455667788)
        return 1;
    uint64_t seed = 7;
    for (int i = 0; i < 512; i++)
        if (stack[i] != next(&seed))
            return 2;
    return 0;
}

/* Copy-on-write both ways: the child changes what the parent keeps, and the other way round. */
static void copy_on_write(uint64_t seed)
{
    size_t pages = 8 + seed % 40, count = pages * PAGE / 8;
    uint64_t *area = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED)
        return;
    fill(area, count, seed);
    pid_t child = fork();
    if (child == 0) {
        uint64_t before = totals->errors;
        verify("what a child inherits", area, count, seed);
        fill(area, count, ~seed);
        verify("what a child wrote", area, count, ~seed);
        _exit(totals->errors != before);
    }
    for (size_t page = 0; page < pages; page += 2)
        area[page * PAGE / 8] ^= 1;
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0)
        wrong("fork", 0, child < 0 ? (uint64_t)errno : (uint64_t)status);
    for (size_t page = 0; page < pages; page += 2)
        area[page * PAGE / 8] ^= 1;
    verify("what a parent keeps", area, count, seed);
    munmap(area, pages * PAGE);
    __sync_fetch_and_add(&totals->forks, 1);
}

static sigjmp_buf escape;
static volatile uintptr_t faulted;

static void on_fault(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    faulted = (uintptr_t)info->si_addr;
    siglongjmp(escape, 1);
}

static void protections(uint64_t seed)
{
    size_t pages = 2 + seed % 60;
    volatile uint64_t *area = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED)
        return;
    fill((uint64_t *)area, pages * PAGE / 8, seed);
    size_t page = seed % pages;
    volatile uint64_t *word = area + page * PAGE / 8;
    mprotect((void *)word, PAGE, seed & 1 ? PROT_READ : PROT_NONE);
    faulted = 0;
    if (!sigsetjmp(escape, 1)) {
        *word = 1;
        wrong("a store to a page that may not be written", 1, 0);
    }
    check("the address of a fault", (uintptr_t)word, faulted);
    mprotect((void *)word, PAGE, PROT_READ | PROT_WRITE);
    verify("a page that was protected", (uint64_t *)area, pages * PAGE / 8, seed);
    madvise((void *)word, PAGE, MADV_DONTNEED);
    check("a page that was given back", 0, *word);
    munmap((void *)area, pages * PAGE);
    __sync_fetch_and_add(&totals->maps, 1);
    __sync_fetch_and_add(&totals->faults, 1);
}

static volatile uint64_t ticks;

static void on_tick(int number)
{
    double junk[64]; /* takes the vector registers and the stack from who was interrupted */
    for (int i = 0; i < 64; i++)
        junk[i] = (double)(number + i) * 1.5;
    for (int i = 1; i < 64; i++)
        junk[0] += junk[i];
    ticks += junk[0] > 0;
}

static void arithmetic(uint64_t seed)
{
    double values[256], sums[2] = {0, 0};
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < 256; i++)
            values[i] = (double)(seed % 1000) + i;
        for (int round = 0; round < 2000; round++)
            for (int i = 0; i < 256; i++)
                values[i] = values[i] * 1.0000001 + 0.5;
        for (int i = 0; i < 256; i++)
            sums[pass] += values[i];
    }
    if (sums[0] != sums[1])
        wrong("arithmetic under signals", (uint64_t)sums[0], (uint64_t)sums[1]);
}

static void *thread_main(void *argument)
{
    uint64_t seed = (uintptr_t)argument;
    check("a thread's storage", 0x1122334455667788, tls_word);
    tls_word = seed;
    uint64_t *area = malloc(64 * PAGE);
    for (int round = 0; round < 4; round++) {
        fill(area, 64 * PAGE / 8, seed + (uint64_t)round);
        sched_yield();
        verify("a thread's memory", area, 64 * PAGE / 8, seed + (uint64_t)round);
        check("a thread's storage later", seed, tls_word);
    }
    free(area);
    return NULL;
}

static void threads(uint64_t seed)
{
    pthread_t ids[4];
    int count = 0;
    while (count < 4 && !pthread_create(&ids[count], NULL, thread_main, (void *)(uintptr_t)(seed + (uint64_t)count)))
        count++;
    for (int i = 0; i < count; i++)
        pthread_join(ids[i], NULL);
    __sync_fetch_and_add(&totals->threads, (uint64_t)count);
}

static void pipes(uint64_t seed)
{
    int ends[2];
    if (pipe(ends))
        return;
    pid_t child = fork();
    if (child == 0) {
        uint64_t words[1024];
        close(ends[0]);
        for (int round = 0; round < 16; round++) {
            fill(words, 1024, seed + (uint64_t)round);
            for (size_t done = 0; done < sizeof words;) {
                ssize_t written = write(ends[1], (char *)words + done, sizeof words - done);
                if (written <= 0)
                    _exit(3);
                done += (size_t)written;
            }
        }
        _exit(0);
    }
    close(ends[1]);
    for (int round = 0; round < 16 && child > 0; round++) {
        uint64_t words[1024];
        size_t got = 0;
        while (got < sizeof words) {
            ssize_t part = read(ends[0], (char *)words + got, sizeof words - got);
            if (part <= 0)
                break;
            got += (size_t)part;
        }
        check("the length of what came by a pipe", sizeof words, got);
        verify("what came by a pipe", words, 1024, seed + (uint64_t)round);
    }
    close(ends[0]);
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0)
        wrong("a pipe's child", 0, (uint64_t)status);
    __sync_fetch_and_add(&totals->forks, 1);
}

static void work(int worker, time_t end, uint64_t forks)
{
    uint64_t seed = 0x9e3779b97f4a7c15ull * (uint64_t)(worker + 1);
    struct sigaction fault = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    struct sigaction tick = {.sa_handler = on_tick, .sa_flags = SA_RESTART};
    sigaction(SIGSEGV, &fault, NULL);
    sigaction(SIGALRM, &tick, NULL);
    while (time(NULL) < end || totals->forks < forks) {
        uint64_t random = next(&seed);
        switch (worker) {
        case 0: exec_once(); break;
        case 1: copy_on_write(random); break;
        case 2: protections(random); break;
        case 3: {
            struct itimerval every = {{0, 3000}, {0, 3000}}, never = {{0, 0}, {0, 0}};
            uint64_t before = ticks;
            setitimer(ITIMER_REAL, &every, NULL);
            arithmetic(random);
            setitimer(ITIMER_REAL, &never, NULL);
            __sync_fetch_and_add(&totals->signals, ticks - before);
            break;
        }
        case 4: threads(random | 1); break;
        default: pipes(random); break;
        }
    }
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "child"))
        return child_main();
    if (argc != 3) {
        fprintf(stderr, "usage: torture SECONDS FORKS\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    totals = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    time_t start = time(NULL), end = start + atol(argv[1]), report = start + 10;
    uint64_t forks = (uint64_t)atoll(argv[2]);
    pid_t workers[WORKERS];
    for (int worker = 0; worker < WORKERS; worker++) {
        workers[worker] = fork();
        if (workers[worker] == 0) {
            work(worker, end, forks);
            _exit(0);
        }
    }
    int left = WORKERS;
    while (left) {
        int status = 0;
        pid_t gone = waitpid(-1, &status, WNOHANG);
        if (gone > 0) {
            left--;
            if (status)
                wrong("the end of a worker", 0, (uint64_t)status);
            continue;
        }
        if (time(NULL) >= report) {
            report += 10;
            printf("torture: %ld s, %llu forks\n", (long)(time(NULL) - start), (unsigned long long)totals->forks);
        }
        usleep(100000);
    }
    printf("torture: %llu forks, %llu execs, %llu maps, %llu faults, %llu signals, %llu threads, %llu MiB checked, %llu errors\n",
           (unsigned long long)totals->forks, (unsigned long long)totals->execs, (unsigned long long)totals->maps,
           (unsigned long long)totals->faults, (unsigned long long)totals->signals, (unsigned long long)totals->threads,
           (unsigned long long)(totals->bytes >> 20), (unsigned long long)totals->errors);
    return totals->errors != 0;
}
