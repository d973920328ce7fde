/* See cuda_list.h. Lanes beyond the first are forked off it where a list first uses them and joined to it at the end,
 * by events, so that a captured graph has their order and no more. Marks of a list are events of a pool, number by
 * number; outside of lists a ring of them, whose old ones stand for all of their lane. */
#include "kernels/cuda/cuda_list.h"
#include "base/error.h"
#include "kernels/cuda/host/command_list.h"
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_LISTS = 256, RING = 64 /* marks outside of lists */ };
_Static_assert((int)BACKEND_LANES <= (int)CUDA_FIRST_LINK_LANE, "lanes of links are others");

typedef struct Note { // commands up to number `end` belong to an operator
    int64_t end;
    const char *what;
} Note;

struct CudaLists {
    KnownLists *known;
    CommandList list; // being written
    Note *notes;      // of that list
    int64_t note_count, note_room;
    uint64_t number;  // of that list; 0 stands for work outside of lists
    int depth;        // of sequences
    const char *name; // of the outermost
    bool flushing;
    bool capturing;
    cudaError_t capture_status;     // the first error while capturing
    cudaStream_t lanes[CUDA_LANES]; // the first is the state's; others are made when first used
    cudaEvent_t fork, join;
    cudaEvent_t *marks; // (mark_room), those of a list and, in front, the ring
    int64_t mark_room;
    uint64_t list_marks, ring_marks; // set so far
    // Of Backend.lane, in the list being written:
    LaneMark here;                                 // the mark behind what is put into the present lane
    unsigned entered;                              // bits of lanes
    uint64_t waited[BACKEND_LANES][BACKEND_LANES]; // [lane][of]: marks of another lane below this number lie behind it
    uint64_t met;                                  // the number behind lane 0's mark where all met last; 0: nowhere
    CudaListCounts counts;
};

static void drop_graph(void *graph) { (void)cudaGraphExecDestroy(graph); }

// A mark for what is put into lane 0 is kept back.
static void next_list(CudaLists *l) {
    l->number++;
    l->list_marks = 1;
    l->here = (LaneMark){.list = l->number};
    l->entered = 1;
    l->met = 0;
    memset(l->waited, 0, sizeof l->waited);
}

static cudaError_t new_event(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, cudaEventDisableTiming); }

bool cuda_lists_open(CudaState *s, Error *error) {
    CudaLists *l = calloc(1, sizeof *l);
    check(l);
    s->lists = l;
    l->known = known_lists_new(MOST_LISTS, drop_graph);
    l->lanes[0] = s->stream;
    next_list(l);
    cudaError_t status = new_event(&l->fork);
    if (status == cudaSuccess) status = new_event(&l->join);
    return status == cudaSuccess ||
           error_set(error, ERROR_FAILED, "no event for lists: %s", cudaGetErrorString(status));
}

void cuda_lists_close(CudaState *s) {
    CudaLists *l = s->lists;
    if (!l) return;
    if (l->counts.eager)
        log_info(s->log, "GPU %d: %lld lists of work started command by command, %lld captured, %lld as a graph",
                 s->gpu.device, (long long)l->counts.eager, (long long)l->counts.captured,
                 (long long)l->counts.launched);
    known_lists_free(l->known);
    command_list_free(&l->list);
    for (int64_t i = 0; i < l->mark_room; i++) (void)cudaEventDestroy(l->marks[i]);
    for (int i = 1; i < CUDA_LANES; i++)
        if (l->lanes[i]) (void)cudaStreamDestroy(l->lanes[i]);
    if (l->fork) (void)cudaEventDestroy(l->fork);
    if (l->join) (void)cudaEventDestroy(l->join);
    free(l->marks);
    free(l->notes);
    free(l);
    s->lists = NULL;
}

bool cuda_list_writing(const CudaState *s) { return s->lists->depth > 0 && !s->lists->flushing; }
CudaListCounts cuda_list_counts(const CudaState *s) { return s->lists->counts; }

bool cuda_list_capture_fails(CudaState *s, int status) {
    if (!s->lists || !s->lists->capturing) return false;
    if (s->lists->capture_status == cudaSuccess) s->lists->capture_status = (cudaError_t)status;
    return true;
}

// ---- writing ----

static void make_lane(CudaState *s, int lane) {
    CudaLists *l = s->lists;
    check(lane >= 0 && lane < CUDA_LANES && !l->flushing);
    if (!l->lanes[lane]) cuda_must(s, cudaStreamCreateWithFlags(&l->lanes[lane], cudaStreamNonBlocking), "a stream");
}

void cuda_list_call_on(CudaState *s, int lane, CudaStart *start, const void *arguments, size_t bytes) {
    CudaLists *l = s->lists;
    make_lane(s, lane);
    if (cuda_list_writing(s))
        command_list_add(&l->list, (Command){.start = start, .bytes = bytes, .kind = COMMAND_CALL, .lane = lane},
                         arguments);
    else
        start(arguments, l->lanes[lane]);
}

void cuda_list_call(CudaState *s, CudaStart *start, const void *arguments, size_t bytes) {
    cuda_list_call_on(s, cuda_list_lane(s), start, arguments, bytes);
}

void cuda_list_note(CudaState *s, const char *what) {
    CudaLists *l = s->lists;
    if (l->note_count == l->note_room) {
        l->note_room = l->note_room ? 2 * l->note_room : 256;
        l->notes = realloc(l->notes, (size_t)l->note_room * sizeof *l->notes);
        check(l->notes);
    }
    l->notes[l->note_count++] = (Note){l->list.count, what};
}

// ---- marks ----

static cudaEvent_t mark_event(CudaState *s, uint64_t place) {
    CudaLists *l = s->lists;
    while ((uint64_t)l->mark_room <= place) {
        l->marks = realloc(l->marks, (size_t)(l->mark_room + 1) * sizeof *l->marks);
        check(l->marks);
        cuda_must(s, new_event(&l->marks[l->mark_room]), "an event");
        l->mark_room++;
    }
    return l->marks[place];
}

static void put_mark(CudaState *s, LaneMark mark) {
    (void)mark_event(s, RING + mark.number); // made now: not while a graph is captured
    command_list_add(&s->lists->list, (Command){.mark = mark.number, .kind = COMMAND_MARK, .lane = mark.lane}, NULL);
}

LaneMark cuda_list_mark(CudaState *s, int lane) {
    CudaLists *l = s->lists;
    make_lane(s, lane);
    if (cuda_list_writing(s)) {
        LaneMark mark = {l->number, l->list_marks++, lane};
        put_mark(s, mark);
        return mark;
    }
    LaneMark mark = {0, l->ring_marks++, lane};
    cuda_must(s, cudaEventRecord(mark_event(s, mark.number % RING), l->lanes[lane]), "a mark");
    return mark;
}

// What follows on `to` comes behind all that is on `from`.
static void follow(CudaState *s, cudaStream_t to, cudaStream_t from, cudaEvent_t event) {
    cuda_must(s, cudaEventRecord(event, from), "a lane");
    cuda_must(s, cudaStreamWaitEvent(to, event, 0), "a lane");
}

void cuda_list_wait(CudaState *s, int lane, LaneMark until) {
    CudaLists *l = s->lists;
    make_lane(s, lane);
    if (cuda_list_writing(s)) { // lists begin behind all that was before
        if (until.list == l->number)
            command_list_add(&l->list, (Command){.mark = until.number, .kind = COMMAND_WAIT, .lane = lane}, NULL);
    } else if (until.list) { // its lanes were joined to the first
        if (lane) follow(s, l->lanes[lane], l->lanes[0], l->join);
    } else if (until.number + RING <= l->ring_marks) {
        follow(s, l->lanes[lane], l->lanes[until.lane], l->join);
    } else {
        cuda_must(s, cudaStreamWaitEvent(l->lanes[lane], mark_event(s, until.number % RING), 0), "a mark");
    }
}

static void join_lanes(CudaState *s, unsigned used) {
    CudaLists *l = s->lists;
    for (int i = 1; i < CUDA_LANES; i++)
        if ((used >> i & 1) && l->lanes[i]) follow(s, l->lanes[0], l->lanes[i], l->join);
}

// ---- lanes of the backend's calls ----

/* What is put into a lane between two changes of lane has one mark behind it, which is set when the lane is left, or
 * when somebody wants to wait for it. Nothing waits twice, nor for what lies behind a meeting. */

int cuda_list_lane(const CudaState *s) { return cuda_list_writing(s) ? s->lists->here.lane : 0; }

// Marks of a lane are numbered as they come: this one's successor, once it was set.
static void next_mark(CudaLists *l) { l->here.number = l->list_marks++; }

static void close_mark(CudaState *s) {
    put_mark(s, s->lists->here);
    next_mark(s->lists);
}

static void wait_in(CudaState *s, int lane, LaneMark until) {
    CudaLists *l = s->lists;
    if (!cuda_list_writing(s) || until.list != l->number || until.lane == lane) return;
    uint64_t *waited = &l->waited[lane][until.lane];
    if (until.number < *waited) return;
    if (until.lane == l->here.lane && until.number == l->here.number) close_mark(s);
    *waited = until.number + 1;
    cuda_list_wait(s, lane, until);
}

// Its work space and that of products: taken when a lane is first used.
static void enter(CudaState *s, int lane) {
    CudaLists *l = s->lists;
    close_mark(s);
    l->here.lane = lane;
    l->entered |= 1u << lane;
    cuda_memory_reach_lane(s, lane);
    cuda_products_reach_lane(s, lane);
    if (l->met) wait_in(s, lane, (LaneMark){.list = l->number, .number = l->met - 1});
}

static void set_lane(Backend *b, int lane) {
    CudaState *s = cuda_state(b);
    check(lane >= 0 && lane < BACKEND_LANES);
    if (cuda_list_writing(s) && lane != s->lists->here.lane) enter(s, lane);
}

static void lane_wait(Backend *b, int lane, LaneMark until) { wait_in(cuda_state(b), lane, until); }

// Lane 0 waits for the others, and they, when they go on, for that. Where it is alone up to now, others wait for the
// mark that will stand where it is left.
void cuda_list_meet(CudaState *s) {
    CudaLists *l = s->lists;
    if (!cuda_list_writing(s)) return;
    if (l->entered == 1) {
        l->met = l->here.number + 1;
        return;
    }
    put_mark(s, l->here);
    for (int i = 1; i < BACKEND_LANES; i++)
        if (l->entered >> i & 1) cuda_list_wait(s, 0, cuda_list_mark(s, i));
    uint64_t met = cuda_list_mark(s, 0).number;
    for (int i = 0; i < BACKEND_LANES; i++)
        for (int k = 0; k < BACKEND_LANES; k++)
            if (i != k && k) l->waited[i][k] = met;
    l->met = met + 1;
    next_mark(l);
    if (l->here.lane) wait_in(s, l->here.lane, (LaneMark){.list = l->number, .number = met});
}

static void lanes_meet(Backend *b) { cuda_list_meet(cuda_state(b)); }

void cuda_list_follow_all(CudaState *s, int lane) {
    check(lane >= BACKEND_LANES);
    for (int i = 0; i < BACKEND_LANES; i++)
        if (i == 0 || (cuda_list_writing(s) && (s->lists->entered >> i & 1)))
            cuda_list_wait(s, lane, cuda_list_mark(s, i));
}

// ---- starting ----

static void run_command(CudaState *s, const Command *c, cudaStream_t lane) {
    if (c->kind == COMMAND_CALL)
        c->start(command_arguments(c), lane);
    else if (c->kind == COMMAND_MARK)
        cuda_must(s, cudaEventRecord(mark_event(s, RING + c->mark), lane), "a mark");
    else
        cuda_must(s, cudaStreamWaitEvent(lane, mark_event(s, RING + c->mark), 0), "a mark");
}

static void play(CudaState *s) {
    CudaLists *l = s->lists;
    const Command *c;
    const Note *note = l->notes, *end = l->notes + l->note_count;
    unsigned used = 1; // lanes
    int64_t done = 0;
    cuda_must(s, cudaEventRecord(l->fork, l->lanes[0]), "a list");
    for (size_t at = 0; (c = command_list_next(&l->list, &at));) {
        if (!(used >> c->lane & 1)) cuda_must(s, cudaStreamWaitEvent(l->lanes[c->lane], l->fork, 0), "a lane");
        used |= 1u << c->lane;
        run_command(s, c, l->lanes[c->lane]);
        done++;
        for (; note < end && note->end <= done; note++) cuda_look(s, note->what);
    }
    join_lanes(s, used);
}

// Makes the list's graph, or finds that it has none; what it names is not touched yet.
static void capture(CudaState *s, KnownList *known) {
    CudaLists *l = s->lists;
    cudaGraph_t graph = NULL;
    cudaGraphExec_t ready = NULL;
    l->capturing = true;
    l->capture_status = cudaStreamBeginCapture(s->stream, cudaStreamCaptureModeThreadLocal);
    if (l->capture_status == cudaSuccess) {
        play(s);
        (void)cuda_list_capture_fails(s, cudaStreamEndCapture(s->stream, &graph));
    }
    if (l->capture_status == cudaSuccess) l->capture_status = cudaGraphInstantiate(&ready, graph, 0);
    l->capturing = false;
    if (graph) (void)cudaGraphDestroy(graph);
    known->graph = l->capture_status == cudaSuccess ? ready : NULL;
    known->without_graph = !known->graph;
    if (known->graph) return;
    (void)cudaGetLastError(); // it is reported here
    log_warning(s->log, "sequence %s: no CUDA graph of %lld commands (%s); they are started one by one", l->name,
                (long long)l->list.count, cudaGetErrorString(l->capture_status));
}

static void launch(CudaState *s, KnownList *known) {
    CudaLists *l = s->lists;
    char what[160];
    snprintf(what, sizeof what, "the graph of sequence %s, whose last operator is %s", l->name,
             l->note_count ? l->notes[l->note_count - 1].what : "not known");
    cuda_must(s, cudaGraphLaunch(known->graph, s->stream), what);
}

static void start(CudaState *s) {
    CudaLists *l = s->lists;
    bool known_before;
    KnownList *known = known_lists_find(l->known, &l->list, &known_before);
    bool had_graph = known->graph != NULL;
    l->counts.commands += l->list.count;
    if (known_before && !had_graph && !known->without_graph) capture(s, known);
    if (!known->graph) {
        play(s);
        l->counts.eager++;
        return;
    }
    launch(s, known);
    if (had_graph)
        l->counts.launched++;
    else
        l->counts.captured++;
}

void cuda_list_flush(CudaState *s) {
    CudaLists *l = s->lists;
    if (!cuda_list_writing(s)) return;
    if (l->list.count) {
        l->flushing = true;
        cuda_slab_send(s);
        start(s);
        cuda_reads_send(s);
        l->flushing = false;
        cuda_look(s, l->note_count ? l->notes[l->note_count - 1].what : l->name);
    }
    command_list_clear(&l->list);
    l->note_count = 0;
    int lane = l->here.lane;
    next_list(l);
    l->here.lane = lane;
    l->entered |= 1u << lane;
}

// Copies of slabs and reads: the former end before a list begins, the latter go from memory that nobody releases.
void cuda_list_synchronize(CudaState *s) {
    for (int i = 0; i < CUDA_LANES; i++)
        if (s->lists->lanes[i]) cuda_must(s, cudaStreamSynchronize(s->lists->lanes[i]), "waiting for the device");
}

void cuda_list_drop_graphs(CudaState *s) {
    if (s->lists) known_lists_drop_graphs(s->lists->known);
}

// ---- sequences ----

// Work outside of lists may be under way in other lanes.
static void begin(Backend *b, const char *name) {
    CudaState *s = cuda_state(b);
    CudaLists *l = s->lists;
    if (s->synchronous || l->depth++) return;
    l->name = name;
    l->here.lane = 0;
    join_lanes(s, ~0u);
}

static void end(Backend *b) {
    CudaState *s = cuda_state(b);
    if (s->synchronous) return;
    check(s->lists->depth > 0);
    if (s->lists->depth == 1) cuda_list_flush(s);
    s->lists->depth--;
}

static void flush(Backend *b) { cuda_list_flush(cuda_state(b)); }

void cuda_lists_install(Backend *b) {
    b->sequence_begin = begin, b->sequence_end = end, b->flush = flush;
    b->here = &cuda_state(b)->lists->here;
    b->lane = set_lane, b->lane_wait = lane_wait, b->lanes_meet = lanes_meet;
}
