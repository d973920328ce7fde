/* The CPU backend. Each file under simd/ is compiled once for every instruction set (avx512-bf16, avx512, avx2, plain)
 * and ends with an install function that fills its part of the Backend; cpu_backend_new runs those of the best set the
 * machine has. So every kernel has one source, and a machine without AVX-512 or bf16 instructions runs the same code. */
#pragma once
#include "base/log.h"
#include "base/threads.h"
#include "kernels/backend.h"

typedef struct CpuState {
    Threads *threads;      // owned
    void   **scratch;      // one block for each worker, grown on demand
    size_t  *scratch_size; // bytes
    void    *shared;       // a block for the calling thread (partial sums), grown on demand
    size_t   shared_size;
    int64_t  allocations;  // how often scratch grew
    struct Onednn *onednn; // where BIFOCAL_MATMUL=onednn asks for it; then own_matmul does what it cannot
    void (*own_matmul)(Backend *, const Matmul *);
} CpuState;

// threads 0: one per available core. isa NULL: the best this machine has, or what BIFOCAL_CPU names. The log (may be
// NULL) is told what was chosen and what the machine lacks.
Backend *cpu_backend_new(int threads, const char *isa, Log *);
bool     cpu_has_isa(const char *isa); // whether this machine has it; false for an unknown name
Threads *cpu_threads(const Backend *);
void    *cpu_worker_scratch(const Backend *, int worker, size_t bytes); // 64-byte aligned, kept between calls
void    *cpu_shared_scratch(const Backend *, size_t bytes);

void cpu_install_fp8(Backend *); // fp8.c
void cpu_install_words(Backend *); // words.c

// Inside simd/*.c: SIMD_NAME(install_norm) is install_norm_avx2 and so on; SIMD_SUFFIX comes from the build.
#define CPU_PASTE2(a, b) a##_##b
#define CPU_PASTE(a, b)  CPU_PASTE2(a, b)
#define SIMD_NAME(name)  CPU_PASTE(name, SIMD_SUFFIX)

// The install functions of all files under simd/. A new file adds its name here.
#define CPU_INSTALLERS(X) \
    X(matmul)             \
    X(columns)            \
    X(elementwise)        \
    X(activations)        \
    X(dropout)            \
    X(rope)               \
    X(reductions)         \
    X(norm)               \
    X(rows)               \
    X(pooling)            \
    X(pictures)           \
    X(attention)          \
    X(cross_entropy)      \
    X(contrastive)        \
    X(patch_mse)          \
    X(optimizer)

// install_NAME_SUFFIX for every file and instruction set; x86-64 has them all, other machines only the plain one.
#define CPU_DECLARE_INSTALLER(name)              \
    void install_##name##_plain(Backend *);      \
    void install_##name##_avx2(Backend *);       \
    void install_##name##_avx512(Backend *);     \
    void install_##name##_avx512bf16(Backend *);
CPU_INSTALLERS(CPU_DECLARE_INSTALLER)
#undef CPU_DECLARE_INSTALLER
