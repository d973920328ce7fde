/* The two inner loops of resampling, in plain C and with AVX2; both give the same bytes. */
#pragma once
#include <stddef.h>
#include <stdint.h>

enum {
    WEIGHT_BITS = 22, // fixed-point bits of a weight
    LINE_PADDING = 8, // bytes readable behind a line that goes through over_x
};

typedef struct Taps { // of one axis: result i is the sum over t < number[i] of weight[i * most + t] x source[first[i] +
                      // t]
    int most;         // room for weights of one result
    int *first;       // (count)
    int *number;      // (count)
    int32_t *weight;  // (count, most), the sum of each row is 2^WEIGHT_BITS
} Taps;

typedef struct ResizeLines {
    // One line: (width, 3) -> (count, 3).
    void (*over_x)(const uint8_t *line, const Taps *, int count, uint8_t *out);
    // `number` lines of `bytes` each, `stride` bytes apart, under one weight each -> (bytes).
    void (*over_y)(const uint8_t *lines, size_t stride, const int32_t *weight, int number, size_t bytes, uint8_t *out);
} ResizeLines;

extern const ResizeLines resize_lines_plain;
const ResizeLines *resize_lines_best(void); // what this processor runs fastest

static inline uint8_t resize_to_byte(int32_t sum) {
    int32_t value = sum >> WEIGHT_BITS;
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}
