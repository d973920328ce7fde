#include "tests/simt/support.h"
#include <cmath>
#include <cstdio>
#include <cstring>

static void *scratch(void *owner, size_t bytes) {
    static void *memory;
    (void)owner;
    simt_release(memory);
    return memory = simt_allocate(bytes);
}
static const void *message(void *owner, const void *host, size_t bytes) {
    static void *memory;
    (void)owner;
    simt_release(memory);
    return memcpy(memory = simt_allocate(bytes), host, bytes);
}
static const CudaQueue queue = {nullptr, scratch, nullptr, message, nullptr};
const CudaQueue *const QUEUE = &queue;

Backend *cpu() {
    static Backend *backend;
    if (!backend) {
        backend = cpu_backend_new(1, nullptr, nullptr);
        atexit([] { backend_free(backend); });
    }
    return backend;
}

// ---- arrays ----

Array::Array(Dtype t, int64_t n, int shift) : type_(t), count_(n), shift_(shift) {
    size_t size = dtype_size(t);
    memory_ = static_cast<char *>(simt_allocate(static_cast<size_t>(n + shift) * size));
    data_ = memory_ + static_cast<size_t>(shift) * size;
}
Array::Array(const Array &a) : Array(a.type_, a.count_, a.shift_) {
    memcpy(data_, a.data_, static_cast<size_t>(count_) * dtype_size(type_));
}
Array::~Array() { simt_release(memory_); }

double Array::at(int64_t i) const {
    switch (type_) {
    case F32:
        return static_cast<double>(as<float>()[i]);
    case BF16:
        return static_cast<double>(bf16_to_f32(as<uint16_t>()[i]));
    case I32:
        return as<int32_t>()[i];
    default:
        return as<uint8_t>()[i];
    }
}
void Array::put(int64_t i, double value) {
    switch (type_) {
    case F32:
        as<float>()[i] = static_cast<float>(value);
        break;
    case BF16:
        as<uint16_t>()[i] = f32_to_bf16(static_cast<float>(value));
        break;
    case I32:
        as<int32_t>()[i] = static_cast<int32_t>(value);
        break;
    default:
        as<uint8_t>()[i] = static_cast<uint8_t>(value);
        break;
    }
}
Array &Array::normal(Rng *rng, double deviation) {
    for (int64_t i = 0; i < count_; i++) put(i, deviation * rng_normal(rng));
    return *this;
}
Array &Array::integers(Rng *rng, int64_t first, int64_t end) {
    for (int64_t i = 0; i < count_; i++)
        put(i, static_cast<double>(first + static_cast<int64_t>(rng_below(rng, static_cast<uint64_t>(end - first)))));
    return *this;
}
Array &Array::set(double value) {
    for (int64_t i = 0; i < count_; i++) put(i, value);
    return *this;
}

// ---- comparisons ----

void expect_near(const Array &got, const Array &want, double relative, double absolute, const char *what) {
    assert_int_equal(got.count(), want.count());
    for (int64_t i = 0; i < got.count(); i++) {
        double g = got.at(i), w = want.at(i);
        if (std::isnan(w) ? std::isnan(g) : g == w || std::fabs(g - w) <= absolute + relative * std::fabs(w)) continue;
        fail_msg("%s: element %lld of %lld is %.9g, not %.9g", what, static_cast<long long>(i),
                 static_cast<long long>(got.count()), g, w);
    }
}
void expect_bits(const Array &got, const Array &want, const char *what) {
    size_t size = dtype_size(got.dtype());
    assert_int_equal(got.count(), want.count());
    for (int64_t i = 0; i < got.count(); i++) {
        bool nan = std::isnan(want.at(i)) && std::isnan(got.at(i)); // whose bits are not promised
        if (!nan && memcmp(got.as<char>() + i * static_cast<int64_t>(size),
                           want.as<char>() + i * static_cast<int64_t>(size), size))
            fail_msg("%s: element %lld of %lld is %.9g, not %.9g to the bit", what, static_cast<long long>(i),
                     static_cast<long long>(got.count()), got.at(i), want.at(i));
    }
}

// ---- cases ----

void for_cases(const char *name, void (*body)(const Case &)) {
    int number = 0;
    for (Dtype t : {F32, BF16}) {
        for (int shift : {0, 1}) {
            for (bool add : {false, true}) {
                uint64_t seed = hash_u64(name, strlen(name)) + static_cast<uint64_t>(number);
                Rng rng = rng_for(seed, PURPOSE_TEST, 0);
                Case c = {t, shift, add, &rng, {}};
                snprintf(c.name, sizeof c.name, "%s, %s%s%s", name, t == F32 ? "f32" : "bf16",
                         shift ? ", not aligned" : "", add ? ", adding" : "");
                const SimtOrder orders[] = {SIMT_FORWARD, SIMT_REVERSE, SIMT_SHUFFLED};
                simt_set_order(orders[number++ % 3], seed >> 8);
                body(c);
            }
        }
    }
}
