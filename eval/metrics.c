/* See metrics.h. */
#include "eval/metrics.h"
#include "base/error.h"
#include <math.h>
#include <stdlib.h>

// Mean and the sum of squared distances from it.
static double mean_of(const double *x, int64_t n, double *squares) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    double mean = sum / (double)n;
    *squares = 0;
    for (int64_t i = 0; i < n; i++) *squares += (x[i] - mean) * (x[i] - mean);
    return mean;
}

static double error_of_mean(double squares, int64_t n) {
    return n > 1 ? sqrt(squares / (double)(n - 1) / (double)n) : NAN;
}

Metric metric_mean(const char *name, const double *x, int64_t n, double chance) {
    Metric m = {name, NAN, NAN, chance, true};
    double squares = 0;
    if (n < 1) return m;
    m.value = mean_of(x, n, &squares);
    m.error = error_of_mean(squares, n);
    return m;
}

typedef struct ClassSums {
    double sum, square, count;
} ClassSums;

// Sum of squared distances from the class's mean.
static double class_squares(const ClassSums *c) { return fmax(c->square - c->sum * c->sum / c->count, 0); }

Metric metric_class_mean(const char *name, const double *x, const int32_t *label, int64_t n, int classes,
                         double chance) {
    ClassSums *of = calloc((size_t)classes + 1, sizeof *of);
    check(of);
    for (int64_t i = 0; i < n; i++) {
        of[label[i]].sum += x[i];
        of[label[i]].square += x[i] * x[i];
        of[label[i]].count++;
    }
    double mean = 0, variance = 0, squares = 0, freedom = 0, present = 0;
    for (int c = 0; c < classes; c++) {
        if (of[c].count == 0) continue;
        squares += class_squares(&of[c]);
        freedom += of[c].count - 1;
        mean += of[c].sum / of[c].count;
        present++;
    }
    for (int c = 0; c < classes; c++) { // of each class's mean
        double k = of[c].count;
        if (k > 1) variance += class_squares(&of[c]) / (k - 1) / k;
        if (k == 1) variance += freedom > 0 ? squares / freedom : NAN;
    }
    free(of);
    if (present == 0) return (Metric){name, NAN, NAN, chance, true};
    return (Metric){name, mean / present, sqrt(variance) / present, chance, true};
}

void ratio_with_error(const double *a, const double *b, int64_t n, double *ratio, double *error) {
    double sum_a = 0, sum_b = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) {
        sum_a += a[i];
        sum_b += b[i];
    }
    *ratio = sum_b > 0 ? sum_a / sum_b : NAN;
    for (int64_t i = 0; i < n; i++) {
        double d = a[i] - *ratio * b[i];
        squares += d * d;
    }
    *error = n > 1 ? sqrt((double)n / (double)(n - 1) * squares) / sum_b : NAN;
}

double chance_within(int64_t k, int64_t positives, int64_t candidates) {
    double miss = 1; // none of the first k drawn is good
    for (int64_t i = 0; i < k && i < candidates; i++)
        miss *= fmax((double)(candidates - positives - i), 0) / (double)(candidates - i);
    return 1 - miss;
}
