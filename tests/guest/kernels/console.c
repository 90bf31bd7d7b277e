/*
 * The PV console ring: greets, then echoes each line it is given, in brackets, until one says "bye".
 */
#include "guest.h"

#include <xen/io/console.h>

static volatile struct xencons_interface *ring;
static evtchn_port_t port;

static void kick(void)
{
    struct evtchn_send op = {.port = port};
    event_channel_op(EVTCHNOP_send, &op);
}

static void wait_for_event(void)
{
    struct sched_poll poll = {.nr_ports = 1, .timeout = system_time() + 1000 * MS};
    set_xen_guest_handle(poll.ports, &port);
    sched_op(SCHEDOP_poll, &poll);
    shared_info->evtchn_pending[port / BITS] &= ~(1ul << port % BITS);
}

static void put(const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        while (ring->out_prod - ring->out_cons == sizeof ring->out) {
            kick();
            wait_for_event();
        }
        ring->out[MASK_XENCONS_IDX(ring->out_prod, ring->out)] = text[i];
        barrier();
        ring->out_prod++;
    }
    kick();
}

static size_t get_line(char *line, size_t size)
{
    size_t length = 0;
    while (length < size) {
        while (ring->in_cons == ring->in_prod) {
            kick(); /* there is room again */
            wait_for_event();
        }
        line[length] = ring->in[MASK_XENCONS_IDX(ring->in_cons, ring->in)];
        barrier();
        ring->in_cons++;
        if (line[length++] == '\n')
            break;
    }
    return length;
}

TEST(echo)
{
    static char line[8192];
    uint64_t gfn, event;
    REQUIRE(map_shared_info());
    REQUIRE(get_param(HVM_PARAM_CONSOLE_PFN, &gfn) == 0 && get_param(HVM_PARAM_CONSOLE_EVTCHN, &event) == 0);
    ring = (void *)(unsigned long)(gfn * PAGE_SIZE);
    port = event;
    put("ready\n", 6);
    say("listening");
    for (;;) {
        size_t length = get_line(line, sizeof line);
        if (length == 4 && starts_with(line, "bye"))
            return;
        put("[", 1);
        put(line, length - 1);
        put("]\n", 2);
    }
}
