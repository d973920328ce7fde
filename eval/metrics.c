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

Metric metric_class_mean(const char *name, const double *x, const int32_t *label, int64_t n, int classes,
                         double chance) {
    double *sum = calloc((size_t)classes, sizeof *sum), *square = calloc((size_t)classes, sizeof *square);
    int64_t *count = calloc((size_t)classes, sizeof *count);
    check(sum && square && count);
    for (int64_t i = 0; i < n; i++) {
        sum[label[i]] += x[i];
        square[label[i]] += x[i] * x[i];
        count[label[i]]++;
    }
    double mean = 0, variance = 0;
    int present = 0;
    for (int c = 0; c < classes; c++) {
        if (!count[c]) continue;
        double k = (double)count[c], m = sum[c] / k;
        present++;
        mean += m;
        variance += count[c] > 1 ? fmax(square[c] - k * m * m, 0) / (k - 1) / k : NAN; // of this class's mean
    }
    free(sum);
    free(square);
    free(count);
    if (!present) return (Metric){name, NAN, NAN, chance, true};
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
