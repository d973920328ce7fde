/* See gpus.h. FLOP/s and bytes/s from the data sheets, FLOP dense; memory as cudaGetDeviceProperties
 * tells it. */
#include "kernels/gpus.h"
#include <ctype.h>
#include <string.h>
#include <strings.h>

#define GIB 0x1p30
static const GpuKind kinds[] = {
    {"h100", "H100", 79.1 * GIB, 3.35e12, 66.9e12, 989.4e12, 1978.9e12}, // SXM5
    {"h100-pcie", "H100 PCIe", 79.1 * GIB, 2.04e12, 51.2e12, 756e12, 1513e12},
    {"h100-nvl", "H100 NVL", 93.1 * GIB, 3.94e12, 60e12, 835.5e12, 1671e12},
    {"h200", "H200", 139.8 * GIB, 4.8e12, 66.9e12, 989.4e12, 1978.9e12},
    {"h200-nvl", "H200 NVL", 139.8 * GIB, 4.8e12, 60e12, 835.5e12, 1671e12},
    {"gh200", "GH200", 94.5 * GIB, 4e12, 66.9e12, 989.4e12, 1978.9e12},
    {"b200", "B200", 178.3 * GIB, 8e12, 75e12, 2250e12, 4500e12},
    {"a100", "A100", 79.1 * GIB, 2.04e12, 19.5e12, 312e12, 0},
    {"a100-40gb", "A100-SXM4-40GB", 39.4 * GIB, 1.555e12, 19.5e12, 312e12, 0},
    {"a100-pcie-40gb", "A100-PCIE-40GB", 39.4 * GIB, 1.555e12, 19.5e12, 312e12, 0},
    {"a10", "A10", 22.1 * GIB, 0.6e12, 31.2e12, 125e12, 0},
    {"a40", "A40", 44.4 * GIB, 0.696e12, 37.4e12, 149.7e12, 0},
    {"l4", "L4", 22.0 * GIB, 0.3e12, 30.3e12, 121e12, 242e12},
    {"l40s", "L40S", 44.4 * GIB, 0.864e12, 91.6e12, 362e12, 733e12},
    {"l40", "L40", 44.4 * GIB, 0.864e12, 90.5e12, 181e12, 362e12},
    {"rtx3090", "RTX 3090", 23.6 * GIB, 0.936e12, 35.6e12, 71e12, 0},
    {"rtx4090", "RTX 4090", 23.5 * GIB, 1.008e12, 82.6e12, 165.2e12, 330.3e12},
    {"rtx5090", "RTX 5090", 31.4 * GIB, 1.792e12, 104.8e12, 209.5e12, 419e12},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

// Whole words alone: an A10 is no A100.
static bool names(const char *name, const char *part) {
    size_t length = strlen(part);
    for (const char *at = strcasestr(name, part); at; at = strcasestr(at + 1, part))
        if ((at == name || !isalnum((unsigned char)at[-1])) && !isalnum((unsigned char)at[length])) return true;
    return false;
}

const GpuKind *gpu_kind(const char *name) {
    const GpuKind *best = NULL;
    for (int i = 0; i < KINDS; i++) {
        if (!strcasecmp(name, kinds[i].key)) return &kinds[i];
        if (names(name, kinds[i].match) && (!best || strlen(kinds[i].match) > strlen(best->match))) best = &kinds[i];
    }
    return best;
}

const GpuKind *gpu_kind_at(int number) { return number < KINDS ? &kinds[number] : NULL; }

double gpu_peak(const GpuKind *k, Dtype t) { return t == BF16 ? k->bf16 : k->f32; }
