/* What every kernel is written in: bf16, vectors of up to 16 bytes from aligned memory, division by a number known at
 * launch, sums over warps and blocks in a fixed order, launches. Under nvcc the words are CUDA's own; other compilers
 * come with the shim of tests/simt/ in front, which runs the same sources on the CPU. Blocks are whole warps. */
#pragma once
#include "kernels/cuda/kernels.h"
#include <new>
#include <tuple>
#include <type_traits>
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#define CHECK_VECTOR(at, bytes)   (void)0
#define CHECK_GLOBAL(at)          (void)0
#define SHARED(type, name, count) __shared__ type name[count]
#define SHARED_DYNAMIC(type, name)                                                                                     \
    extern __shared__ uint4 dynamic_shared_memory[];                                                                   \
    type *const name = reinterpret_cast<type *>(dynamic_shared_memory)
// A launch that fails leaves its error with the runtime, where whoever called looks (cudaGetLastError).
template <auto Kernel, class... A>
static void launch_now(dim3 grid, dim3 block, size_t shared, CudaStream stream, const A &...arguments) {
    Kernel<<<grid, block, shared, stream>>>(arguments...);
}
// The same of a kernel that calls wait_for_earlier: it may begin while the kernel in front of it in the stream still
// runs (programmatic dependent launch), where it was compiled for compute capability 9.0 or later.
template <auto Kernel, class... A>
static void launch_now_early(dim3 grid, dim3 block, size_t shared, CudaStream stream, const A &...arguments) {
    static const bool can = [] {
        cudaFuncAttributes facts;
        return cudaFuncGetAttributes(&facts, Kernel) == cudaSuccess && facts.ptxVersion >= 90;
    }();
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared, config.stream = stream;
    config.attrs = &attribute, config.numAttrs = can ? 1 : 0;
    (void)cudaLaunchKernelEx(&config, Kernel, A(arguments)...);
}
#elif defined(SIMT_H)
#define CHECK_VECTOR(at, bytes) simt_check_vector(at, bytes) // the compiler may take the vector apart
#define CHECK_GLOBAL(at)        simt_check_global(at)
template <auto Kernel, class... A>
static void launch_now_early(dim3 grid, dim3 block, size_t shared, CudaStream stream, const A &...arguments) {
    launch_now<Kernel>(grid, block, shared, stream, arguments...);
}
#else
#error "without nvcc these sources want tests/simt/shim/simt.h in front (-include)"
#endif

// ---- launches ----

template <class... A> struct Launch { // as bytes that can be kept, compared, and started again
    dim3 grid, block;
    size_t shared; // bytes of dynamic shared memory
    std::tuple<A...> arguments;
};
template <auto Kernel, bool EARLY, class... A> static void start_launch(const void *memory, CudaStream stream) {
    const Launch<A...> *l = static_cast<const Launch<A...> *>(memory);
    std::apply(
        [&](const A &...a) {
            if constexpr (EARLY)
                launch_now_early<Kernel>(l->grid, l->block, l->shared, stream, a...);
            else
                launch_now<Kernel>(l->grid, l->block, l->shared, stream, a...);
        },
        l->arguments);
}
// Equal launches have equal bytes: structs among the arguments have no padding (flags are as wide as what stands beside
// them, or `none` fills up), and where one has some, it is cleared by compilers that can.
template <class T> static inline void clear_padding(T &x) {
#ifdef __has_builtin
#if __has_builtin(__builtin_clear_padding)
    if (!std::is_empty_v<T>) __builtin_clear_padding(&x); // an empty one shares its byte with others
#endif
#endif
    (void)x;
}
// queue NULL: at once, on the default stream.
template <auto Kernel, bool EARLY, class... A>
static void put_launch(dim3 grid, dim3 block, size_t shared, const CudaQueue *queue, const A &...arguments) {
    static_assert((std::is_trivially_copyable_v<A> && ...), "a launch is kept as bytes");
    static_assert(alignof(Launch<A...>) <= 16, "lists keep arguments at multiples of 16 bytes");
    alignas(Launch<A...>) unsigned char memory[sizeof(Launch<A...>)] = {}; // what lies between the arguments is zero
    Launch<A...> *l = new (memory) Launch<A...>{grid, block, shared, std::tuple<A...>(arguments...)};
    std::apply([](A &...a) { (clear_padding(a), ...); }, l->arguments);
    if (queue && queue->start)
        queue->start(queue->owner, start_launch<Kernel, EARLY, A...>, memory, sizeof memory);
    else
        start_launch<Kernel, EARLY, A...>(memory, queue ? queue->stream : nullptr);
}
template <auto Kernel, class... A>
static void launch(dim3 grid, dim3 block, size_t shared, const CudaQueue *queue, const A &...arguments) {
    put_launch<Kernel, false>(grid, block, shared, queue, arguments...);
}
// Of a kernel that calls wait_for_earlier before it reads what kernels in front of it write, and before it writes.
template <auto Kernel, class... A>
static void launch_early(dim3 grid, dim3 block, size_t shared, const CudaQueue *queue, const A &...arguments) {
    put_launch<Kernel, true>(grid, block, shared, queue, arguments...);
}

// Lets a kernel have more dynamic shared memory than the 48 KiB that it gets unasked. The last word counts when a list
// of launches starts: for one kernel it must always be the same, the most it ever wants. Every GPU has 99 KiB for a
// block, what it declares included.
template <auto Kernel> static void allow_shared(size_t bytes) {
#ifdef __CUDACC__
    (void)cudaFuncSetAttribute(Kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
#else
    simt_most_shared<Kernel> = bytes;
#endif
}

enum { WARP = 32 };
static constexpr unsigned ALL_LANES = 0xffffffffu;

template <class T> __host__ __device__ __forceinline__ constexpr T smaller(T a, T b) { return a < b ? a : b; }
template <class T> __host__ __device__ __forceinline__ constexpr T larger(T a, T b) { return a > b ? a : b; }
template <class T> __host__ __device__ __forceinline__ constexpr T divide_up(T a, T b) { return (a + b - 1) / b; }

// In kernels of launch_early: the kernels in front of this one are done, and all they wrote can be read; and the next
// one may begin as soon as all blocks have come here.
__device__ __forceinline__ void wait_for_earlier() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    cudaGridDependencySynchronize();
#endif
}
__device__ __forceinline__ void let_next_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// ---- numbers in memory ----

struct Bf16 {
    uint16_t bits;
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(Bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
// Rounds to nearest even; NaN stays NaN.
__device__ __forceinline__ void from_float(float *to, float x) { *to = x; }
__device__ __forceinline__ void from_float(Bf16 *to, float x) {
#ifdef __CUDACC__
    to->bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
#else
    to->bits = f32_to_bf16(x);
#endif
}

// N numbers side by side: one access of up to 16 bytes, or several of 16.
template <class T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack { T at[N]; };
template <int N> struct Floats { float at[N]; };

template <class T> constexpr int PACK = 16 / static_cast<int>(sizeof(T)); // numbers of 16 bytes

template <int N, class T> __device__ __forceinline__ Pack<T, N> load_pack(const T *x) {
    CHECK_VECTOR(x, alignof(Pack<T, N>));
    return *reinterpret_cast<const Pack<T, N> *>(x);
}
template <class T, int N> __device__ __forceinline__ Floats<N> unpack(const Pack<T, N> &p) {
    Floats<N> f;
#pragma unroll
    for (int i = 0; i < N; i++) f.at[i] = to_float(p.at[i]);
    return f;
}
template <int N, class T> __device__ __forceinline__ Floats<N> load(const T *x) { return unpack(load_pack<N>(x)); }
#ifdef __CUDACC__
// nvcc takes what is stored as a struct apart, into four accesses instead of one, unless it is told like this.
__device__ __forceinline__ void store_words(void *y, uint4 w) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(y)), "r"(w.x), "r"(w.y),
                 "r"(w.z), "r"(w.w)
                 : "memory");
}
__device__ __forceinline__ void store_words(void *y, uint2 w) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(y)), "r"(w.x), "r"(w.y) : "memory");
}
#endif
// To global memory: to shared memory by store_shared.
template <int N, class T> __device__ __forceinline__ void store_pack(T *y, const Pack<T, N> &p) {
    CHECK_VECTOR(y, alignof(Pack<T, N>));
    CHECK_GLOBAL(y);
#ifdef __CUDACC__
    if constexpr (sizeof p % 8 == 0) {
        typedef std::conditional_t<sizeof p % 16 == 0, uint4, uint2> Words;
        Words words[sizeof p / sizeof(Words)];
        memcpy(words, &p, sizeof p);
#pragma unroll
        for (size_t i = 0; i < sizeof p / sizeof(Words); i++) store_words(reinterpret_cast<Words *>(y) + i, words[i]);
        return;
    }
#endif
    *reinterpret_cast<Pack<T, N> *>(y) = p;
}
template <int N, class T> __device__ __forceinline__ Pack<T, N> packed(const Floats<N> &f) {
    Pack<T, N> p;
#pragma unroll
    for (int i = 0; i < N; i++) from_float(&p.at[i], f.at[i]);
    return p;
}
template <int N, class T> __device__ __forceinline__ void store(T *y, const Floats<N> &f) {
    store_pack<N>(y, packed<N, T>(f));
}
// To the block's shared memory.
template <int N, class T> __device__ __forceinline__ void store_shared(T *y, const Floats<N> &f) {
    CHECK_VECTOR(y, alignof(Pack<T, N>));
    *reinterpret_cast<Pack<T, N> *>(y) = packed<N, T>(f);
}
// y (+)= f
template <int N, class T> __device__ __forceinline__ void write(T *y, Floats<N> f, bool add) {
    if (add) {
        Floats<N> old = load<N>(y);
#pragma unroll
        for (int i = 0; i < N; i++) f.at[i] += old.at[i];
    }
    store<N>(y, f);
}

// Whether N numbers at a time may be accessed at every multiple of N from `x` on. NULL may.
template <class T> static bool packs_at(const T *x, int n) {
    return reinterpret_cast<uintptr_t>(x) % smaller<size_t>(sizeof(T) * static_cast<size_t>(n), 16) == 0;
}

// ---- a type for a Dtype: calls f(T{}) with T float or Bf16 ----

template <class F> static void with_type(Dtype t, F f) {
    if (t == F32)
        f(float{});
    else
        f(Bf16{});
}
template <class F> static void with_bool(bool b, F f) {
    if (b)
        f(std::true_type{});
    else
        f(std::false_type{});
}

// ---- q = n / d for n < 2^31 without a division (Granlund and Montgomery 1994) ----

struct Divider {
    uint32_t divisor, factor, shift;
};
static inline Divider divider(int64_t divisor) {
    uint32_t d = static_cast<uint32_t>(divisor), shift = 0;
    while ((static_cast<uint64_t>(1) << shift) < d) shift++;
    uint64_t factor = (static_cast<uint64_t>(1) << 32) * ((static_cast<uint64_t>(1) << shift) - d) / d + 1;
    return Divider{d, static_cast<uint32_t>(factor), shift};
}
// Where 32 bits do not hold what is divided the launcher must cut its work.
__device__ __forceinline__ uint32_t divide(uint32_t n, Divider d) {
    return static_cast<uint32_t>((static_cast<uint64_t>(__umulhi(n, d.factor)) + n) >> d.shift);
}

__device__ __forceinline__ int64_t quotient(int64_t n, Divider d) { // of any n >= 0
    return n < INT32_MAX ? divide(static_cast<uint32_t>(n), d) : n / d.divisor;
}

// ---- warps and blocks ----

__device__ __forceinline__ int lane_of_thread() { return static_cast<int>(threadIdx.x % WARP); }
__device__ __forceinline__ int warp_of_thread() { return static_cast<int>(threadIdx.x / WARP); }

// Over the lanes of a warp, all of which must be here; all get the result.
template <class T> __device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
    for (int apart = WARP / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(ALL_LANES, x, apart);
    return x;
}
__device__ __forceinline__ float warp_max(float x) { // NaN is not looked for
#pragma unroll
    for (int apart = WARP / 2; apart > 0; apart /= 2) {
        float other = __shfl_xor_sync(ALL_LANES, x, apart);
        x = other > x ? other : x;
    }
    return x;
}

// Over a block of THREADS, all of which must be here and get the result. `memory`: shared, THREADS / WARP numbers, free
// again when the call returns.
template <int THREADS, class T> __device__ __forceinline__ T block_sum(T x, T *memory) {
    x = warp_sum(x);
    if (THREADS == WARP) return x;
    if (lane_of_thread() == 0) memory[warp_of_thread()] = x;
    __syncthreads();
    T sum = 0;
#pragma unroll
    for (int w = 0; w < THREADS / WARP; w++) sum += memory[w];
    __syncthreads();
    return sum;
}
