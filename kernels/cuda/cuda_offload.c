/* Optimizer states in the host's memory (after Ren et al. 2021, "ZeRO-Offload", with the arithmetic left to the GPU):
 * an update goes through a window on the device, a chunk at a time. While one half of the window is updated in lane 0,
 * the other is copied down in one lane and filled in another: both directions of the bus, and the arithmetic, at once.
 */
#include "base/error.h"
#include "kernels/cuda/cuda_list.h"
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

enum { HALVES = 2, ARRAYS = 3, UNIT = 64 }; // arrays: parameter, m, v; what begins in them at a multiple of so many
enum { LANE_UP = 1, LANE_DOWN = 2 };

static void *allocate_host(Backend *b, size_t bytes) {
    void *memory = NULL;
    (void)b;
    if (cudaHostAlloc(&memory, bytes ? bytes : 1, cudaHostAllocDefault) != cudaSuccess) {
        (void)cudaGetLastError(); // the caller says it
        return NULL;
    }
    return memset(memory, 0, bytes ? bytes : 1);
}

static void release_host(Backend *b, void *memory, size_t bytes) {
    (void)bytes;
    if (!memory) return;
    b->wait(b); // copies may be under way
    (void)cudaFreeHost(memory);
}

// ---- copies over the bus ----

typedef struct Move {
    CudaState *state;
    void *to;
    const void *from;
    size_t bytes;
} Move;

static void start_move(const void *arguments, CudaStream stream) {
    const Move *m = arguments;
    cuda_must(m->state, cudaMemcpyAsync(m->to, m->from, m->bytes, cudaMemcpyDefault, stream), "a copy of states");
}

static void move(CudaState *s, int lane, void *to, const void *from, int64_t n) {
    Move m = {s, to, from, (size_t)n * sizeof(float)};
    cuda_list_call_on(s, lane, start_move, &m, sizeof m);
}

// ---- chunks ----

typedef struct Stream {
    Backend *backend;
    CudaState *state;
    const AdamW *rule;
    const Gate *gate;
    float *window;           // (HALVES, ARRAYS, room)
    int64_t room, used;      // elements of an array in a half; of the chunk being put together
    AdamWPart *there, *here; // (count) runs of the chunk: on the host, and in the window
    int count, half;
    LaneMark down[HALVES]; // behind what was copied out of a half
    bool filled[HALVES];   // before, so that there is such a mark
} Stream;

static bool moves_parameter(const AdamWPart *p) { return p->shadow != NULL; }

static void run_chunk(Stream *t) {
    CudaState *s = t->state;
    Backend *b = t->backend;
    if (!t->count) return;
    if (t->filled[t->half]) cuda_list_wait(s, LANE_UP, t->down[t->half]);
    for (int i = 0; i < t->count; i++) {
        const AdamWPart *here = &t->here[i], *there = &t->there[i];
        move(s, LANE_UP, here->m, there->m, here->n);
        move(s, LANE_UP, here->v, there->v, here->n);
        if (moves_parameter(there)) move(s, LANE_UP, here->parameter, there->parameter, here->n);
    }
    cuda_list_wait(s, 0, cuda_list_mark(s, LANE_UP));
    b->adamw_parts(b, t->here, t->count, t->rule, t->gate);
    cuda_list_wait(s, LANE_DOWN, cuda_list_mark(s, 0));
    for (int i = 0; i < t->count; i++) {
        const AdamWPart *here = &t->here[i], *there = &t->there[i];
        move(s, LANE_DOWN, there->m, here->m, here->n);
        move(s, LANE_DOWN, there->v, here->v, here->n);
        if (moves_parameter(there)) move(s, LANE_DOWN, there->parameter, here->parameter, here->n);
    }
    t->down[t->half] = cuda_list_mark(s, LANE_DOWN);
    t->filled[t->half] = true;
    t->half = (t->half + 1) % HALVES;
    t->count = 0, t->used = 0;
}

static float *place(const Stream *t, int array) {
    return t->window + ((int64_t)t->half * ARRAYS + array) * t->room + t->used;
}

// Elements [first, first + n) of the part join the chunk.
static void add_run(Stream *t, const AdamWPart *part, int64_t first, int64_t n) {
    AdamWPart run = {.parameter = part->parameter + first,
                     .m = part->m + first,
                     .v = part->v + first,
                     .shadow = part->shadow ? part->shadow + first : NULL,
                     .gradient = part->gradient + first,
                     .n = n,
                     .decays = part->decays};
    t->there[t->count] = run;
    run.m = place(t, 1), run.v = place(t, 2);
    if (moves_parameter(&run)) run.parameter = place(t, 0);
    t->here[t->count++] = run;
    t->used += (n + UNIT - 1) / UNIT * UNIT;
}

static void add_part(Stream *t, const AdamWPart *part) {
    for (int64_t done = 0; done < part->n;) {
        int64_t n = part->n - done < t->room - t->used ? part->n - done : t->room - t->used;
        if (n > 0) add_run(t, part, done, n);
        done += n;
        if (t->used >= t->room) run_chunk(t);
    }
}

static void adamw_streamed(Backend *b, const AdamWPart *parts, int count, const AdamW *rule, const Gate *gate,
                           void *window, size_t bytes) {
    Stream t = {.backend = b, .state = cuda_state(b), .rule = rule, .gate = gate, .window = window};
    t.room = (int64_t)(bytes / sizeof(float)) / (HALVES * ARRAYS) / UNIT * UNIT;
    check(t.room > 0);
    t.there = calloc(2 * ((size_t)count + 1), sizeof *t.there);
    check(t.there);
    t.here = t.there + count + 1;
    cuda_list_wait(t.state, LANE_UP, cuda_list_mark(t.state, 0)); // the update before is down
    for (int i = 0; i < count; i++) add_part(&t, &parts[i]);
    run_chunk(&t);
    cuda_list_wait(t.state, 0, cuda_list_mark(t.state, LANE_DOWN));
    free(t.there);
    cuda_after(t.state, "adamw_streamed");
}

void cuda_offload_install(Backend *b) {
    b->allocate_host = allocate_host, b->release_host = release_host, b->adamw_streamed = adamw_streamed;
}
