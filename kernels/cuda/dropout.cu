/* Dropout by counting: element e of a site has word e % 4 of block e / 4 of its Philox4x32-10 stream, exactly as
 * kernels/cpu/simd/dropout.c says. A thread takes 8 elements: two blocks. Where the first element is not a multiple of
 * 8 or memory not aligned, threads still take whole blocks of the count, element by element; where rows have numbers
 * and are no multiple of 8, every element draws its own. */
#include "base/philox.h"
#include "kernels/cuda/language.h"

enum { THREADS = 256, ELEMENTS = 8 };

struct Words {
    uint32_t at[4];
};

struct Stream {
    uint64_t seed, site;
    uint32_t threshold; // a word below it drops its element
    float keep_scale;
};

static __device__ __forceinline__ Words draw(const Stream &s, uint64_t block) {
    uint32_t c0 = static_cast<uint32_t>(block), c1 = PURPOSE_DROPOUT, c2 = static_cast<uint32_t>(s.site);
    uint32_t c3 = static_cast<uint32_t>(s.site >> 32) ^ static_cast<uint32_t>(block >> 32);
    uint32_t k0 = static_cast<uint32_t>(s.seed), k1 = static_cast<uint32_t>(s.seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint32_t high_a = __umulhi(0xD2511F53u, c0), low_a = 0xD2511F53u * c0;
        uint32_t high_b = __umulhi(0xCD9E8D57u, c2), low_b = 0xCD9E8D57u * c2;
        c0 = high_b ^ c1 ^ k0;
        c1 = low_b;
        c2 = high_a ^ c3 ^ k1;
        c3 = low_a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return Words{{c0, c1, c2, c3}};
}

// Multiplying, rather than writing zero, lets NaN and Inf of dropped elements through.
static __device__ __forceinline__ float kept(float x, uint32_t word, const Stream &s) {
    return x * (word >= s.threshold ? s.keep_scale : 0.0f);
}

struct Rows {               // that have numbers of their own
    const int32_t *numbers; // NULL: they stand in order
    uint64_t row;           // elements of one
};

// The element of the site that stands at `e` of these rows.
static __device__ __forceinline__ uint64_t element_of(const Rows &r, uint64_t e) {
    if (!r.numbers) return e;
    uint64_t row = e / r.row;
    return static_cast<uint64_t>(r.numbers[row]) * r.row + (e - row * r.row);
}

template <class T> static __device__ __forceinline__ void write_one(T *y, float x, bool add) {
    from_float(y, add ? to_float(*y) + x : x);
}

// whole: ELEMENTS side by side always have the words of two blocks. aligned: and lie so in memory.
template <class T>
static __global__ void __launch_bounds__(THREADS) dropout_kernel(T *y, const T *x, int64_t n, Stream s, Rows rows,
                                                                 uint64_t first, bool whole, bool aligned, bool add) {
    constexpr int N = PACK<T>;
    // elements [group, group + 8) of the count are [i, i + 8) here
    uint64_t group = (first / ELEMENTS + static_cast<uint64_t>(blockIdx.x) * THREADS + threadIdx.x) * ELEMENTS;
    int64_t i = static_cast<int64_t>(group - first);
    if (i >= n) return;
    if (!whole) {
        for (int k = 0; k < ELEMENTS; k++) {
            if (i + k < 0 || i + k >= n) continue;
            uint64_t e = element_of(rows, group + static_cast<uint64_t>(k));
            Words w = draw(s, e / 4);
            uint32_t word = e & 2 ? (e & 1 ? w.at[3] : w.at[2]) : (e & 1 ? w.at[1] : w.at[0]);
            write_one(y + i + k, kept(to_float(x[i + k]), word, s), add);
        }
        return;
    }
    uint64_t block = element_of(rows, group) / 4;
    Words words[2] = {draw(s, block), draw(s, block + 1)};
    if (aligned && i + ELEMENTS <= n) {
#pragma unroll
        for (int k = 0; k < ELEMENTS; k += N) {
            Floats<N> v = load<N>(x + i + k);
#pragma unroll
            for (int c = 0; c < N; c++) v.at[c] = kept(v.at[c], words[(k + c) / 4].at[(k + c) % 4], s);
            write<N>(y + i + k, v, add);
        }
        return;
    }
#pragma unroll
    for (int k = 0; k < ELEMENTS; k++)
        if (i + k >= 0 && i + k < n) write_one(y + i + k, kept(to_float(x[i + k]), words[k / 4].at[k % 4], s), add);
}

void cuda_dropout(const CudaQueue *q, void *y, const void *x, int64_t n, double p, uint64_t seed, uint64_t site,
                  uint64_t first, const int32_t *numbers, int64_t row, Dtype t, bool add) {
    if (n <= 0) return;
    Stream s = {seed, site, static_cast<uint32_t>(p * 4294967296.0), static_cast<float>(1 / (1 - p))};
    Rows rows = {numbers, static_cast<uint64_t>(row)};
    uint64_t groups = (first + static_cast<uint64_t>(n) - 1) / ELEMENTS - first / ELEMENTS + 1;
    dim3 grid(static_cast<unsigned>(divide_up<uint64_t>(groups, THREADS)));
    bool whole = !numbers || row % ELEMENTS == 0;
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        T *to = static_cast<T *>(y);
        const T *from = static_cast<const T *>(x);
        bool aligned = first % ELEMENTS == 0 && packs_at(to, PACK<T>) && packs_at(from, PACK<T>);
        launch<dropout_kernel<T>>(grid, dim3(THREADS), 0, q, to, from, n, s, rows, first, whole, aligned, add);
    });
}
