/* See runtime_queue.h. A piece of work runs on the host's thread when somebody waits for it, or when the order says so:
 * between two pieces that no event orders anything may happen. */
#include "tests/simt/runtime_queue.h"
#include "tests/simt/shim/simt.h"
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <unistd.h>
extern "C" {
#include "base/clock.h"
}

static constexpr int PAUSE = 50;           // microseconds
static constexpr double LONGEST_WAIT = 60; // seconds

static struct Queue {
    std::vector<CUstream_st *> streams;
    RuntimeOrder order = RUNTIME_LATE;
    uint64_t seed = 1;
    bool running = false; // a piece
    double waited = 0;    // seconds that no piece has run, for other ranks
    double clock = 0;     // seconds
    bool catching = false;
    std::string fault;
    void (*ran)(void *context, int stream, double begin, double end) = nullptr;
    void *watcher = nullptr;
} queue;

void runtime_watch(void (*ran)(void *context, int stream, double begin, double end), void *context) {
    queue.ran = ran, queue.watcher = context;
}

void runtime_spend(double seconds) { queue.clock += seconds; }
void runtime_set_order(RuntimeOrder order, uint64_t seed) { queue.order = order, queue.seed = seed | 1; }

static uint64_t draw(uint64_t below) { // xorshift64 (Marsaglia 2003)
    queue.seed ^= queue.seed << 13, queue.seed ^= queue.seed >> 7, queue.seed ^= queue.seed << 17;
    return queue.seed % below;
}

// ---- faults ----

void queue_fault(const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (!queue.catching) {
        fprintf(stderr, "stand-in of CUDA: %s\n", text);
        abort();
    }
    if (queue.fault.empty()) queue.fault = text;
}

const char *runtime_faults(void (*body)(void *context), void *context) {
    static std::string text;
    queue.fault.clear();
    queue.catching = true;
    body(context);
    queue_finish(nullptr);
    queue.catching = false;
    text = queue.fault;
    return text.c_str();
}

void queue_deadlock() {
    fprintf(stderr, "stand-in of CUDA: work waits for an event that nothing will record\n");
    abort();
}

// ---- streams ----

std::vector<CUstream_st *> &queue_streams() { return queue.streams; }

int64_t runtime_waiting() {
    int64_t count = 0;
    for (const CUstream_st *s : queue.streams) count += static_cast<int64_t>(s->pieces.size());
    return count;
}

// Whether the next piece of the stream ran: it may wait for an event or, as the work of links does, for other ranks.
static bool run_piece(CUstream_st *s) {
    if (s->pieces.empty()) return false;
    Piece &p = s->pieces.front();
    double begin = queue.ran ? clock_seconds() : 0;
    if (p.kind == Piece::WAIT && !p.record->done) return false;
    if (p.kind == Piece::RECORD) p.record->done = true, p.record->at = queue.clock;
    if (p.kind == Piece::WORK) {
        queue.running = true;
        bool done = p.work();
        queue.running = false;
        if (!done) return false;
    }
    bool work = p.kind == Piece::WORK;
    s->pieces.pop_front();
    queue.waited = 0;
    if (!work || !queue.ran) return true;
    int number = static_cast<int>(std::find(queue.streams.begin(), queue.streams.end(), s) - queue.streams.begin());
    queue.ran(queue.watcher, number, begin, clock_seconds());
    return true;
}

static bool others_run(const CUstream_st *but) {
    for (size_t i = queue.streams.size(); i-- > 0;)
        if (queue.streams[i] != but && run_piece(queue.streams[i])) return true;
    return false;
}

static bool random_runs() {
    size_t count = queue.streams.size(), first = count ? draw(count) : 0;
    for (size_t i = 0; i < count; i++)
        if (run_piece(queue.streams[(first + i) % count])) return true;
    return false;
}

// The stream that will make the record.
static CUstream_st *maker(const std::shared_ptr<Record> &record) {
    for (CUstream_st *s : queue.streams)
        for (const Piece &p : s->pieces)
            if (p.kind == Piece::RECORD && p.record == record) return s;
    queue_deadlock();
}

// No stream can go on until another rank has done something.
static void wait_for_ranks() {
    usleep(PAUSE);
    queue.waited += PAUSE * 1e-6;
    if (queue.waited < LONGEST_WAIT) return;
    fprintf(stderr, "stand-in of CUDA: work waits for other ranks, and none of them comes\n");
    abort();
}

// The next piece of the stream, or of one that it waits for; while that waits for other ranks, of any.
static void advance(CUstream_st *s) {
    for (size_t depth = 0; !run_piece(s); depth++) {
        if (depth > queue.streams.size()) queue_deadlock();
        if (s->pieces.front().kind != Piece::WAIT) {
            if (!others_run(s)) wait_for_ranks();
            return;
        }
        s = maker(s->pieces.front().record);
    }
}

// One piece on the way to what is waited for, in `s`.
static void step(CUstream_st *s) {
    if (queue.order == RUNTIME_OTHERS_FIRST && others_run(s)) return;
    if (queue.order == RUNTIME_RANDOM && random_runs()) return;
    advance(s);
}

void queue_finish(CUstream_st *s) {
    if (!s) {
        for (CUstream_st *each : queue.streams) queue_finish(each);
        return;
    }
    while (!s->pieces.empty()) step(s);
}
void runtime_finish() { queue_finish(nullptr); }

void queue_reach(const std::shared_ptr<Record> &record) {
    while (!record->done) step(maker(record));
}

void queue_progress() {
    if (queue.order != RUNTIME_RANDOM || queue.running) return;
    while (draw(3) == 0 && random_runs()) {}
}

void runtime_go_on() {
    if (queue.running) return;
    if (queue.order == RUNTIME_RANDOM)
        random_runs();
    else
        others_run(nullptr);
}

// ---- graphs, kernels ----

void queue_put(CUstream_st *s, std::function<void()> work) {
    queue_put_waiting(s, [work] { return work(), true; });
}

void queue_put_waiting(CUstream_st *s, Work work) {
    if (!s->capture) {
        s->pieces.push_back({Piece::WORK, std::move(work), nullptr});
        return;
    }
    std::vector<Node> &nodes = s->capture->graph->nodes;
    nodes.push_back({std::move(work), s->front});
    s->front = {nodes.size() - 1};
}

// Which of the nodes that may be next is.
static size_t choose(size_t count) {
    return queue.order == RUNTIME_LATE ? 0 : queue.order == RUNTIME_OTHERS_FIRST ? count - 1 : draw(count);
}

void queue_launch(CUstream_st *s, const CUgraphExec_st *graph) {
    size_t count = graph->nodes.size();
    std::vector<size_t> missing(count), ready;
    std::vector<std::vector<size_t>> next(count);
    for (size_t i = 0; i < count; i++) {
        missing[i] = graph->nodes[i].behind.size();
        for (size_t before : graph->nodes[i].behind) next[before].push_back(i);
        if (!missing[i]) ready.push_back(i);
    }
    while (!ready.empty()) {
        size_t at = choose(ready.size()), node = ready[at];
        ready.erase(ready.begin() + static_cast<std::ptrdiff_t>(at));
        s->pieces.push_back({Piece::WORK, graph->nodes[node].work, nullptr});
        for (size_t i : next[node])
            if (!--missing[i]) ready.push_back(i);
    }
}

static void later(CUstream_st *s, const SimtCall &call) { // its parameters are copied
    const char *bytes = static_cast<const char *>(call.parameters);
    std::vector<char> parameters(bytes, bytes + call.parameter_bytes);
    queue_put(s, [call, parameters]() mutable {
        SimtCall now = call;
        now.parameters = parameters.data();
        simt_launch(now);
        runtime_spend(RUNTIME_KERNEL);
    });
    queue_progress();
}

void queue_take_kernels() { simt_set_queue(later); }
