/* Rotary positions (Su et al. 2021) in the halves layout. The frequencies come with the launch. A block
 * takes a few rows: it finds their sines and cosines, once for all heads; angles are reduced in f64, so that large
 * positions lose nothing. Then its threads turn pairs, N of them at a time. */
#include "kernels/cuda/functions.h"

enum { THREADS = 256, ROWS = 8, TABLE = 128 };

struct Rope {
    int64_t rows, width;
    int heads, head_size;
    double base;
    int inverse, add;        // (no padding: a launch's bytes are compared)
    double frequency[TABLE]; // (D / 2), in quarter turns; of wider heads the device finds them itself
};

template <int N, class T>
static __device__ __forceinline__ void turn_pairs(T *y, const T *x, int half, const float *sine, const float *cosine,
                                                  bool add) {
    Floats<N> a = load<N>(x), b = load<N>(x + half), p, q;
#pragma unroll
    for (int i = 0; i < N; i++) {
        p.at[i] = a.at[i] * cosine[i] - b.at[i] * sine[i];
        q.at[i] = b.at[i] * cosine[i] + a.at[i] * sine[i];
    }
    write<N>(y, p, add);
    write<N>(y + half, q, add);
}

// Shared: sine and cosine (ROWS, D / 2).
template <class T, int N>
static __global__ void __launch_bounds__(THREADS)
    rope_kernel(T *y, const T *x, const int32_t *positions, Rope r, Divider packs) {
    SHARED_DYNAMIC(float, sine);
    const int half = r.head_size / 2, thread = static_cast<int>(threadIdx.x);
    float *cosine = sine + ROWS * half;
    int64_t first = static_cast<int64_t>(blockIdx.x) * ROWS;
    const int rows = static_cast<int>(smaller<int64_t>(ROWS, r.rows - first));
    for (int i = thread; i < rows * half; i += THREADS) {
        const int row = i / half, d = i - row * half;
        const double frequency = half <= TABLE ? r.frequency[d] : frequency_of(r.base, d, r.head_size);
        Turn turn = turn_at((r.inverse ? -1.0 : 1.0) * positions[first + row], frequency);
        sine[i] = turn.sine;
        cosine[i] = turn.cosine;
    }
    __syncthreads();
    const uint32_t per_row = static_cast<uint32_t>(r.heads) * packs.divisor; // packs of a head's half
    for (uint32_t i = static_cast<uint32_t>(thread); i < static_cast<uint32_t>(rows) * per_row; i += THREADS) {
        uint32_t head = divide(i, packs), d = (i - head * packs.divisor) * N; // head: counted over rows
        uint32_t row = head / static_cast<uint32_t>(r.heads), at = head - row * static_cast<uint32_t>(r.heads);
        int64_t where = (first + row) * r.width + static_cast<int64_t>(at) * r.head_size + d;
        turn_pairs<N>(y + where, x + where, half, sine + row * static_cast<uint32_t>(half) + d,
                      cosine + row * static_cast<uint32_t>(half) + d, r.add != 0);
    }
    // What does not turn is passed on.
    const int turning = r.heads * r.head_size, passing = static_cast<int>(r.width) - turning;
    if (!passing || (x == y && !r.add)) return;
    for (int row = 0; row < rows; row++) {
        for (int c = thread; c < passing; c += THREADS) {
            int64_t where = (first + row) * r.width + turning + c;
            from_float(y + where, r.add ? to_float(y[where]) + to_float(x[where]) : to_float(x[where]));
        }
    }
}

template <class T, int N>
static void run(const CudaQueue *q, T *y, const T *x, const int32_t *positions, const Rope &r) {
    int half = r.head_size / 2;
    size_t shared = static_cast<size_t>(half) * 2 * ROWS * sizeof(float);
    launch<rope_kernel<T, N>>(dim3(static_cast<unsigned>(divide_up<int64_t>(r.rows, ROWS))), dim3(THREADS), shared, q,
                              y, x, positions, r, divider(larger(half / N, 1)));
}

void cuda_rope(const CudaQueue *q, void *y, const void *x, const int32_t *positions, int64_t rows, int64_t width,
               int heads, int head_size, double base, bool inverse, Dtype t, bool add) {
    if (rows <= 0) return;
    Rope r = {rows, width, heads, head_size, base, inverse, add, {}};
    for (int d = 0; d < smaller<int>(head_size / 2, TABLE); d++) r.frequency[d] = frequency_of(base, d, head_size);
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        T *to = static_cast<T *>(y);
        const T *from = static_cast<const T *>(x);
        constexpr int N = PACK<T>;
        if (head_size / 2 % N == 0 && width % N == 0 && packs_at(to, N) && packs_at(from, N))
            run<T, N>(q, to, from, positions, r);
        else
            run<T, 1>(q, to, from, positions, r);
    });
}
