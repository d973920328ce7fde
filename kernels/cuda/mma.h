/* Tensor cores and what feeds them, as far as bf16 attention needs it (PTX ISA 8.0, sm_80 and later): products of 16 x
 * 16 by 16 x 8, 8 x 8 matrices from shared memory into the lanes that want them, and copies into shared memory that go
 * on while the kernel does. Each is one instruction of a whole warp or of a thread; the shim of tests/simt/ has the
 * same ones, lane by lane.
 *
 * Fragments (g = lane / 4, t = lane % 4; two numbers to a word, the lower half first):
 *   a (16 x 16): a[0] row g, columns 2t, 2t + 1; a[1] row g + 8; a[2] row g, columns 2t + 8, 2t + 9; a[3] both
 *   b (16 x 8):  b[0] rows 2t, 2t + 1 of column g; b[1] rows 2t + 8, 2t + 9
 *   c (16 x 8):  c[0], c[1] row g, columns 2t, 2t + 1; c[2], c[3] row g + 8 */
#pragma once
#include "kernels/cuda/language.h"

// Two numbers as a word of bf16.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
#ifdef __CUDACC__
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    Bf16 a, b;
    from_float(&a, low), from_float(&b, high);
    return static_cast<uint32_t>(a.bits) | static_cast<uint32_t>(b.bits) << 16;
#endif
}

#ifdef __CUDACC__

__device__ __forceinline__ unsigned shared_address(const void *at) {
    return static_cast<unsigned>(__cvta_generic_to_shared(at));
}

// c += a b
__device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 matrices of 16-bit numbers: lane l brings the address of row l % 8 of matrix l / 8, 16 bytes of shared
// memory, and gets of each matrix columns 2t, 2t + 1 of row g.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// The same of their transposes: rows 2t, 2t + 1 of column g.
__device__ __forceinline__ void load_matrices_turned(uint32_t (&to)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// BYTES (4, 8 or 16, aligned to as many) from global into shared memory, or zeros where they are not `there`. They may
// be read once a wait has ended that takes in their group, by other threads behind a barrier.
template <int BYTES> __device__ __forceinline__ void copy_async(void *shared, const void *global, bool there) {
    const int bytes = there ? BYTES : 0;
    if (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                     "r"(bytes)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global),
                     "n"(BYTES), "r"(bytes)
                     : "memory");
}
// This thread's copies since the last call become a group.
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most the latest GROUPS of this thread's groups are under way.
template <int LATEST> __device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LATEST) : "memory");
}

#else

static inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SIMT_SITE) {
    simt_mma_bf16(c, a, b, file, line);
}
static inline void load_matrices(uint32_t (&to)[4], const void *row, SIMT_SITE) {
    simt_load_matrices(to, row, false, file, line);
}
static inline void load_matrices_turned(uint32_t (&to)[4], const void *row, SIMT_SITE) {
    simt_load_matrices(to, row, true, file, line);
}
template <int BYTES> static inline void copy_async(void *shared, const void *global, bool there) {
    simt_copy_async(shared, global, BYTES, there);
}
static inline void copy_commit() { simt_copy_commit(); }
template <int LATEST> static inline void copy_wait() { simt_copy_wait(LATEST); }

#endif
