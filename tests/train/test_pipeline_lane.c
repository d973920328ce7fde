/* Ways of messages: in order, of any sizes, ahead of who reads them, between ranks and inside one. */
#include "tests/support/ranks.h"
#include "tests/support/test.h"
#include "train/pipeline_lane.h"
#include <string.h>

enum { MOST = 40, RUNS = 3 };
static Backend host = {.name = "the host's own memory"};

static size_t size_of(int message, int tag) { return (size_t)(64 + (message * 37 + tag * 11) % 5 * 1000); }

static void fill(void *data, int message, int tag, size_t bytes) { memset(data, message * 7 + tag, bytes); }

static void assert_filled(const unsigned char *data, int message, int tag, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) assert_int_equal(data[i], (unsigned char)(message * 7 + tag));
}

static void send_one(Lane *l, int message, int tag) {
    size_t bytes = size_of(message, tag);
    LaneMessage *m = lane_message(l, bytes);
    fill(m->body, message, tag, bytes);
    lane_send(l, m);
}

static void receive_one(Lane *l, int message, int tag) {
    LaneMessage *m = lane_receive(l);
    assert_filled(m->body, message, tag, size_of(message, tag));
    lane_give_back(l, m);
}

// Both ways at once, two lanes each way.
static void exchange(int rank, Comm *world, void *argument) {
    (void)argument;
    LaneBuffers *buffers = lane_buffers_new(&host, 64);
    Lane *out[2], *in[2];
    for (int i = 0; i < 2; i++) {
        out[i] = lane_new(buffers, world, NULL, 1 - rank, i, MOST);
        in[i] = lane_new(buffers, world, NULL, 1 - rank, i, MOST);
    }
    for (int run = 0; run < RUNS; run++) {
        for (int m = 0; m < MOST; m++)
            for (int i = 0; i < 2; i++) lane_expect(in[i], size_of(m, i));
        for (int m = 0; m < MOST; m++)
            for (int i = 0; i < 2; i++) send_one(out[1 - i], m, 1 - i);
        for (int i = 0; i < 2; i++)
            for (int m = 0; m < MOST; m++) receive_one(in[i], m, i);
        lane_settle(buffers);
    }
    for (int i = 0; i < 2; i++) {
        lane_free(in[i]);
        lane_free(out[i]);
    }
    lane_buffers_free(buffers);
}

static void messages_of_each_lane_arrive_in_their_order(void **state) {
    (void)state;
    ranks_run(2, exchange, NULL);
}

// A receive that is told its size only when the message before has been read.
static void answer(int rank, Comm *world, void *argument) {
    (void)argument;
    LaneBuffers *buffers = lane_buffers_new(&host, 64);
    Lane *there = lane_new(buffers, world, NULL, 1 - rank, 0, MOST),
         *back = lane_new(buffers, world, NULL, 1 - rank, 1, MOST);
    double bytes = 0;
    for (int run = 0; run < RUNS; run++) {
        for (int m = 0; m < MOST; m++) {
            if (rank == 1) lane_expect(there, size_of(m, 0));
            if (rank == 1) receive_one(there, m, 0);
            if (rank == 1) send_one(back, m, 1);
            if (rank == 0) send_one(there, m, 0);
            if (rank == 0) lane_expect(back, size_of(m, 1));
            if (rank == 0) receive_one(back, m, 1);
        }
        lane_settle(buffers);
        if (run == 0) bytes = lane_buffers_bytes(buffers);
    }
    assert_true(bytes > 0 && bytes <= 6 * 4064);
    lane_free(there);
    lane_free(back);
    lane_buffers_free(buffers);
}

static void memory_is_used_again(void **state) {
    (void)state;
    ranks_run(2, answer, NULL);
}

static void inside_a_rank_nothing_is_sent(void **state) {
    (void)state;
    Comm *alone = comm_self_new();
    LaneBuffers *buffers = lane_buffers_new(&host, 64);
    Lane *l = lane_new(buffers, alone, NULL, 0, 0, MOST);
    for (int run = 0; run < RUNS; run++) {
        for (int m = 0; m < MOST; m++) lane_expect(l, size_of(m, 3));
        for (int m = 0; m < MOST; m += 2) {
            send_one(l, m, 3);
            send_one(l, m + 1, 3);
            assert_false(lane_waits(l));
            receive_one(l, m, 3);
            receive_one(l, m + 1, 3);
        }
        lane_settle(buffers);
    }
    assert_true(lane_buffers_bytes(buffers) <= 2 * 4064);
    lane_free(l);
    lane_buffers_free(buffers);
    comm_free(alone);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(messages_of_each_lane_arrive_in_their_order),
        cmocka_unit_test(memory_is_used_again),
        cmocka_unit_test(inside_a_rank_nothing_is_sent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
