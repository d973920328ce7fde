/* A module that stands in for the CUDA one and computes: the CPU's kernels on memory that the host cannot touch, since
 * the addresses it hands out are no addresses (bits 56 and up of none are zero). What is given to a kernel must be such
 * memory, as on a GPU; numbers in f64 and the rules of products, which the host writes, apart. Two GPUs, each open to
 * any number of ranks. */
extern "C" {
#include "base/error.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cuda.h"
}
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

static constexpr uintptr_t APART = static_cast<uintptr_t>(0x5a) << 56;
static constexpr int GPUS = 2;

template <class T> static bool is_apart(const T *x) { return reinterpret_cast<uintptr_t>(x) >> 56 == APART >> 56; }

template <class T> static T *inside(T *x) {
    return is_apart(x) ? reinterpret_cast<T *>(reinterpret_cast<uintptr_t>(x) ^ APART) : x;
}

template <class T> static T *outside(T *x) {
    return x ? reinterpret_cast<T *>(reinterpret_cast<uintptr_t>(x) ^ APART) : nullptr;
}

template <class T> static T *device(T *x) {
    if (x && !is_apart(x)) {
        fprintf(stderr, "a kernel was given memory of the host\n");
        abort();
    }
    return inside(x);
}

// ---- what a kernel is given, as the CPU's kernel takes it ----

template <class T> struct Given {
    T value;
    T get() { return value; }
};
template <class T> struct Given<T *> {
    T *value;
    T *get() { return device(value); }
};
template <> struct Given<double *> {
    double *value;
    double *get() { return inside(value); }
};
template <> struct Given<const double *> {
    const double *value;
    const double *get() { return inside(value); }
};
template <> struct Given<const AdamW *> {
    const AdamW *value;
    const AdamW *get() { return value; }
};
template <> struct Given<PairSums> {
    PairSums value;
    PairSums get() { return PairSums{device(value.most), device(value.sum)}; }
};
template <> struct Given<const PairTile *> {
    const PairTile *value;
    PairTile copy = {};
    const PairTile *get() {
        copy = *value;
        copy.z = device(copy.z);
        return &copy;
    }
};
template <> struct Given<const AttentionShape *> {
    const AttentionShape *value;
    AttentionShape copy = {};
    const AttentionShape *get() {
        copy = *value;
        copy.range = device(copy.range);
        return &copy;
    }
};
template <> struct Given<const Matmul *> {
    const Matmul *value;
    Matmul copy = {};
    const Matmul *get() {
        copy = *value;
        copy.a = device(copy.a), copy.b = device(copy.b), copy.c = device(copy.c), copy.bias = device(copy.bias);
        copy.aux = device(copy.aux), copy.sums = device(copy.sums);
        copy.a_factor = device(copy.a_factor), copy.b_factor = device(copy.b_factor);
        return &copy;
    }
};

template <> struct Given<const WordRows *> {
    const WordRows *value;
    WordRows copy = {};
    const WordRows *get() {
        copy = *value;
        copy.draws = device(copy.draws), copy.next = device(copy.next), copy.positions = device(copy.positions);
        copy.slots = device(copy.slots), copy.range = device(copy.range), copy.step = device(copy.step);
        copy.said = device(copy.said);
        return &copy;
    }
};
template <> struct Given<Fp8Side> {
    Fp8Side value;
    Fp8Side get() { return Fp8Side{device(value.scaling), device(value.most), value.kind}; }
};
template <> struct Given<const DropoutDraws *> {
    const DropoutDraws *value;
    DropoutDraws copy = {};
    const DropoutDraws *get() {
        if (!value) return nullptr;
        copy = *value;
        copy.numbers = device(copy.numbers);
        return &copy;
    }
};

static Backend *cpu_of(const Backend *b) { return static_cast<Backend *>(b->state); }

template <auto Field> struct Kernel;
template <class R, class... A, R (*Backend::*Field)(Backend *, A...)> struct Kernel<Field> {
    static R call(Backend *b, A... a) {
        Backend *cpu = cpu_of(b);
        return (cpu->*Field)(cpu, Given<A>{a}.get()...);
    }
};
template <auto Field> static void take(Backend *b, const Backend *cpu) {
    if (cpu->*Field) b->*Field = Kernel<Field>::call;
}
#define TAKE(name) take<&Backend::name>(b, cpu)

// ---- kernels with tables of memory, which the host writes ----

static void adamw_parts(Backend *b, const AdamWPart *parts, int count, const AdamW *rule, const Gate *gate) {
    std::vector<AdamWPart> own(parts, parts + count);
    for (AdamWPart &p : own) {
        p.parameter = device(p.parameter), p.m = device(p.m), p.v = device(p.v), p.shadow = device(p.shadow);
        p.gradient = device(p.gradient);
    }
    cpu_of(b)->adamw_parts(cpu_of(b), own.data(), count, rule, device(gate));
}

static void sum_squares(Backend *b, double *out, const FloatSpan *spans, int count, const float *finite, int64_t n) {
    std::vector<FloatSpan> own(spans, spans + count);
    for (FloatSpan &s : own) s.x = device(s.x);
    cpu_of(b)->sum_squares(cpu_of(b), device(out), own.data(), count, device(finite), n);
}

static void sum_doubles(Backend *b, const DoubleSum *sums, int count) {
    std::vector<DoubleSum> own(sums, sums + count);
    for (DoubleSum &s : own) s.x = device(s.x), s.out = device(s.out);
    cpu_of(b)->sum_doubles(cpu_of(b), own.data(), count);
}

// ---- memory ----

static void *allocate(void *backend, size_t bytes) {
    Backend *cpu = cpu_of(static_cast<Backend *>(backend));
    return outside(cpu->allocate(cpu, bytes));
}

static void release(void *backend, void *memory, size_t bytes) {
    Backend *cpu = cpu_of(static_cast<Backend *>(backend));
    if (memory) cpu->release(cpu, device(memory), bytes);
}

static void upload(Backend *b, void *to, const void *from, size_t bytes) {
    if (is_apart(from)) abort();
    cpu_of(b)->copy(cpu_of(b), device(to), from, bytes);
}

static void download(Backend *b, void *to, const void *from, size_t bytes) {
    if (is_apart(to)) abort();
    cpu_of(b)->copy(cpu_of(b), to, device(from), bytes);
}

static void copy(Backend *b, void *to, const void *from, size_t bytes) {
    cpu_of(b)->copy(cpu_of(b), device(to), device(from), bytes);
}

// Of what was there when the read was started, as from a device that goes on.
static BackendRead *read_start(Backend *b, const void *from, size_t bytes) {
    std::vector<char> *read = new std::vector<char>(bytes);
    download(b, read->data(), from, bytes);
    return reinterpret_cast<BackendRead *>(read);
}

static void read_finish(Backend *b, BackendRead *started, void *host) {
    std::vector<char> *read = reinterpret_cast<std::vector<char> *>(started);
    (void)b;
    if (read && host) memcpy(host, read->data(), read->size());
    delete read;
}

static void zero(Backend *b, void *memory, size_t bytes) { cpu_of(b)->zero(cpu_of(b), device(memory), bytes); }
static void wait_for_all(Backend *b) { (void)b; }
static const char *fault(Backend *b) { return (void)b, nullptr; }

// ---- life ----

static void take_kernels(Backend *b, const Backend *cpu) {
    TAKE(matmul), TAKE(sum_columns), TAKE(convert), TAKE(add), TAKE(add_in_place), TAKE(fold_add), TAKE(mul),
        TAKE(scale);
    TAKE(gelu_forward), TAKE(gelu_backward), TAKE(silu_forward), TAKE(silu_backward);
    TAKE(swiglu_forward), TAKE(swiglu_backward), TAKE(dropout), TAKE(rope), TAKE(block_squares);
    TAKE(first_nonfinite), TAKE(sum_into), TAKE(fill), TAKE(layernorm_forward), TAKE(layernorm_backward_input);
    TAKE(layernorm_backward_weight), TAKE(rmsnorm_forward), TAKE(rmsnorm_backward_input), TAKE(rmsnorm_backward_weight);
    TAKE(embedding_forward), TAKE(embedding_backward), TAKE(local_ids), TAKE(gather_rows), TAKE(scatter_add_rows);
    TAKE(scatter_rows), TAKE(copy_rows), TAKE(mean_rows_forward), TAKE(mean_rows_backward), TAKE(l2_normalize_forward);
    TAKE(l2_normalize_backward), TAKE(pixels), TAKE(patches_forward), TAKE(patches_backward);
    TAKE(masked_patch_mse_forward), TAKE(masked_patch_mse_backward), TAKE(attention_forward), TAKE(attention_backward);
    TAKE(cross_entropy_forward), TAKE(cross_entropy_combine), TAKE(cross_entropy_backward), TAKE(clip_sums);
    TAKE(clip_join), TAKE(clip_logsumexp), TAKE(clip_losses), TAKE(clip_gradient), TAKE(siglip_sums),
        TAKE(siglip_gradient);
    TAKE(sum_rows), TAKE(put_rows), TAKE(choose_words), TAKE(gate), TAKE(matmul_wins);
    TAKE(matmul_fp8), TAKE(fp8_advance), TAKE(scale_by), TAKE(add_norm_forward), TAKE(add_norm_backward);
    TAKE(cross_entropy_both);
    b->adamw_parts = adamw_parts, b->sum_squares = sum_squares, b->sum_doubles = sum_doubles;
}

// A kernel that is new in backend.h would be missing here only when it is called.
static void expect_all(const Backend *b, const Backend *cpu) {
    const size_t first = offsetof(Backend, matmul) / sizeof(void *), end = sizeof(Backend) / sizeof(void *);
    for (size_t i = first; i < end; i++) {
        void *have, *want;
        memcpy(&have, reinterpret_cast<const char *>(b) + i * sizeof have, sizeof have);
        memcpy(&want, reinterpret_cast<const char *>(cpu) + i * sizeof want, sizeof want);
        if (have || !want) continue;
        fprintf(stderr, "tests/modules/apart_module.cpp lacks kernel %zu of backend.h (behind matmul)\n", i - first);
        abort();
    }
}

static void destroy(Backend *b) {
    backend_free(cpu_of(b));
    delete b;
}

static Backend *open_backend(const CudaOptions *options, Log *log, Error *error) {
    if (options->device >= GPUS) return error_set(error, ERROR_USAGE, "there is no such GPU"), nullptr;
    Backend *cpu = cpu_backend_new(1, nullptr, log), *b = new Backend{};
    b->name = "cuda", b->isa = cpu->isa, b->apart = true, b->state = cpu, b->destroy = destroy;
    b->allocate = allocate, b->release = release, b->upload = upload, b->download = download, b->copy = copy;
    b->zero = zero, b->wait = wait_for_all, b->fault = fault;
    b->read_start = read_start, b->read_finish = read_finish;
    take_kernels(b, cpu);
    expect_all(b, cpu);
    return b;
}

static int count(Error *error) { return (void)error, GPUS; }

static void describe(int number, char *name, size_t name_size, char *pci, size_t pci_size) {
    snprintf(name, name_size, "CPU apart %d", number);
    snprintf(pci, pci_size, "%s", "");
}

static void describe_links(char *text, size_t size) { snprintf(text, size, "none: a test"); }

extern "C" {
__attribute__((visibility("default"))) extern const CudaModule bifocal_cuda_module;
const CudaModule bifocal_cuda_module = {BIFOCAL_VERSION, sizeof(Backend), count,
                                        open_backend,    describe,        describe_links};
}
