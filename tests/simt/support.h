/* What tests of kernels share: the queue, arrays in device memory, cases, and the comparison with the CPU backend. */
#pragma once
#include "kernels/cuda/kernels.h"
#include "tests/simt/shim/host.h"
#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <vector>
extern "C" {
#include "base/philox.h"
#include "kernels/cpu/cpu.h"
#include <cmocka.h>
}

extern const CudaQueue *const QUEUE; // scratch is exactly as large as asked for
Backend *cpu();                      // the reference; one thread

// An array that kernels and the CPU backend read and write, `shift` elements behind a multiple of 256 bytes and not a
// byte longer than it must be. Copying copies the numbers and keeps the shift.
class Array {
  public:
    Array(Dtype t, int64_t n, int shift = 0);
    Array(const Array &);
    ~Array();
    Array &operator=(const Array &) = delete;

    Array &normal(Rng *, double deviation = 1);
    Array &integers(Rng *, int64_t first, int64_t end); // uniform in [first, end)
    Array &set(double value);

    double at(int64_t i) const;
    void put(int64_t i, double value);
    int64_t count() const { return count_; }
    Dtype dtype() const { return type_; }
    template <class T> T *as() const { return static_cast<T *>(data_); }
    operator void *() const { return data_; }
    float *f32() const { return as<float>(); }
    double *f64() const { return as<double>(); } // of arrays with twice as many F32 elements
    int32_t *i32() const { return as<int32_t>(); }

  private:
    Dtype type_;
    int64_t count_;
    int shift_;
    char *memory_;
    void *data_;
};

// |got - want| <= absolute + relative |want| for each element, or both NaN; `what` names the case.
void expect_near(const Array &got, const Array &want, double relative, double absolute, const char *what);
void expect_bits(const Array &got, const Array &want, const char *what);

struct Case {
    Dtype t;
    int shift; // of all arrays: 0 aligned
    bool add;
    Rng *rng;
    char name[64];
    // One rounding to the type apart, and `f32` in f32.
    double relative(double f32 = 2e-6) const { return t == BF16 ? 1.0 / 128 : f32; }
};
// Runs `body` for both types, aligned and not, overwriting and adding, in changing orders of execution.
void for_cases(const char *name, void (*body)(const Case &));
