/* Pictures: bytes to normalised planes, and planes to patches and back. */
#include "kernels/cuda/row_launches.h"

enum { CHANNELS = 3, ADD_THREADS = 128 };

// ---- pixels: (B, H, W, 3) bytes -> (B, 3, H, W) ----

struct Shades {
    float factor[CHANNELS], offset[CHANNELS];
};

// A thread takes N pixels of a line: 3 N bytes, where N is 4 as three words. Those of a mirrored picture come from the
// other end of the line, the last one first.
template <class T, int N>
static __global__ void __launch_bounds__(ROW_THREADS)
    pixels_kernel(T *y, const uint8_t *x, const uint8_t *mirrored, Shades s, int64_t first, uint32_t packs,
                  Divider per_picture, Divider per_line) {
    uint32_t at = blockIdx.x * ROW_THREADS + threadIdx.x;
    if (at >= packs) return;
    RowPack p = row_pack<N>(at, first, per_picture);
    const int64_t plane = static_cast<int64_t>(per_picture.divisor) * N,
                  width = static_cast<int64_t>(per_line.divisor) * N;
    const bool turned = mirrored && mirrored[p.row];
    int64_t source = p.column;
    if (turned) source = 2 * quotient(p.column / N, per_line) * width + width - N - p.column;
    const uint8_t *from = x + (p.row * plane + source) * CHANNELS;
    uint8_t bytes[CHANNELS * N];
    if constexpr (N == 4) {
#pragma unroll
        for (int w = 0; w < CHANNELS; w++) {
            uint32_t word = load_pack<1>(reinterpret_cast<const uint32_t *>(from) + w).at[0];
#pragma unroll
            for (int i = 0; i < 4; i++) bytes[4 * w + i] = static_cast<uint8_t>(word >> 8 * i);
        }
    } else {
#pragma unroll
        for (int i = 0; i < CHANNELS * N; i++) bytes[i] = from[i];
    }
#pragma unroll
    for (int c = 0; c < CHANNELS; c++) {
        Floats<N> out;
#pragma unroll
        for (int i = 0; i < N; i++) {
            uint8_t byte = turned ? bytes[(N - 1 - i) * CHANNELS + c] : bytes[i * CHANNELS + c];
            out.at[i] = static_cast<float>(byte) * s.factor[c] + s.offset[c];
        }
        store<N>(y + (p.row * CHANNELS + c) * plane + p.column, out);
    }
}

void cuda_pixels(const CudaQueue *q, void *y, const uint8_t *x, const uint8_t *mirrored, int64_t batch, int64_t height,
                 int64_t width, const double *mean, const double *std, Dtype t) {
    const int64_t plane = height * width;
    Shades s;
    for (int c = 0; c < CHANNELS; c++) {
        s.factor[c] = static_cast<float>(1 / (255 * std[c]));
        s.offset[c] = static_cast<float>(-mean[c] / std[c]);
    }
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        T *to = static_cast<T *>(y);
        bool packs = width % 4 == 0 && packs_at(to, 4) && packs_at(x, 4);
        int64_t per_picture = packs ? plane / 4 : plane;
        in_row_launches(batch, per_picture, [&](int64_t first, uint32_t count, dim3 grid) {
            if (packs)
                launch<pixels_kernel<T, 4>>(grid, dim3(ROW_THREADS), 0, q, to, x, mirrored, s, first, count,
                                            divider(per_picture), divider(width / 4));
            else
                launch<pixels_kernel<T, 1>>(grid, dim3(ROW_THREADS), 0, q, to, x, mirrored, s, first, count,
                                            divider(per_picture), divider(width));
        });
    });
}

// ---- patches: (B, 3, H, W) -> (B, M, 3 P P), a patch flattened (c, y, x) ----

struct Patches {
    const int32_t *keep; // (B, M) or NULL: all, in order
    int64_t height, width, kept;
    int patch;
    Divider side, of_picture; // P, M
    int none = 0;
};

// Element of the images where number `e` of patch `number` of picture `b` lies.
static __device__ __forceinline__ int64_t pixel_of(const Patches &j, int64_t b, int32_t number, uint32_t e) {
    const int32_t across = static_cast<int32_t>(j.width) / j.patch, down = static_cast<int32_t>(j.height) / j.patch;
    if (number < 0 || number >= across * down) __trap();
    const uint32_t line = divide(e, j.side), x = e - line * j.side.divisor, c = divide(line, j.side),
                   y = line - c * j.side.divisor;
    const int64_t row = static_cast<int64_t>(number / across) * j.patch + y;
    return ((b * CHANNELS + c) * j.height + row) * j.width + static_cast<int64_t>(number % across) * j.patch + x;
}

template <class T, int N>
static __global__ void __launch_bounds__(ROW_THREADS)
    patches_kernel(T *y, const T *images, Patches j, int64_t first, uint32_t packs, Divider per_patch) {
    uint32_t at = blockIdx.x * ROW_THREADS + threadIdx.x;
    if (at >= packs) return;
    RowPack p = row_pack<N>(at, first, per_patch); // row: (b, m)
    const int64_t b = quotient(p.row, j.of_picture);
    const int32_t number = j.keep ? j.keep[p.row] : static_cast<int32_t>(p.row - b * j.kept);
    T *to = y + p.row * (static_cast<int64_t>(per_patch.divisor) * N) + p.column;
    const T *from = images + pixel_of(j, b, number, static_cast<uint32_t>(p.column));
    store_pack<N>(to, load_pack<N>(from));
}

// A block: one patch of one picture, to which all that kept it add, in order.
template <class T, int N>
static __global__ void __launch_bounds__(ADD_THREADS)
    patches_gradient_kernel(T *dx, const T *dy, Patches j, int64_t batch, bool add) {
    const int32_t number = static_cast<int32_t>(blockIdx.x);
    const uint32_t size = static_cast<uint32_t>(CHANNELS * j.patch * j.patch);
    for (int64_t b = blockIdx.y; b < batch; b += gridDim.y) {
        for (uint32_t e = threadIdx.x * N; e < size; e += ADD_THREADS * N) {
            Floats<N> sum = {};
            bool any = false;
            for (int64_t m = j.keep ? 0 : number; m < (j.keep ? j.kept : number + 1); m++) {
                if (j.keep && j.keep[b * j.kept + m] != number) continue;
                any = true;
                Floats<N> d = load<N>(dy + (b * j.kept + m) * size + e);
#pragma unroll
                for (int i = 0; i < N; i++) sum.at[i] += d.at[i];
            }
            if (any || !add) write<N>(dx + pixel_of(j, b, number, e), sum, add);
        }
    }
}

static Patches patches_of(const int32_t *keep, int64_t height, int64_t width, int patch, int64_t kept) {
    return Patches{keep, height, width, kept, patch, divider(patch), divider(larger<int64_t>(kept, 1))};
}

// Whether N numbers of a patch's line lie at multiples of N in both arrays.
template <class T> static bool lines_in_packs(const T *images, const T *patches, int64_t width, int patch) {
    return patch % PACK<T> == 0 && width % PACK<T> == 0 && packs_at(images, PACK<T>) && packs_at(patches, PACK<T>);
}

void cuda_patches_forward(const CudaQueue *q, void *y, const void *x, const int32_t *keep, int64_t batch,
                          int64_t height, int64_t width, int patch, int64_t kept, Dtype t) {
    const Patches j = patches_of(keep, height, width, patch, kept);
    const int64_t size = static_cast<int64_t>(CHANNELS) * patch * patch;
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        T *to = static_cast<T *>(y);
        const T *from = static_cast<const T *>(x);
        bool packs = lines_in_packs<T>(from, to, width, patch);
        int64_t per_patch = packs ? size / PACK<T> : size;
        in_row_launches(batch * kept, per_patch, [&](int64_t first, uint32_t count, dim3 grid) {
            Divider d = divider(per_patch);
            if (packs)
                launch<patches_kernel<T, PACK<T>>>(grid, dim3(ROW_THREADS), 0, q, to, from, j, first, count, d);
            else
                launch<patches_kernel<T, 1>>(grid, dim3(ROW_THREADS), 0, q, to, from, j, first, count, d);
        });
    });
}

void cuda_patches_backward(const CudaQueue *q, void *dx, const void *dy, const int32_t *keep, int64_t batch,
                           int64_t height, int64_t width, int patch, int64_t kept, Dtype t, bool add) {
    const Patches j = patches_of(keep, height, width, patch, kept);
    dim3 grid(static_cast<unsigned>(height / patch * (width / patch)),
              static_cast<unsigned>(smaller<int64_t>(batch, 65535)));
    if (batch <= 0) return;
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        T *to = static_cast<T *>(dx);
        const T *from = static_cast<const T *>(dy);
        if (lines_in_packs<T>(to, from, width, patch))
            launch<patches_gradient_kernel<T, PACK<T>>>(grid, dim3(ADD_THREADS), 0, q, to, from, j, batch, add);
        else
            launch<patches_gradient_kernel<T, 1>>(grid, dim3(ADD_THREADS), 0, q, to, from, j, batch, add);
    });
}
