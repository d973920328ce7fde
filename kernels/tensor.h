/* A tensor: where numbers lie, their shape and type. Two lifetimes: parameters live in flat buffers for the run;
 * everything else lives in the step's arena. Row-major, the last dimension contiguous. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum Dtype { F32, BF16, I32, U8, E4M3, E5M2 /* within products alone: fp8.h */ } Dtype;

enum { MAX_RANK = 4 };

typedef struct LaneMark { // a point in the work of a lane (Backend.lane)
    uint64_t list, number; // of the list of work, and of the mark in it
    int32_t  lane;
} LaneMark;

typedef struct Tensor Tensor;
struct Tensor {
    void       *data;
    void       *grad;          // activations: same dtype as data, NULL until first written; parameters: f32, flat buffer
    int64_t     shape[MAX_RANK];
    int         rank;
    Dtype       dtype;
    bool        is_parameter;  // lives for the run; its gradient is the weight half
    bool        needs_grad;
    bool        grad_written;  // grad holds a value: the next writer adds, the first overwrites
    bool        borrowed;      // data belongs to another tensor (a view)
    int64_t     spare_rows;    // parameters: rows of zeros that lie behind the last one, in data and gradient
    struct Fp8Scaling *scaling; // (FP8_SIDES) of a weight whose products are in fp8 (fp8.h), device; else NULL
    float      *most;          // (FP8_SIDES) of it: largest numbers of this step, device
    int         writers;       // parameters: nodes on a recording tape that are still to write its gradient
    const char *name;          // parameters: the checkpoint's name; else the operator's
    // Of a tape's tensors, for the tape alone:
    Tensor     *base;          // of a view: whose data it shows; else NULL
    Tensor     *before;        // the tensor that the tape made before it
    bool        wants_sums;    // somebody will ask for tape_gradient_sums
    float      *grad_sums;     // (width) the sums over the rows of `grad` as it is; NULL: nobody formed them
    struct SharedGradient *grad_shared; // the others that have this `grad`, of equal gradients; NULL: this one alone
    int         readers;       // calls that are still to read its data for the gradients of parameters
    int8_t      lane, grad_lane; // whose memory they lie in
    LaneMark    touched, grad_touched; // by whom last: who comes from another lane waits for that (not parameters' data)
};

static inline size_t dtype_size(Dtype t) { return t == F32 || t == I32 ? 4 : t == BF16 ? 2 : 1; }
static inline int64_t tensor_count(const Tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++) n *= t->shape[i];
    return n;
}
static inline int64_t tensor_width(const Tensor *t) { return t->rank ? t->shape[t->rank - 1] : 1; } // last dimension
static inline int64_t tensor_rows(const Tensor *t) { return t->rank && tensor_width(t) ? tensor_count(t) / tensor_width(t) : 1; }
static inline size_t tensor_bytes(const Tensor *t) { return (size_t)tensor_count(t) * dtype_size(t->dtype); }

static inline float bf16_to_f32(uint16_t h) {
    union { uint32_t u; float f; } v = {(uint32_t)h << 16};
    return v.f;
}
static inline uint16_t f32_to_bf16(float f) { // round to nearest even; NaN stays NaN
    union { float f; uint32_t u; } v = {f};
    if ((v.u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(v.u >> 16 | 0x40);
    return (uint16_t)((v.u + 0x7fffu + (v.u >> 16 & 1)) >> 16);
}
