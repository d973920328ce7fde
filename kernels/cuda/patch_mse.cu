/* The masked patch loss of MAE (He et al. 2021): a block for each patch. The target, flattened (y, x, c), is read from
 * the planes where it is needed, two times more from cache where it is normalised. Losses of patches add up in f64. */
#include "kernels/cuda/language.h"

enum { THREADS = 128, CHANNELS = 3 };

struct Loss {
    const int32_t *patches; // (M)
    int64_t batch, height, width;
    int patch, numbers;     // P, 3 P P
    Divider line, channels; // 3 P, 3
    int64_t normalize;      // or 0
};

// The image element of number 0 of patch m.
static __device__ __forceinline__ int64_t origin_of(const Loss &j, int64_t m) {
    const int64_t across = j.width / j.patch, down = j.height / j.patch, patch = j.patches[m];
    if (patch < 0 || patch >= j.batch * down * across) __trap();
    const int64_t image = patch / (across * down), row = patch / across % down;
    return (image * CHANNELS * j.height + row * j.patch) * j.width + patch % across * j.patch;
}

template <class T>
static __device__ __forceinline__ float target_at(const Loss &j, const T *images, int64_t origin, uint32_t i) {
    const uint32_t y = divide(i, j.line), in_line = i - y * j.line.divisor, x = divide(in_line, j.channels);
    const int64_t c = in_line - x * CHANNELS;
    return to_float(images[origin + c * j.height * j.width + y * j.width + x]);
}

struct Scaling {
    float mean, scale;
};

// What the target is normalised by. All threads of the block must be here.
template <class T>
static __device__ __forceinline__ Scaling scaling_of(const Loss &j, const T *images, int64_t origin, float *memory) {
    if (!j.normalize) return Scaling{0, 1};
    const uint32_t n = static_cast<uint32_t>(j.numbers);
    float sum = 0, squares = 0;
    for (uint32_t i = threadIdx.x; i < n; i += THREADS) sum += target_at(j, images, origin, i);
    const float mean = block_sum<THREADS>(sum, memory) / static_cast<float>(n);
    for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
        float d = target_at(j, images, origin, i) - mean;
        squares += d * d;
    }
    squares = block_sum<THREADS>(squares, memory);
    return Scaling{mean, 1.0f / sqrtf(squares / static_cast<float>(n - 1) + 1e-6f)};
}

// loss (M): the mean over the patch of (x - target)^2
template <class T, int N>
static __global__ void __launch_bounds__(THREADS) patch_loss_kernel(double *loss, const T *x, const T *images, Loss j) {
    SHARED(float, memory, THREADS / WARP);
    const int64_t m = blockIdx.x, origin = origin_of(j, m);
    const Scaling s = scaling_of(j, images, origin, memory);
    const uint32_t n = static_cast<uint32_t>(j.numbers);
    float sum = 0;
    for (uint32_t i = threadIdx.x * N; i < n; i += THREADS * N) {
        Floats<N> v = load<N>(x + m * n + i);
#pragma unroll
        for (int k = 0; k < N; k++) {
            float d = v.at[k] - (target_at(j, images, origin, i + static_cast<uint32_t>(k)) - s.mean) * s.scale;
            sum += d * d;
        }
    }
    sum = block_sum<THREADS>(sum, memory);
    if (threadIdx.x == 0) loss[m] = static_cast<double>(sum) / n;
}

template <class T, int N>
static __global__ void __launch_bounds__(THREADS)
    patch_gradient_kernel(T *dx, const float *factor, const T *x, const T *images, Loss j, bool add) {
    SHARED(float, memory, THREADS / WARP);
    const int64_t m = blockIdx.x, origin = origin_of(j, m);
    const Scaling s = scaling_of(j, images, origin, memory);
    const uint32_t n = static_cast<uint32_t>(j.numbers);
    const float slope = 2 * factor[0] / static_cast<float>(n);
    for (uint32_t i = threadIdx.x * N; i < n; i += THREADS * N) {
        Floats<N> v = load<N>(x + m * n + i);
#pragma unroll
        for (int k = 0; k < N; k++)
            v.at[k] =
                (v.at[k] - (target_at(j, images, origin, i + static_cast<uint32_t>(k)) - s.mean) * s.scale) * slope;
        write<N>(dx + m * n + i, v, add);
    }
}

static Loss loss_of(const int32_t *patches, int64_t batch, int64_t height, int64_t width, int patch, bool normalize) {
    return Loss{patches,           batch,    height, width, patch, CHANNELS * patch * patch, divider(CHANNELS * patch),
                divider(CHANNELS), normalize};
}

void cuda_masked_patch_mse_forward(const CudaQueue *q, float *out, const void *x, const void *images,
                                   const int32_t *patches, int64_t m, int64_t batch, int64_t height, int64_t width,
                                   int patch, bool normalize, Dtype t) {
    const Loss j = loss_of(patches, batch, height, width, patch, normalize);
    double *loss =
        static_cast<double *>(q->scratch(q->owner, static_cast<size_t>(larger<int64_t>(m, 1)) * sizeof(double)));
    dim3 grid(static_cast<unsigned>(m));
    if (m > 0)
        with_type(t, [&](auto zero) {
            typedef decltype(zero) T;
            const T *from = static_cast<const T *>(x), *pictures = static_cast<const T *>(images);
            if (j.numbers % PACK<T> == 0 && packs_at(from, PACK<T>))
                launch<patch_loss_kernel<T, PACK<T>>>(grid, dim3(THREADS), 0, q, loss, from, pictures, j);
            else
                launch<patch_loss_kernel<T, 1>>(grid, dim3(THREADS), 0, q, loss, from, pictures, j);
        });
    cuda_sum_rows(q, out, false, loss, m); // which takes no scratch memory
}

void cuda_masked_patch_mse_backward(const CudaQueue *q, void *dx, const float *factor, const void *x,
                                    const void *images, const int32_t *patches, int64_t m, int64_t batch,
                                    int64_t height, int64_t width, int patch, bool normalize, Dtype t, bool add) {
    const Loss j = loss_of(patches, batch, height, width, patch, normalize);
    if (m <= 0) return;
    dim3 grid(static_cast<unsigned>(m));
    with_type(t, [&](auto zero) {
        typedef decltype(zero) T;
        T *to = static_cast<T *>(dx);
        const T *from = static_cast<const T *>(x), *pictures = static_cast<const T *>(images);
        if (j.numbers % PACK<T> == 0 && packs_at(from, PACK<T>) && packs_at(to, PACK<T>))
            launch<patch_gradient_kernel<T, PACK<T>>>(grid, dim3(THREADS), 0, q, to, factor, from, pictures, j, add);
        else
            launch<patch_gradient_kernel<T, 1>>(grid, dim3(THREADS), 0, q, to, factor, from, pictures, j, add);
    });
}
