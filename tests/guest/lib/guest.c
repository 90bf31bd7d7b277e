/* The run of a test kernel: its tests in order, their verdicts, and what they all use. */
#include "guest.h"

#define DEBUG_PORT 0xe9
#define CS_SELECTOR (BITS == 64 ? 0x18 : 0x08)
#define INTERRUPT_GATE 0x8e
#define XEN_LEAVES 0x40000000u
#define XEN_SIGNATURE_EBX 0x566e6558
#define LAPIC 0xfee00000ul
#define LAPIC_SVR 0xf0
#define LAPIC_EOI 0xb0
#define LAPIC_TPR 0x80
#define LAPIC_ENABLED 0x1ff
#define LINE 512

extern const struct test tests_start[], tests_end[];
extern uint8_t vector_entries[256][16];

volatile shared_info_t *shared_info;
static uint8_t shared_info_page[PAGE_SIZE] PAGE_ALIGNED;
static const struct test *running;
static bool judged, has_hypercalls;
static void (*handlers[256])(struct frame *);

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

/* -- hypercalls ---------------------------------------------------------------------------------------------------- */

static bool hypercalls_init(void)
{
    uint32_t regs[4];
    cpuid(XEN_LEAVES, 0, regs);
    if (regs[1] != XEN_SIGNATURE_EBX || regs[0] < XEN_LEAVES + 2)
        return false;
    cpuid(XEN_LEAVES + 2, 0, regs);
    wrmsr(regs[1], (unsigned long)hypercall_page);
    return has_hypercalls = true;
}

void shutdown(unsigned reason)
{
    struct sched_shutdown op = {.reason = reason};
    sched_op(SCHEDOP_shutdown, &op);
    for (;;)
        __asm__ volatile("cli; hlt");
}

long get_param(unsigned index, uint64_t *value)
{
    struct xen_hvm_param param = {.domid = DOMID_SELF, .index = index};
    long rc = hvm_op(HVMOP_get_param, &param);
    *value = param.value;
    return rc;
}

long set_param(unsigned index, uint64_t value)
{
    struct xen_hvm_param param = {.domid = DOMID_SELF, .index = index, .value = value};
    return hvm_op(HVMOP_set_param, &param);
}

uint64_t system_time(void)
{
    struct xen_hvm_get_time time = {0};
    hvm_op(HVMOP_get_time, &time);
    return time.now;
}

domid_t own_domid(void)
{
    uint32_t regs[4];
    cpuid(XEN_LEAVES + 4, 0, regs);
    return regs[2];
}

long add_to_physmap(unsigned space, unsigned long idx, unsigned long gfn)
{
    struct xen_add_to_physmap op = {.domid = DOMID_SELF, .space = space, .idx = idx, .gpfn = gfn};
    return memory_op(XENMEM_add_to_physmap, &op);
}

bool map_shared_info(void)
{
    /* Setting the callback, to none here, is where an HVM guest's word size is taken note of. */
    if (set_param(HVM_PARAM_CALLBACK_IRQ, 0))
        return false;
    if (add_to_physmap(XENMAPSPACE_shared_info, 0, gfn_of(shared_info_page)))
        return false;
    shared_info = (void *)shared_info_page;
    return true;
}

const struct hvm_start_info *start_info(void)
{
    return (void *)(unsigned long)start_info_gpa;
}

const char *command_line(void)
{
    return (const char *)(unsigned long)start_info()->cmdline_paddr;
}

/* -- interrupts ---------------------------------------------------------------------------------------------------- */

static struct {
    uint16_t low, selector, type, middle;
#ifdef __x86_64__
    uint32_t high, reserved;
#endif
} idt[256];

struct {
    uint16_t limit;
    unsigned long base;
} __attribute__((packed)) idt_pointer = {sizeof idt - 1, (unsigned long)idt};

void idt_init(void)
{
    for (unsigned vector = 0; vector < 256; vector++) {
        unsigned long entry = (unsigned long)vector_entries[vector];
        idt[vector].low = entry;
        idt[vector].selector = CS_SELECTOR;
        idt[vector].type = INTERRUPT_GATE << 8;
        idt[vector].middle = entry >> 16;
    }
    __asm__ volatile("lidt %0" ::"m"(idt_pointer));
}

void on_vector(unsigned vector, void (*handler)(struct frame *))
{
    handlers[vector] = handler;
}

void take_vector(struct frame *frame)
{
    if (handlers[frame->vector]) {
        handlers[frame->vector](frame);
        return;
    }
    verdict("CRASH", "vector %d, error %x, at %x", frame->vector, frame->error, frame->ip);
    shutdown(SHUTDOWN_crash);
}

static volatile uint32_t *lapic(unsigned reg)
{
    return (volatile uint32_t *)(LAPIC + reg);
}

void lapic_enable(void)
{
    *lapic(LAPIC_TPR) = 0;
    *lapic(LAPIC_SVR) = LAPIC_ENABLED;
}

void lapic_eoi(void)
{
    *lapic(LAPIC_EOI) = 0;
}

/* -- the run ------------------------------------------------------------------------------------------------------- */

void guest_main(void)
{
    idt_init();
    if (!hypercalls_init()) {
        debug_port("kernel: ERROR no hypercall page\n");
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
