/* Figures of merit with their standard errors. Sums run over samples in order, in double: nothing depends on batches or
 * threads. NAN stands for what there is none of. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

typedef struct Metric {
    const char *name;    // "acc"; a literal
    double value, error; // error: standard error of `value`
    double chance;       // what guessing would give
    bool higher_is_better;
} Metric;

// The mean of x and its standard error: sample deviation (n - 1) / sqrt(n). One sample has no error.
Metric metric_mean(const char *name, const double *x, int64_t n, double chance);

// The mean over classes of the mean of x within each; classes without samples are left out, and a
// class with one sample takes the variance of all classes pooled. label: (n) in [0, classes).
Metric metric_class_mean(const char *name, const double *x, const int32_t *label, int64_t n, int classes,
                         double chance);

// sum a / sum b and its standard error by linearisation: sqrt(n / (n - 1) sum (a - r b)^2) / sum b.
void ratio_with_error(const double *a, const double *b, int64_t n, double *ratio, double *error);

// The share of queries with a positive among the first k if `candidates` are ordered at random, `positives` of them
// good.
double chance_within(int64_t k, int64_t positives, int64_t candidates);
