/* The CUDA kernel language on the CPU, as far as the kernels under kernels/cuda/ use it: their own sources compile with
 * this header in front of them (the build adds it) as ordinary C++. A launch runs its blocks one after another, the
 * threads of a block as fibers that switch at barriers, shuffles and votes, in an order that tests choose.
 *
 * The sources are compiled with -fsanitize=thread, but linked with our own functions behind it (shim/memory.cpp): so
 * every load and store of a kernel comes by, and is checked to lie within an allocation or a shared array and not to
 * race with another thread's. What all this cannot show is in docs/cuda.md. */
#pragma once
#define SIMT_H
#include "tests/simt/shim/host.h"
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

// ---- words of the language ----

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
dim3 simt_thread_index();
dim3 simt_block_index();
dim3 simt_block_size();
dim3 simt_grid_size();
#define threadIdx (simt_thread_index())
#define blockIdx  (simt_block_index())
#define blockDim  (simt_block_size())
#define gridDim   (simt_grid_size())

typedef struct CUstream_st *cudaStream_t;

// ---- shared memory: declared by these macros on either compiler (kernels/cuda/language.h) ----

// Registers the array for this block; only then may the kernel touch it. Its bytes are garbage at first.
void *simt_shared_array(void *array, size_t bytes, const char *name);
void *simt_dynamic_shared();

#define SIMT_GUARD 64 /* bytes behind an array that belong to nobody */
#define SHARED(type, name, count)                                                                                      \
    static type name##_memory[(count) + SIMT_GUARD / sizeof(type)];                                                    \
    type *const name = static_cast<type *>(simt_shared_array(name##_memory, (count) * sizeof(type), #name))
#define SHARED_DYNAMIC(type, name) type *const name = static_cast<type *>(simt_dynamic_shared())

// ---- barriers, shuffles, votes ----

void simt_barrier(const char *file, int line);
void simt_warp_barrier(unsigned mask, const char *file, int line);
// Gives `value` to the warp and takes that of lane `source`, once all lanes of `mask` are here.
uint64_t simt_shuffle(unsigned mask, uint64_t value, int source, const char *file, int line);
// The lanes of `mask` whose value equals this lane's.
unsigned simt_match(unsigned mask, uint64_t value, const char *file, int line);
int simt_lane();

#define SIMT_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

static inline void __syncthreads(SIMT_SITE) { simt_barrier(file, line); }
static inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_SITE) { simt_warp_barrier(mask, file, line); }

template <class T> static inline T simt_move(unsigned mask, T value, int source, const char *file, int line) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "a shuffle moves up to 8 bytes");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = simt_shuffle(mask, bits, source, file, line);
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
template <class T> static inline T __shfl_sync(unsigned mask, T value, int lane, SIMT_SITE) {
    return simt_move(mask, value, lane & 31, file, line);
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T value, int bits, SIMT_SITE) {
    return simt_move(mask, value, simt_lane() ^ bits, file, line);
}
template <class T> static inline T __shfl_down_sync(unsigned mask, T value, unsigned by, SIMT_SITE) {
    int from = simt_lane() + static_cast<int>(by);
    return simt_move(mask, value, from < 32 ? from : simt_lane(), file, line);
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T value, unsigned by, SIMT_SITE) {
    int from = simt_lane() - static_cast<int>(by);
    return simt_move(mask, value, from >= 0 ? from : simt_lane(), file, line);
}
template <class T> static inline unsigned __match_any_sync(unsigned mask, T value, SIMT_SITE) {
    return simt_match(mask, static_cast<uint64_t>(value), file, line);
}
static inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_SITE) {
    unsigned same = simt_match(mask, predicate != 0, file, line);
    return predicate ? same : mask & ~same;
}
static inline int __any_sync(unsigned mask, int predicate, SIMT_SITE) {
    bool alike = simt_match(mask, predicate != 0, file, line) == mask;
    return predicate || !alike;
}
static inline int __all_sync(unsigned mask, int predicate, SIMT_SITE) {
    bool alike = simt_match(mask, predicate != 0, file, line) == mask;
    return predicate && alike;
}

// ---- instructions of a whole warp (shim/warp.cpp); what they do is told in kernels/cuda/mma.h ----

// Once all 32 lanes are here, `work` is done once on what they brought; then they go on.
typedef void SimtWork(void *const *lanes); // (32)
void simt_together(SimtWork *work, void *mine, const char *file, int line);
void simt_mma_bf16(float *c, const uint32_t *a, const uint32_t *b, const char *file, int line);
void simt_load_matrices(uint32_t *to, const void *row, bool turned, const char *file, int line);

// ---- asynchronous copies (shim/async.cpp): until the wait, what they are to write is garbage ----

void simt_copy_async(void *shared, const void *global, size_t bytes, bool there);
void simt_copy_commit();
void simt_copy_wait(size_t latest);

// ---- atomics; the old value comes back ----

int atomicAdd(int *, int);
unsigned atomicAdd(unsigned *, unsigned);
unsigned long long atomicAdd(unsigned long long *, unsigned long long);
float atomicAdd(float *, float);
int atomicMax(int *, int);
unsigned long long atomicMin(unsigned long long *, unsigned long long);

// ---- numbers ----

static inline uint32_t __umulhi(uint32_t a, uint32_t b) {
    return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
}
// Single operations, which no compiler joins to multiply-adds: the CPU's own, without those.
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline float __uint_as_float(uint32_t u) {
    float f;
    std::memcpy(&f, &u, sizeof f);
    return f;
}
static inline uint32_t __float_as_uint(float f) {
    uint32_t u;
    std::memcpy(&u, &f, sizeof u);
    return u;
}
[[noreturn]] void __trap();                           // a device fault
void simt_check_vector(const void *at, size_t bytes); // must lie at a multiple of `bytes`
void simt_check_global(const void *at);               // must not be shared memory

// ---- launches ----

struct SimtCall {
    const char *name; // holds "Kernel = NAME"
    dim3 grid, block;
    size_t shared, most_shared; // bytes of dynamic shared memory; that the kernel was allowed
    void *parameters;           // which the kernel may read
    size_t parameter_bytes;
    void (*run)(void *parameters); // the kernel, as one thread
};
void simt_launch(const SimtCall &);              // at once
void simt_start(cudaStream_t, const SimtCall &); // at once, or through what simt_set_queue was given

// What a kernel gets unasked; a device has more for those that ask (cudaFuncSetAttribute).
template <auto Kernel> inline size_t simt_most_shared = 48 << 10;

template <auto Kernel, class... A>
static void launch_now(dim3 grid, dim3 block, size_t shared, cudaStream_t stream, const A &...arguments) {
    typedef std::tuple<A...> Parameters;
    Parameters parameters(arguments...);
    simt_start(stream, {__PRETTY_FUNCTION__, grid, block, shared, simt_most_shared<Kernel>, &parameters,
                        sizeof parameters, [](void *memory) {
                            std::apply([](const A &...a) { Kernel(a...); }, *static_cast<Parameters *>(memory));
                        }});
}
