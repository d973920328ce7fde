/* See affinity.h. */
#include "base/affinity.h"
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>

// The first line of a file; false where there is none.
static bool first_line(char *line, size_t size, const char *path) {
    FILE *file = fopen(path, "re");
    bool ok = file && fgets(line, (int)size, file);
    if (file) fclose(file);
    return ok;
}

// "0-3,8": the form that the kernel gives sets of processors.
static void parse_list(cpu_set_t *set, const char *text) {
    CPU_ZERO(set);
    for (char *end; *text >= '0' && *text <= '9'; text = *end == ',' ? end + 1 : end) {
        long first = strtol(text, &end, 10), last = first;
        if (*end == '-') last = strtol(end + 1, &end, 10);
        for (long c = first; c <= last && c < CPU_SETSIZE; c++) CPU_SET((size_t)c, set);
    }
}

int affinity_of_device(const char *sys, const char *pci, cpu_set_t *processors) {
    char path[512], line[4096];
    CPU_ZERO(processors);
    snprintf(path, sizeof path, "%s/bus/pci/devices/%s/numa_node", sys, pci);
    if (!*pci || !first_line(line, sizeof line, path)) return -1;
    int node = (int)strtol(line, NULL, 10); // -1: the machine has but one
    snprintf(path, sizeof path, "%s/devices/system/node/node%d/cpulist", sys, node);
    if (node < 0 || !first_line(line, sizeof line, path)) return -1;
    parse_list(processors, line);
    return CPU_COUNT(processors) ? node : -1;
}

typedef struct Processor {
    int core, number; // core: the first processor of the same one
} Processor;

static int by_core(const void *a, const void *b) {
    const Processor *x = a, *y = b;
    return x->core != y->core ? (x->core > y->core) - (x->core < y->core) : x->number - y->number;
}

void affinity_share(const char *sys, cpu_set_t *set, int place, int places) {
    Processor all[CPU_SETSIZE];
    char path[512], line[4096];
    int count = 0;
    for (int c = 0; c < CPU_SETSIZE; c++) {
        if (!CPU_ISSET((size_t)c, set)) continue;
        snprintf(path, sizeof path, "%s/devices/system/cpu/cpu%d/topology/thread_siblings_list", sys, c);
        int core = first_line(line, sizeof line, path) ? (int)strtol(line, NULL, 10) : c;
        all[count++] = (Processor){core, c};
    }
    if (count < places) return; // they share all of it
    qsort(all, (size_t)count, sizeof *all, by_core);
    CPU_ZERO(set);
    int first = (int)((int64_t)count * place / places), end = (int)((int64_t)count * (place + 1) / places);
    for (int i = first; i < end; i++) CPU_SET((size_t)all[i].number, set);
}

bool affinity_bind(const cpu_set_t *set) {
    DIR *threads = opendir("/proc/self/task");
    bool ok = sched_setaffinity(0, sizeof *set, set) == 0;
    for (const struct dirent *thread; ok && threads && (thread = readdir(threads));) {
        int id = (int)strtol(thread->d_name, NULL, 10);
        if (id > 0) (void)sched_setaffinity(id, sizeof *set, set); // one that has just ended refuses
    }
    if (threads) closedir(threads);
    return ok;
}

void affinity_print(Buffer *out, const cpu_set_t *set) {
    const char *between = "";
    for (int c = 0; c < CPU_SETSIZE; c++) {
        if (!CPU_ISSET((size_t)c, set)) continue;
        int last = c;
        while (last + 1 < CPU_SETSIZE && CPU_ISSET((size_t)last + 1, set)) last++;
        buffer_printf(out, last > c ? "%s%d-%d" : "%s%d", between, c, last);
        between = ",";
        c = last;
    }
}
