/* The CPU backend itself: chooses the instruction set, owns the threads, memory and scratch. The kernels are under
 * simd/. */
#include "base/error.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/onednn.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { CACHE_LINE = 64, HUGE_PAGE = 2 << 20 };

typedef struct InstructionSet {
    const char *name;
    const char *lacks; // what a machine that must stop here does not have
    void (*install)(Backend *);
} InstructionSet;

#define INSTALL_PLAIN(name)      install_##name##_plain(b);
#define INSTALL_AVX2(name)       install_##name##_avx2(b);
#define INSTALL_AVX512(name)     install_##name##_avx512(b);
#define INSTALL_AVX512BF16(name) install_##name##_avx512bf16(b);
static void install_plain(Backend *b) { CPU_INSTALLERS(INSTALL_PLAIN) }
#if defined(__x86_64__)
static void install_avx2(Backend *b) { CPU_INSTALLERS(INSTALL_AVX2) }
static void install_avx512(Backend *b) { CPU_INSTALLERS(INSTALL_AVX512) }
static void install_avx512bf16(Backend *b) { CPU_INSTALLERS(INSTALL_AVX512BF16) }
#endif

static const InstructionSet SETS[] = {
    // each holds those before it
    {"plain", "AVX2 instructions", install_plain},
#if defined(__x86_64__)
    {"avx2", "AVX-512 instructions", install_avx2},
    {"avx512", "AVX-512 bf16 instructions", install_avx512},
    {"avx512-bf16", NULL, install_avx512bf16},
#endif
};
enum { SET_COUNT = sizeof SETS / sizeof *SETS };

static int best_set(void) { // index into SETS
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi2")) return 0;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512cd") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512vl"))
        return 1;
    return __builtin_cpu_supports("avx512bf16") ? 3 : 2;
#else
    return 0;
#endif
}

// The set named by the caller or the environment, if there is such a one and the machine has it; else the best.
static int choose_set(const char *wanted, Log *log) {
    int best = best_set();
    const char *from = "";
    if (!wanted) {
        wanted = getenv("BIFOCAL_CPU");
        from = "BIFOCAL_CPU=";
    }
    if (!wanted || !*wanted) return best;
    for (int i = 0; i < SET_COUNT; i++) {
        if (strcmp(wanted, SETS[i].name)) continue;
        if (i <= best) return i;
        log_error(log, "%s%s: this processor lacks it; going on with %s", from, wanted, SETS[best].name);
        return best;
    }
    log_error(log, "%s%s: no such instruction set (plain, avx2, avx512, avx512-bf16); going on with %s", from, wanted,
              SETS[best].name);
    return best;
}

bool cpu_has_isa(const char *isa) {
    for (int i = 0, best = best_set(); i <= best; i++)
        if (!strcmp(isa, SETS[i].name)) return true;
    return false;
}

// ---- memory ----

static size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// Large blocks start on a huge page and ask for them: fewer misses of the page table cache.
static void *allocate(void *backend, size_t bytes) {
    (void)backend;
    size_t unit = bytes >= HUGE_PAGE ? HUGE_PAGE : CACHE_LINE;
    void *memory = aligned_alloc(unit, round_up(bytes ? bytes : 1, unit));
    if (memory && unit == HUGE_PAGE) (void)madvise(memory, round_up(bytes, unit), MADV_HUGEPAGE);
    return memory;
}

static void release(void *backend, void *memory, size_t bytes) {
    (void)backend, (void)bytes;
    free(memory);
}

static void copy(Backend *b, void *to, const void *from, size_t bytes) {
    (void)b;
    if (bytes) memmove(to, from, bytes);
}

static void zero(Backend *b, void *memory, size_t bytes) {
    (void)b;
    if (bytes) memset(memory, 0, bytes);
}

static void wait_for_all(Backend *b) { (void)b; } // calls return when they are done

// Makes `*block` hold at least `bytes`; what it held is lost when it grows.
static void *grow(CpuState *s, void **block, size_t *size, size_t bytes) {
    if (*size >= bytes) return *block;
    free(*block);
    *size = round_up(bytes + bytes / 4, bytes >= HUGE_PAGE / 4 ? HUGE_PAGE : HUGE_PAGE / 32);
    *block = allocate(NULL, *size);
    check(*block);
    __atomic_fetch_add(&s->allocations, 1, __ATOMIC_RELAXED);
    return *block;
}

Threads *cpu_threads(const Backend *b) { return ((CpuState *)b->state)->threads; }

void *cpu_worker_scratch(const Backend *b, int worker, size_t bytes) {
    CpuState *s = b->state;
    return grow(s, &s->scratch[worker], &s->scratch_size[worker], bytes);
}

void *cpu_shared_scratch(const Backend *b, size_t bytes) {
    CpuState *s = b->state;
    return grow(s, &s->shared, &s->shared_size, bytes);
}

// ---- life ----

static void destroy(Backend *b) {
    CpuState *s = b->state;
    for (int i = 0; i < threads_count(s->threads); i++) free(s->scratch[i]);
    threads_free(s->threads);
    onednn_free(s->onednn);
    free(s->scratch);
    free(s->scratch_size);
    free(s->shared);
    free(s);
    free(b);
}

static void matmul_by_onednn(Backend *b, const Matmul *p) {
    CpuState *s = b->state;
    if (!onednn_matmul(s->onednn, p)) s->own_matmul(b, p);
}

// BIFOCAL_MATMUL: "own" (the default) or "onednn".
static void choose_matmul(Backend *b, Log *log) {
    CpuState *s = b->state;
    const char *wanted = getenv("BIFOCAL_MATMUL");
    if (!wanted || !*wanted || !strcmp(wanted, "own")) return;
    if (strcmp(wanted, "onednn")) {
        log_error(log, "BIFOCAL_MATMUL=%s: no such matrix product (own, onednn); going on with own", wanted);
        return;
    }
    s->onednn = onednn_new(threads_count(s->threads));
    if (!s->onednn) {
        log_error(log, "BIFOCAL_MATMUL=onednn: this program was built without oneDNN; going on with own");
        return;
    }
    s->own_matmul = b->matmul;
    b->matmul = matmul_by_onednn;
    log_info(log, "matrix products by oneDNN %s: their bits may depend on the number of threads",
             onednn_version(s->onednn));
}

// One of few numbers: not worth threads or instruction sets. A NaN in b comes through its sum.
static void clip_join(Backend *be, PairSums a, PairSums b, int64_t n) {
    (void)be;
    for (int64_t i = 0; i < n; i++) {
        if (b.most[i] == -INFINITY) continue; // of no rows
        float most = a.most[i] < b.most[i] ? b.most[i] : a.most[i];
        a.sum[i] = a.sum[i] * expf(a.most[i] - most) + b.sum[i] * expf(b.most[i] - most);
        a.most[i] = most;
    }
}

Backend *cpu_backend_new(int threads, const char *isa, Log *log) {
    int set = choose_set(isa, log), best = best_set();
    Backend *b = calloc(1, sizeof *b);
    CpuState *s = calloc(1, sizeof *s);
    check(b && s);
    *b = (Backend){.name = "cpu", .isa = SETS[set].name, .state = s, .destroy = destroy};
    b->allocate = allocate, b->release = release, b->copy = copy, b->upload = copy, b->download = copy, b->zero = zero;
    b->wait = wait_for_all;
    s->threads = threads_new(threads);
    int count = threads_count(s->threads);
    s->scratch = calloc((size_t)count, sizeof *s->scratch);
    s->scratch_size = calloc((size_t)count, sizeof *s->scratch_size);
    check(s->scratch && s->scratch_size);
    SETS[set].install(b);
    cpu_install_fp8(b);
    cpu_install_words(b);
    b->clip_join = clip_join;
    choose_matmul(b, log);
    log_info(log, "CPU kernels: %s, %d thread%s%s%s%s", b->isa, count, count == 1 ? "" : "s",
             SETS[best].lacks ? "; this processor has no " : "", SETS[best].lacks ? SETS[best].lacks : "",
             set < best ? "; a lower instruction set was asked for" : "");
    return b;
}
