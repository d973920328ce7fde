/* Runs a fuzz target over a folder of seeds, each as it is and with every byte changed once: what a build without
 * libFuzzer can check of it. Exit status 77 where there is no such folder. */
#include "base/files.h"
#include "base/philox.h"
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MOST_CHANGES = 2000, MOST_MEMORY = 512 << 20 }; // bytes of address space: no seed may ask for a fraction of it

// Not under the address sanitizer, whose own shadow is larger than any limit.
static void limit_memory(void) {
#ifdef REPLAY_LIMITS_MEMORY
    struct rlimit limit = {MOST_MEMORY, MOST_MEMORY};
    check(setrlimit(RLIMIT_AS, &limit) == 0);
#endif
}

// The copy is exactly as long as the input, so that the address sanitizer sees a read behind its end.
static void run(const Buffer *seed, size_t size, size_t changed) {
    uint8_t *copy = malloc(size ? size : 1);
    check(copy);
    if (size) memcpy(copy, seed->data, size);
    if (changed < size) copy[changed] ^= (uint8_t)hash_u64(&changed, sizeof changed);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

static bool replay(const char *path, Error *error) {
    Buffer seed = {0};
    if (!file_read(path, &seed, error)) return false;
    size_t step = seed.size / MOST_CHANGES + 1;
    run(&seed, seed.size, seed.size);
    for (size_t i = 0; i < seed.size; i += step) run(&seed, seed.size, i);
    for (size_t i = 0; i < seed.size; i += step) run(&seed, i, i);
    buffer_free(&seed);
    return true;
}

int main(int count, char **arguments) {
    Error error = {0};
    char **names = NULL, path[4096];
    int seeds = 0, status = 0;
    if (count != 2 || !folder_exists(arguments[1])) {
        fprintf(stderr, "no seeds for this target: %s\n", count == 2 ? arguments[1] : "name a folder");
        return 77;
    }
    limit_memory();
    bool ok = folder_list(arguments[1], &names, &seeds, &error);
    for (int i = 0; ok && i < seeds; i++) {
        check(snprintf(path, sizeof path, "%s/%s", arguments[1], names[i]) < (int)sizeof path);
        ok = replay(path, &error);
    }
    if (!ok) {
        fprintf(stderr, "%s\n", error.message);
        status = 1;
    }
    names_free(names, seeds);
    return status;
}
