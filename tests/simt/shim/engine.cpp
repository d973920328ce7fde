/* Launches: blocks one after another, the threads of a block as fibers. A fiber runs until it must wait for others or
 * ends; a warp's shuffle goes on once all lanes of its mask are there, a block's barrier once all threads are. A group
 * that can never be complete is a fault. */
#include "tests/simt/shim/engine.h"
#include "tests/simt/shim/fiber.h"
#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <unistd.h>
#include <vector>

enum { WARP = 32, MAX_THREADS = 1024 };
enum { MOST_SHARED = 227 << 10, MOST_PARAMETERS = 32764 }; // bytes: of a block on an H100, of a launch since CUDA 12.1
enum State { READY, AT_BARRIER, AT_WARP_BARRIER, AT_SHUFFLE, AT_MATCH, AT_WORK, DONE };

struct Thread {
    Fiber fiber;
    State state;
    const char *file; // where it waits
    int line;
    unsigned mask;
    uint64_t value; // given, then taken
    int source;
    SimtWork *work; // of AT_WORK
    void *brought;
};

struct Warp {
    uint16_t epoch;
};

static struct Engine {
    const SimtCall *call;
    dim3 block; // the one that runs
    int threads;
    std::vector<Thread> thread{MAX_THREADS};
    Warp warp[MAX_THREADS / WARP];
    SimtOrder order;
    uint64_t seed;
    Fiber host;
    bool catching;
    std::string fault;
} engine;

Position position;

// ---- faults ----

static dim3 thread_place(int thread) {
    dim3 b = engine.call->block;
    unsigned t = static_cast<unsigned>(thread);
    return dim3(t % b.x, t / b.x % b.y, t / b.x / b.y);
}

const char *simt_thread_name(int thread) {
    static char text[2][48];
    static int next;
    dim3 at = thread_place(thread);
    next ^= 1;
    snprintf(text[next], sizeof text[next], "(%u, %u, %u)", at.x, at.y, at.z);
    return text[next];
}

// The kernel's name out of __PRETTY_FUNCTION__.
static std::string kernel_name() {
    std::string name = engine.call->name;
    size_t first = name.find("Kernel = ");
    if (first == std::string::npos) return name;
    name = name.substr(first + 9);
    size_t end = name.find("; A");
    if (end == std::string::npos) end = name.find(", A = ");
    if (end == std::string::npos) end = name.rfind(']');
    return name.substr(name[0] == '&', end - (name[0] == '&'));
}

static void describe(const char *text) {
    char where[160];
    snprintf(where, sizeof where, "block (%u, %u, %u), thread %s", engine.block.x, engine.block.y, engine.block.z,
             simt_thread_name(position.thread));
    engine.fault = "kernel " + kernel_name() + ", " + where + ": " + text;
}

static void print_unless_caught() {
    if (engine.catching) return;
    fprintf(stderr, "simt: %s\n", engine.fault.c_str());
    abort();
}

void simt_fault(const char *format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    describe(text);
    bool inside = position.inside;
    position.inside = false;
    print_unless_caught();
    if (inside) fiber_switch(nullptr, &engine.host);
    abort(); // faults of the host's side are not caught
}

void __trap() { simt_fault("trap: the kernel found what must not be"); }

// What the processor or the undefined sanitizer's trap finds.
static void on_signal(int number) {
    if (position.inside) {
        position.inside = false;
        describe(number == SIGILL ? "undefined behaviour (a misaligned vector, an index beyond an array, an overflow)"
                                  : "a signal of the processor");
        fprintf(stderr, "simt: %s\n", engine.fault.c_str());
    }
    signal(number, SIG_DFL);
    raise(number);
}

static void catch_signals() {
    signal(SIGILL, on_signal);
#ifndef SIMT_WITH_SANITIZERS
    signal(SIGFPE, on_signal);
#endif
}

// ---- what a thread knows and asks ----

dim3 simt_thread_index() { return thread_place(position.thread); }
dim3 simt_block_index() { return engine.block; }
dim3 simt_block_size() { return engine.call->block; }
dim3 simt_grid_size() { return engine.call->grid; }
int simt_lane() { return position.thread % WARP; }

static Thread *wait_at(State state, unsigned mask, uint64_t value, int source, const char *file, int line) {
    Thread *t = &engine.thread[position.thread];
    t->state = state, t->mask = mask, t->value = value, t->source = source, t->file = file, t->line = line;
    if (state != AT_BARRIER && !(mask >> simt_lane() & 1))
        simt_fault("%s:%d: a mask without the lane itself", file, line);
    fiber_switch(&t->fiber, &engine.host);
    return t;
}

void simt_barrier(const char *file, int line) { wait_at(AT_BARRIER, 0, 0, 0, file, line); }
void simt_warp_barrier(unsigned mask, const char *file, int line) { wait_at(AT_WARP_BARRIER, mask, 0, 0, file, line); }

uint64_t simt_shuffle(unsigned mask, uint64_t value, int source, const char *file, int line) {
    if (!(mask >> source & 1)) simt_fault("%s:%d: shuffle from lane %d, which the mask leaves out", file, line, source);
    return wait_at(AT_SHUFFLE, mask, value, source, file, line)->value;
}
unsigned simt_match(unsigned mask, uint64_t value, const char *file, int line) {
    return static_cast<unsigned>(wait_at(AT_MATCH, mask, value, 0, file, line)->value);
}
void simt_together(SimtWork *work, void *mine, const char *file, int line) {
    Thread *t = &engine.thread[position.thread];
    t->work = work, t->brought = mine;
    wait_at(AT_WORK, 0xffffffffu, 0, 0, file, line);
}

// ---- the threads of a block ----

static void run_thread(int number) {
    Thread *t = &engine.thread[static_cast<size_t>(number)];
    position.thread = static_cast<uint16_t>(number);
    position.warp_epoch = engine.warp[number / WARP].epoch;
    position.stack = fiber_stack(&t->fiber, &position.stack_end);
    position.inside = true;
    fiber_switch(&engine.host, &t->fiber);
    if (!position.inside) return; // a fault
    position.inside = false;
}

static void thread_main() {
    engine.call->run(engine.call->parameters);
    async_end_thread();
    Thread *t = &engine.thread[position.thread];
    t->state = DONE;
    fiber_switch(&t->fiber, &engine.host);
}

// The place of number `i` of `count` in the order asked for.
static int ordered(int i, int count) {
    if (engine.order == SIMT_REVERSE) return count - 1 - i;
    if (engine.order != SIMT_SHUFFLED) return i;
    // i -> step i + start, modulo count, with a step that shares no factor with count
    int start = static_cast<int>(engine.seed % static_cast<uint64_t>(count)),
        step = static_cast<int>(engine.seed >> 8 & 1023) | 1;
    auto share = [](int a, int b) {
        while (b) {
            int rest = a % b;
            a = b, b = rest;
        }
        return a > 1;
    };
    while (share(step, count)) step++;
    return static_cast<int>((static_cast<int64_t>(step) * i + start) % count);
}

// Gives each lane of the group what it asked for.
static void exchange(Thread *lanes, unsigned mask, State kind) {
    uint64_t taken[WARP] = {};
    void *brought[WARP];
    for (int lane = 0; lane < WARP; lane++) brought[lane] = lanes[lane].brought;
    if (kind == AT_WORK) lanes[0].work(brought);
    for (int lane = 0; lane < WARP; lane++) {
        if (!(mask >> lane & 1)) continue;
        if (kind == AT_SHUFFLE) {
            taken[lane] = lanes[lanes[lane].source].value;
        } else if (kind == AT_MATCH) {
            for (int other = 0; other < WARP; other++)
                if ((mask >> other & 1) && lanes[other].value == lanes[lane].value) taken[lane] |= 1ull << other;
        }
    }
    for (int lane = 0; lane < WARP; lane++) {
        if (!(mask >> lane & 1)) continue;
        lanes[lane].value = taken[lane];
        lanes[lane].state = READY;
    }
}

static bool in_warp(State s) { return s != READY && s != AT_BARRIER && s != DONE; }

// Whether the group that lane `lane` waits for is complete; then lets it go on.
static bool try_group(int warp, int lane) {
    Thread *lanes = &engine.thread[static_cast<size_t>(warp * WARP)], *t = &lanes[lane];
    for (int other = 0; other < WARP; other++) {
        if (!(t->mask >> other & 1)) continue;
        if (warp * WARP + other >= engine.threads) return false;
        const Thread *o = &lanes[other];
        if (o->state != t->state || o->mask != t->mask || o->line != t->line || strcmp(o->file, t->file) != 0)
            return false;
    }
    if (t->state == AT_WARP_BARRIER && t->mask == 0xffffffffu) engine.warp[warp].epoch++;
    exchange(lanes, t->mask, t->state);
    return true;
}

[[noreturn]] static void fault_of_wait(int number, const char *what, int other) {
    const Thread *t = &engine.thread[static_cast<size_t>(number)], *o = &engine.thread[static_cast<size_t>(other)];
    position.thread = static_cast<uint16_t>(number);
    position.inside = false;
    char text[512], rest[256];
    if (other >= engine.threads)
        snprintf(rest, sizeof rest, "lane %d does not exist", other % WARP);
    else if (o->state == DONE)
        snprintf(rest, sizeof rest, "thread %s has ended", simt_thread_name(other));
    else
        snprintf(rest, sizeof rest, "thread %s waits at %s:%d", simt_thread_name(other), o->file, o->line);
    snprintf(text, sizeof text, "%s:%d: %s that not all threads reach: %s", t->file, t->line, what, rest);
    describe(text);
    print_unless_caught();
    throw 0; // to simt_launch, past the scheduler
}

static void run_warp(int warp) {
    int first = warp * WARP, count = engine.threads - first < WARP ? engine.threads - first : WARP;
    for (bool again = true; again;) {
        for (int i = 0; i < count; i++) {
            int number = first + ordered(i, count);
            if (engine.thread[static_cast<size_t>(number)].state == READY) run_thread(number);
            if (!engine.fault.empty()) throw 0;
        }
        again = false;
        for (int lane = 0; lane < count; lane++)
            if (in_warp(engine.thread[static_cast<size_t>(first + lane)].state) && try_group(warp, lane)) again = true;
    }
    for (int lane = 0; lane < count; lane++) {
        const Thread *t = &engine.thread[static_cast<size_t>(first + lane)];
        if (!in_warp(t->state)) continue;
        for (int other = 0; other < WARP; other++) {
            const Thread *o = &engine.thread[static_cast<size_t>(first + other)];
            bool here = other < count && o->state == t->state && o->mask == t->mask && o->line == t->line;
            if ((t->mask >> other & 1) && !here)
                fault_of_wait(first + lane, "a shuffle, vote or barrier of a warp", first + other);
        }
    }
}

// All threads are at a barrier or have ended; whether the block goes on.
static bool pass_barrier() {
    int waiting = -1;
    for (int i = 0; i < engine.threads; i++)
        if (engine.thread[static_cast<size_t>(i)].state == AT_BARRIER) waiting = i;
    if (waiting < 0) return false;
    const Thread *t = &engine.thread[static_cast<size_t>(waiting)];
    for (int i = 0; i < engine.threads; i++) {
        const Thread *o = &engine.thread[static_cast<size_t>(i)];
        if (o->state != AT_BARRIER || o->line != t->line || strcmp(o->file, t->file) != 0)
            fault_of_wait(waiting, "a barrier of the block", i);
    }
    for (int i = 0; i < engine.threads; i++) engine.thread[static_cast<size_t>(i)].state = READY;
    for (Warp &w : engine.warp) w.epoch = 0;
    position.epoch++;
    return true;
}

static void run_block(dim3 block) {
    engine.block = block;
    position.block_first = ++position.epoch;
    memory_begin_block(engine.call->shared);
    for (Warp &w : engine.warp) w.epoch = 0;
    for (int i = 0; i < engine.threads; i++) {
        Thread *t = &engine.thread[static_cast<size_t>(i)];
        fiber_start(&t->fiber, thread_main);
        t->state = READY;
    }
    int warps = (engine.threads + WARP - 1) / WARP;
    do
        for (int w = 0; w < warps; w++) run_warp(ordered(w, warps));
    while (pass_barrier());
}

// ---- launches ----

static void run_grid() {
    const dim3 g = engine.call->grid;
    int64_t count = static_cast<int64_t>(g.x) * g.y * g.z;
    for (int64_t i = 0; i < count; i++) {
        int64_t at = count < 1 << 30 ? ordered(static_cast<int>(i), static_cast<int>(count)) : i;
        run_block(dim3(static_cast<unsigned>(at % g.x), static_cast<unsigned>(at / g.x % g.y),
                       static_cast<unsigned>(at / g.x / g.y)));
    }
}

void simt_launch(const SimtCall &call) {
    if (!engine.fault.empty()) return;
    dim3 b = call.block, g = call.grid;
    engine.call = &call;
    engine.threads = static_cast<int>(b.x * b.y * b.z);
    position = Position{false,
                        position.epoch + 1,
                        0,
                        position.epoch + 1,
                        0,
                        0,
                        nullptr,
                        nullptr,
                        static_cast<const char *>(call.parameters),
                        nullptr};
    position.parameters_end = position.parameters + call.parameter_bytes;
    try {
        if (engine.threads < 1 || engine.threads > MAX_THREADS || !g.x || !g.y || !g.z || g.x > 2147483647u ||
            g.y > 65535 || g.z > 65535 || call.shared > MOST_SHARED || call.shared > call.most_shared ||
            call.parameter_bytes > MOST_PARAMETERS) {
            engine.block = dim3(0, 0, 0);
            describe("a launch no device takes: grid, block, parameters or shared memory are none or too much");
            print_unless_caught();
            throw 0;
        }
        catch_signals();
        async_begin_launch();
        run_grid();
    } catch (int) {
        // engine.fault tells
    }
    memory_begin_block(0);
    engine.call = nullptr;
}

static void (*start_later)(CUstream_st *, const SimtCall &);
void simt_set_queue(void (*later)(CUstream_st *, const SimtCall &)) { start_later = later; }

void simt_start(cudaStream_t stream, const SimtCall &call) {
    if (stream && start_later)
        start_later(stream, call);
    else
        simt_launch(call);
}

void simt_set_order(SimtOrder order, uint64_t seed) { engine.order = order, engine.seed = seed; }

const char *simt_faults(void (*body)(void *context), void *context) {
    static std::string text;
    engine.fault.clear();
    engine.catching = true;
    body(context);
    engine.catching = false;
    text = engine.fault;
    engine.fault.clear();
    return text.c_str();
}
