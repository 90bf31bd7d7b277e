/* The run of a test kernel: its tests in order, their verdicts, and what they all use. */
#include "guest.h"

#define DEBUG_PORT 0xe9
#define LINE 512

extern const struct test tests_start[], tests_end[];

volatile shared_info_t *shared_info;
static const struct test *running;
static bool judged, has_hypercalls;

/* -- strings ------------------------------------------------------------------------------------------------------- */

void *memcpy(void *to, const void *from, size_t size)
{
    void *start = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size)::"memory");
    return start;
}

void *memset(void *to, int value, size_t size)
{
    void *start = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(value) : "memory");
    return start;
}

int memcmp(const void *a, const void *b, size_t size)
{
    const uint8_t *x = a, *y = b;
    for (; size; size--, x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}

size_t strlen(const char *text)
{
    size_t size = 0;
    while (text[size])
        size++;
    return size;
}

bool starts_with(const char *text, const char *start)
{
    return memcmp(text, start, strlen(start)) == 0;
}

bool streq(const char *a, const char *b)
{
    return strlen(a) == strlen(b) && starts_with(a, b);
}

bool all_bytes(const void *from, int value, size_t size)
{
    const uint8_t *bytes = from;
    while (size)
        if (bytes[--size] != value)
            return false;
    return true;
}

/* -- output -------------------------------------------------------------------------------------------------------- */

struct line {
    char text[LINE];
    size_t size;
};

static void add_char(struct line *line, char c)
{
    if (line->size < LINE - 2)
        line->text[line->size++] = c;
}

static void add_text(struct line *line, const char *text)
{
    while (*text)
        add_char(line, *text++);
}

static void add_number(struct line *line, unsigned long value, unsigned base)
{
    char digits[24];
    int count = 0;
    do
        digits[count++] = "0123456789abcdef"[value % base];
    while (value /= base);
    while (count)
        add_char(line, digits[--count]);
}

static void add_format(struct line *line, const char *format, va_list args)
{
    for (; *format; format++) {
        if (*format != '%') {
            add_char(line, *format);
        } else if (*++format == 's') {
            add_text(line, va_arg(args, const char *));
        } else if (*format == 'x') {
            add_text(line, "0x");
            add_number(line, va_arg(args, unsigned long), 16);
        } else {
            long value = va_arg(args, long);
            if (value < 0)
                add_char(line, '-');
            add_number(line, value < 0 ? -(unsigned long)value : (unsigned long)value, 10);
        }
    }
}

void debug_port(const char *text)
{
    while (*text)
        outb(DEBUG_PORT, *text++);
}

static void put_line(struct line *line)
{
    line->text[line->size++] = '\n';
    line->text[line->size] = 0;
    if (has_hypercalls)
        CALL3(__HYPERVISOR_console_io, CONSOLEIO_write, line->size, line->text);
    else
        debug_port(line->text);
}

void say(const char *format, ...)
{
    struct line line = {.size = 0};
    va_list args;
    va_start(args, format);
    add_format(&line, format, args);
    va_end(args);
    put_line(&line);
}

void verdict(const char *what, const char *format, ...)
{
    struct line line = {.size = 0};
    va_list args;
    if (judged)
        return;
    judged = true;
    add_text(&line, running ? running->name : "kernel");
    add_text(&line, ": ");
    add_text(&line, what);
    if (*format)
        add_char(&line, ' ');
    va_start(args, format);
    add_format(&line, format, args);
    va_end(args);
    put_line(&line);
}

/* -- the run ------------------------------------------------------------------------------------------------------- */

void shutdown(unsigned reason)
{
    struct sched_shutdown op = {.reason = reason};
    sched_op(SCHEDOP_shutdown, &op);
    for (;;)
        __asm__ volatile("cli; hlt");
}

void guest_main(void)
{
    has_hypercalls = platform_init();
    if (!has_hypercalls) {
        debug_port("kernel: ERROR no hypercalls\n");
        return;
    }
    for (running = tests_start; running < tests_end; running++) {
        judged = false;
        running->run();
        verdict("SUCCESS", "");
    }
    running = NULL;
    shutdown(SHUTDOWN_poweroff);
}
