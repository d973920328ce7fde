/* What the GPU does, noted by CUDA's own tool (CUPTI's activities): kernels one by one, those of graphs too, copies and
 * fills. Its library is opened when a trace is asked for, and nothing is noted without it. */
#include "base/clock.h"
#include "base/error.h"
#include "kernels/cuda/cuda_cupti.h"
#include "kernels/cuda/cuda_list.h"
#include "kernels/cuda/host/activity.h"
#include <cupti.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>

enum { BUFFER = 4 << 20, ALIGNMENT = 8, READINGS = 16 }; // bytes; of the clocks, of which the closest counts

typedef struct Cupti { // the library's calls
    CUptiResult (*enable)(CUpti_ActivityKind);
    CUptiResult (*disable)(CUpti_ActivityKind);
    CUptiResult (*callbacks)(CUpti_BuffersCallbackRequestFunc, CUpti_BuffersCallbackCompleteFunc);
    CUptiResult (*flush)(uint32_t);
    CUptiResult (*next)(uint8_t *, size_t, CUpti_Activity **);
    CUptiResult (*now)(uint64_t *);
    CUptiResult (*describe)(CUptiResult, const char **);
} Cupti;

static const CUpti_ActivityKind KINDS[] = {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY,
                                           CUPTI_ACTIVITY_KIND_MEMSET};
enum { KIND_COUNT = sizeof KINDS / sizeof *KINDS };

struct CudaWatch {
    Cupti cupti;
    Activities *activities; // under the lock: a thread of CUPTI's brings records
    ClockPair first;
    bool on;
};

// CUPTI calls back without a word of ours in its arguments: the one watch of the process.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static CudaWatch *watching;

// ---- the library ----

static bool find_calls(Cupti *c, void *library) {
    const struct {
        const char *name;
        void *to;
    } calls[] = {{"cuptiActivityEnable", &c->enable},
                 {"cuptiActivityDisable", &c->disable},
                 {"cuptiActivityRegisterCallbacks", &c->callbacks},
                 {"cuptiActivityFlushAll", &c->flush},
                 {"cuptiActivityGetNextRecord", &c->next},
                 {"cuptiGetTimestamp", &c->now},
                 {"cuptiGetResultString", &c->describe}};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
        if (!(*(void **)calls[i].to = dlsym(library, calls[i].name))) return false;
    return true;
}

// It stays open: CUPTI does not like to be closed.
static bool open_library(Cupti *c, Log *log) {
    static const char *const names[] = {("libcupti.so." CUPTI_MAJOR), "libcupti.so",
                                        "/usr/local/cuda/extras/CUPTI/lib64/libcupti.so",
                                        "/usr/local/cuda/lib64/libcupti.so"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        if (library && find_calls(c, library)) return true;
    }
    log_warning(log,
                "the trace shows the host alone: CUDA's libcupti.so is not found; put its folder into LD_LIBRARY_PATH");
    return false;
}

// ---- records ----

static void CUPTIAPI give_buffer(uint8_t **buffer, size_t *size, size_t *records) {
    *buffer = aligned_alloc(ALIGNMENT, BUFFER);
    *size = *buffer ? BUFFER : 0;
    *records = 0; // as many as there is room for
}

static CopyWay way_of(uint8_t kind) {
    switch (kind) {
    case CUPTI_ACTIVITY_MEMCPY_KIND_HTOD:
        return COPY_TO_DEVICE;
    case CUPTI_ACTIVITY_MEMCPY_KIND_DTOH:
        return COPY_TO_HOST;
    case CUPTI_ACTIVITY_MEMCPY_KIND_DTOD:
        return COPY_ON_DEVICE;
    default:
        return COPY_OTHER;
    }
}

static bool read_record(const CUpti_Activity *record, Activity *out) {
    if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
        const CUpti_ActivityKernel10 *k = (const void *)record;
        *out = (Activity){
            .kind = ACTIVITY_KERNEL, .name = k->name, .stream = k->streamId, .begin = k->start, .end = k->end};
    } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
        const CUpti_ActivityMemcpy6 *m = (const void *)record;
        *out = (Activity){.kind = ACTIVITY_COPY, .way = way_of(m->copyKind), .bytes = m->bytes, .stream = m->streamId};
        out->begin = m->start, out->end = m->end;
    } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMSET) {
        const CUpti_ActivityMemset4 *m = (const void *)record;
        *out = (Activity){
            .kind = ACTIVITY_FILL, .bytes = m->bytes, .stream = m->streamId, .begin = m->start, .end = m->end};
    } else {
        return false;
    }
    return true;
}

static void CUPTIAPI take_buffer(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size, size_t valid) {
    CUpti_Activity *record = NULL;
    Activity one;
    (void)context, (void)stream, (void)size;
    pthread_mutex_lock(&lock);
    while (watching && watching->cupti.next(buffer, valid, &record) == CUPTI_SUCCESS)
        if (read_record(record, &one)) activities_add(watching->activities, &one);
    pthread_mutex_unlock(&lock);
    free(buffer);
}

// ---- from begin to end ----

// Both clocks at one moment: of several readings the one whose two looks at the host's clock lie closest.
static ClockPair read_clocks(const Cupti *c) {
    ClockPair best = {0};
    double least = 1;
    for (int i = 0; i < READINGS; i++) {
        uint64_t device = 0;
        double before = clock_seconds();
        (void)c->now(&device);
        double after = clock_seconds();
        if (after - before < least) least = after - before, best = (ClockPair){device, (before + after) / 2};
    }
    return best;
}

static bool watch_begin(Backend *b) {
    CudaState *s = cuda_state(b);
    CudaWatch *w = s->watch;
    CUptiResult status = CUPTI_SUCCESS;
    const char *why = "";
    if (w->on) return true;
    if (!w->cupti.enable && !open_library(&w->cupti, s->log)) return false;
    pthread_mutex_lock(&lock);
    bool taken = watching != NULL;
    if (!taken) watching = w;
    pthread_mutex_unlock(&lock);
    if (taken) return false;
    b->wait(b);
    cuda_list_drop_graphs(s); // of a graph made before, CUPTI may note the whole alone
    status = w->cupti.callbacks(give_buffer, take_buffer);
    for (int i = 0; i < KIND_COUNT && status == CUPTI_SUCCESS; i++) status = w->cupti.enable(KINDS[i]);
    w->on = status == CUPTI_SUCCESS;
    if (w->on) {
        w->first = read_clocks(&w->cupti);
        return true;
    }
    for (int i = 0; i < KIND_COUNT; i++) (void)w->cupti.disable(KINDS[i]);
    (void)w->cupti.describe(status, &why);
    log_warning(s->log, "the trace shows the host alone: CUPTI does not start: %s", why);
    pthread_mutex_lock(&lock);
    watching = NULL;
    pthread_mutex_unlock(&lock);
    return false;
}

static void watch_end(Backend *b, void *context, void (*slice)(void *context, const DeviceSlice *)) {
    CudaState *s = cuda_state(b);
    CudaWatch *w = s->watch;
    if (!w->on) return;
    b->wait(b);
    ClockPair last = read_clocks(&w->cupti);
    (void)w->cupti.flush(1);
    for (int i = 0; i < KIND_COUNT; i++) (void)w->cupti.disable(KINDS[i]);
    pthread_mutex_lock(&lock);
    watching = NULL;
    pthread_mutex_unlock(&lock);
    w->on = false;
    int64_t lost = activities_left_out(w->activities);
    if (lost)
        log_warning(s->log, "%lld pieces of the GPU's work are not in the trace: trace fewer steps", (long long)lost);
    activities_tell(w->activities, w->first, last, context, slice);
}

void cuda_cupti_install(Backend *b) {
    CudaWatch *w = calloc(1, sizeof *w);
    check(w);
    w->activities = activities_new();
    cuda_state(b)->watch = w;
    b->watch_begin = watch_begin, b->watch_end = watch_end;
}

static void ignore(void *context, const DeviceSlice *s) { (void)context, (void)s; }

void cuda_cupti_close(Backend *b) {
    CudaWatch *w = cuda_state(b)->watch;
    if (!w) return;
    watch_end(b, NULL, ignore);
    activities_free(w->activities);
    free(w);
    cuda_state(b)->watch = NULL;
}
