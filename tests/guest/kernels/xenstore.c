/*
 * The xenstore ring: requests go in, replies come out, and what the toolstack wrote can be read.
 */
#include "guest.h"

#include <xen/io/xs_wire.h>

static volatile struct xenstore_domain_interface *ring;
static evtchn_port_t port;
static char payload[XENSTORE_PAYLOAD_MAX + 1];

static void kick(void)
{
    struct evtchn_send op = {.port = port};
    event_channel_op(EVTCHNOP_send, &op);
}

static void put(const void *data, unsigned size)
{
    const char *bytes = data;
    while (size--) {
        while (ring->req_prod - ring->req_cons == XENSTORE_RING_SIZE)
            kick();
        ring->req[MASK_XENSTORE_IDX(ring->req_prod)] = *bytes++;
        barrier();
        ring->req_prod++;
    }
}

static bool get(void *data, unsigned size)
{
    char *bytes = data;
    uint64_t until = system_time() + 2000 * MS;
    while (size--) {
        while (ring->rsp_prod == ring->rsp_cons) {
            struct sched_poll poll = {.nr_ports = 1, .timeout = until};
            shared_info->evtchn_pending[port / BITS] &= ~(1ul << port % BITS);
            if (ring->rsp_prod != ring->rsp_cons)
                break;
            set_xen_guest_handle(poll.ports, &port);
            if (sched_op(SCHEDOP_poll, &poll) || system_time() >= until)
                return false;
        }
        *bytes++ = ring->rsp[MASK_XENSTORE_IDX(ring->rsp_cons)];
        barrier();
        ring->rsp_cons++;
    }
    return true;
}

/* Sends a request and returns the type of its reply, whose payload is then in `payload`; -1 if none comes. */
static int request(uint32_t type, const void *data, unsigned size)
{
    static uint32_t next_id;
    struct xsd_sockmsg message = {.type = type, .req_id = ++next_id, .len = size};
    put(&message, sizeof message);
    put(data, size);
    kick();
    if (!get(&message, sizeof message) || message.len > XENSTORE_PAYLOAD_MAX || !get(payload, message.len))
        return -1;
    payload[message.len] = 0;
    kick();
    return message.req_id == next_id ? (int)message.type : -1;
}

static int request_text(uint32_t type, const char *text)
{
    return request(type, text, strlen(text) + 1);
}

TEST(ring_is_there)
{
    uint64_t gfn, event;
    REQUIRE(map_shared_info());
    CHECK_OK(get_param(HVM_PARAM_STORE_PFN, &gfn));
    CHECK_OK(get_param(HVM_PARAM_STORE_EVTCHN, &event));
    ring = (void *)(unsigned long)(gfn * PAGE_SIZE);
    port = event;
    CHECK_EQ(ring->req_prod, ring->req_cons);
    CHECK_EQ(ring->rsp_prod, ring->rsp_cons);
    CHECK_EQ(ring->connection, 0);
}

TEST(domid)
{
    REQUIRE(ring);
    CHECK_EQ(request_text(XS_READ, "domid"), XS_READ);
    CHECK_EQ(payload[0] - '0', own_domid());
    CHECK_EQ(payload[1], 0);
}

TEST(name)
{
    REQUIRE(ring);
    CHECK_EQ(request_text(XS_READ, "name"), XS_READ);
    CHECK(streq(payload, "guest-test"));
}

TEST(absent_node)
{
    REQUIRE(ring);
    CHECK_EQ(request_text(XS_READ, "no/such/node"), XS_ERROR);
    CHECK(streq(payload, "ENOENT"));
}

TEST(what_is_not_ours)
{
    REQUIRE(ring);
    CHECK_EQ(request_text(XS_READ, "/local/domain/0/name"), XS_ERROR);
    CHECK_EQ(request(XS_WRITE, "/local/domain/0/name\0x", 22), XS_ERROR);
    CHECK(streq(payload, "EACCES"));
}

TEST(write_and_read)
{
    REQUIRE(ring);
    CHECK_EQ(request(XS_WRITE, "data/greeting\0hello", 19), XS_WRITE);
    CHECK_EQ(request_text(XS_READ, "data/greeting"), XS_READ);
    CHECK(streq(payload, "hello"));
    CHECK_EQ(request_text(XS_RM, "data/greeting"), XS_RM);
    CHECK_EQ(request_text(XS_READ, "data/greeting"), XS_ERROR);
}

TEST(directory)
{
    REQUIRE(ring);
    CHECK_EQ(request_text(XS_DIRECTORY, "memory"), XS_DIRECTORY);
    CHECK(starts_with(payload, "static-max") || starts_with(payload, "target"));
}

TEST(requests_around_the_end_of_the_ring)
{
    REQUIRE(ring);
    for (int i = 0; i < 2 * XENSTORE_RING_SIZE / 20; i++) {
        CHECK_EQ(request_text(XS_READ, "name"), XS_READ);
        CHECK(streq(payload, "guest-test"));
    }
}

TEST(unknown_request)
{
    REQUIRE(ring);
    CHECK_EQ(request_text(999, "name"), XS_ERROR);
    CHECK(streq(payload, "ENOSYS"));
}
