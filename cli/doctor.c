/* bifocal doctor: what this machine has, and what the program makes of it. */
#include "base/log.h"
#include "base/threads.h"
#include "cli/commands.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/peak.h"
#include "kernels/cuda.h"
#include <stdio.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>

static void processor(char *name, size_t size) {
    char line[512];
    FILE *file = fopen("/proc/cpuinfo", "re");
    snprintf(name, size, "not known");
    while (file && fgets(line, sizeof line, file)) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon) continue;
        snprintf(name, size, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
        break;
    }
    if (file) fclose(file);
}

// What a run with device: cuda would find. A GPU is opened, so that it says what it is and whether it will do.
static void print_gpus(void) {
    Error error = {0};
    int count = cuda_count(&error);
    printf("CUDA         ");
    if (count < 0) printf("none: %s\n", error.message);
    if (count == 0) printf("a driver, but no GPU is visible\n");
    for (int i = 0; i < count; i++) {
        Backend *b = cuda_backend_new(&(CudaOptions){.device = i}, NULL, &error);
        printf("%sGPU %d: %s\n", i ? "             " : "", i, b ? b->isa : error.message);
        backend_free(b);
    }
    if (count > 0) {
        char text[512];
        cuda_describe_links(text, sizeof text);
        printf("NCCL         %s\n", text);
    }
}

int doctor_main(int argc, char **argv) {
    if (argc > 1) {
        bool help = !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h");
        fputs("usage: bifocal doctor\n\nPrints processor, memory, instruction set in use and measured peaks.\n",
              help ? stdout : stderr);
        return help ? 0 : 2;
    }
    char name[256];
    struct utsname os;
    struct sysinfo memory;
    Log *log = log_new(LOG_INFO, stderr);
    Backend *backend = cpu_backend_new(0, NULL, log);
    processor(name, sizeof name);
    uname(&os);
    sysinfo(&memory);
    Peak peak = peak_measure(backend, 0.2);
    printf(
        "bifocal      %s\nsystem       %s %s %s\nprocessor    %s, %d cores to use\nmemory       %.1f GiB, %.1f free\n",
        BIFOCAL_VERSION, os.sysname, os.release, os.machine, name, threads_available(),
        (double)memory.totalram * memory.mem_unit / 0x1p30, (double)memory.freeram * memory.mem_unit / 0x1p30);
    printf("kernels      %s\npeak         %.0f GFLOP/s f32, %.0f GFLOP/s bf16, %.1f GB/s copied\n", backend->isa,
           peak.f32, peak.bf16, peak.copy);
    print_gpus();
    backend_free(backend);
    log_free(log);
    return 0;
}
