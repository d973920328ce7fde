/* Dropout by counting. A thread takes 8 elements: two blocks of draws. Where the first element is not a multiple of 8
 * or memory not aligned, threads still take whole blocks of the count, element by element; where rows have numbers and
 * are no multiple of 8, every element draws its own. */
#include "kernels/cuda/draws.h"

enum { THREADS = 256, ELEMENTS = 8 };

template <class T> static __device__ __forceinline__ void write_one(T *y, float x, bool add) {
    from_float(y, add ? to_float(*y) + x : x);
}

// whole: ELEMENTS side by side always have the words of two blocks. aligned: and lie so in memory.
template <class T>
static __global__ void __launch_bounds__(THREADS)
    dropout_kernel(T *y, const T *x, int64_t n, Draw s, bool whole, bool aligned, bool add) {
    constexpr int N = PACK<T>;
    // elements [group, group + 8) of the count are [i, i + 8) here
    const uint64_t first = s.step->first;
    uint64_t group = (first / ELEMENTS + static_cast<uint64_t>(blockIdx.x) * THREADS + threadIdx.x) * ELEMENTS;
    int64_t i = static_cast<int64_t>(group - first);
    if (i >= n) return;
    if (!whole) {
        for (int k = 0; k < ELEMENTS; k++) {
            if (i + k < 0 || i + k >= n) continue;
            uint64_t e = element_of(s, group + static_cast<uint64_t>(k));
            write_one(y + i + k, kept(to_float(x[i + k]), word_of(draw_block(s, e / 4), e), s), add);
        }
        return;
    }
    uint64_t block = element_of(s, group) / 4;
    Words words[2] = {draw_block(s, block), draw_block(s, block + 1)};
    if (aligned && first % ELEMENTS == 0 && i + ELEMENTS <= n) {
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

void cuda_dropout(const CudaQueue *q, void *y, const void *x, int64_t n, const DropoutDraws *d, Dtype t, bool add) {
    if (n <= 0) return;
    Draw s = draw_by(q, *d);
    uint64_t groups = static_cast<uint64_t>(n - 1) / ELEMENTS + 2; // enough wherever the first element stands
    dim3 grid(static_cast<unsigned>(divide_up<uint64_t>(groups, THREADS)));
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        T *to = static_cast<T *>(y);
        const T *from = static_cast<const T *>(x);
        bool whole = draws_whole_blocks(*d, ELEMENTS);
        bool aligned = packs_at(to, PACK<T>) && packs_at(from, PACK<T>);
        launch<dropout_kernel<T>>(grid, dim3(THREADS), 0, q, to, from, n, s, whole, aligned, add);
    });
}
