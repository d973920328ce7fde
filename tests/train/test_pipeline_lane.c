/* Ways of messages: in order, of any sizes, ahead of who reads them, between ranks and inside one. */
#include "tests/support/ranks.h"
#include "tests/support/test.h"
#include "train/pipeline_lane.h"
#include "train/pipeline_ways.h"
#include <stdlib.h>
#include <string.h>

enum { MOST = 40, RUNS = 3 };
enum { MOST_STAGES_HERE = 8, MOST_MICROBATCHES_HERE = 24, MOST_CHUNKS_HERE = 4 };
enum {
    MOST_MODEL_PARTS = MOST_STAGES_HERE * MOST_CHUNKS_HERE,
    MOST_MESSAGES = 2 * MOST_CHUNKS_HERE * MOST_MICROBATCHES_HERE
};
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

// ---- between devices ----

// All stages run at once over marks of what is done, with no time and as little ahead as can be: a row takes what comes
// on its way until it has what it reads, and does not end before what it sends has room.
typedef struct Queue { // of a way
    int messages[MOST_MESSAGES];
    int sent, taken;
} Queue;

typedef struct Play {
    const PipelineTable *table;
    PipelineWay ways[2 * MOST_MODEL_PARTS];
    int count, row[MOST_STAGES_HERE];
    Queue queues[2 * MOST_MODEL_PARTS];
    bool here[2 * MOST_MODEL_PARTS][MOST_MICROBATCHES_HERE]; // taken, by part and direction
} Play;

static Queue *queue_of(Play *p, int from, int to) {
    int i = 0;
    while (p->ways[i].from != from || p->ways[i].to != to) assert_true(++i < p->count);
    return &p->queues[i];
}

static int stage_of(const Play *p, int part) {
    int stage, chunk;
    pipeline_place(&p->table->shape, part, &stage, &chunk);
    return stage;
}

static bool run_row(Play *p, int stage, const Slot *r) {
    const PipelineShape *s = &p->table->shape;
    int part = pipeline_part(s, stage, r->chunk), back = r->work != WORK_FORWARD, key = 2 * part + back;
    int source = pipeline_source(s, r->work, part), target = back ? part - 1 : part + 1;
    bool *here = &p->here[key][r->microbatch];
    if (r->work == WORK_WEIGHT_GRADIENT) return true;
    if (source >= 0 && stage_of(p, source) != stage) {
        Queue *q = queue_of(p, stage_of(p, source), stage);
        for (; !*here && q->taken < q->sent; q->taken++) {
            int m = q->messages[q->taken];
            p->here[m / MOST_MICROBATCHES_HERE][m % MOST_MICROBATCHES_HERE] = true;
        }
        if (!*here) return false;
    }
    if (target < 0 || target == s->stages * s->chunks || stage_of(p, target) == stage) return true;
    Queue *q = queue_of(p, stage, stage_of(p, target));
    if (q->sent - q->taken == WAY_ROOM) return false;
    q->messages[q->sent++] = (2 * target + back) * MOST_MICROBATCHES_HERE + r->microbatch;
    return true;
}

// backwards: rows of gradients too.
static bool comes_to_its_end(const PipelineTable *table, bool backwards) {
    Play *p = calloc(1, sizeof *p);
    bool moved = true, all = false;
    assert_non_null(p);
    p->table = table;
    p->count = pipeline_ways(&table->shape, p->ways);
    while (moved) {
        moved = false, all = true;
        for (int s = 0; s < table->shape.stages; s++) {
            for (; p->row[s] < table->counts[s]; p->row[s]++, moved = true) {
                const Slot *r = &table->rows[s][p->row[s]];
                if ((backwards || r->work == WORK_FORWARD) && !run_row(p, s, r)) break;
            }
            all &= p->row[s] == table->counts[s];
        }
    }
    free(p);
    return all;
}

static void check_table(PipelineShape shape) {
    Arena *memory = arena_new(1 << 16);
    Error error = {0};
    PipelineTable table;
    PipelineWay ways[2 * MOST_MODEL_PARTS];
    if (pipeline_shape_valid(&shape, &error)) {
        bool ring = shape.kind == PIPELINE_INTERLEAVED && shape.stages > 2;
        assert_done(pipeline_make(&shape, memory, &table, &error), &error);
        assert_int_equal(pipeline_ways(&shape, ways), 2 * (shape.stages - !ring));
        for (int back = 0; back < 2; back++)
            if (!comes_to_its_end(&table, back))
                fail_msg("%s, %d stages, %d microbatches, %d chunks: comes to a stop", pipeline_names[shape.kind],
                         shape.stages, shape.microbatches, shape.chunks);
    }
    arena_free(memory);
}

static void no_schedule_comes_to_a_stop_by_the_room_between_devices(void **state) {
    (void)state;
    for (int kind = 0; kind < PIPELINES; kind++)
        for (int stages = 2; stages <= MOST_STAGES_HERE; stages++)
            for (int microbatches = 1; microbatches <= MOST_MICROBATCHES_HERE; microbatches++)
                for (int chunks = 1; chunks <= MOST_CHUNKS_HERE; chunks++)
                    check_table((PipelineShape){(PipelineKind)kind, stages, microbatches, chunks});
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(messages_of_each_lane_arrive_in_their_order),
        cmocka_unit_test(memory_is_used_again),
        cmocka_unit_test(inside_a_rank_nothing_is_sent),
        cmocka_unit_test(no_schedule_comes_to_a_stop_by_the_room_between_devices),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
