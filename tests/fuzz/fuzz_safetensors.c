/* Fuzzes the reader of safetensors files. What it lets through must have all its bytes in the file. */
#include "base/philox.h"
#include "base/safetensors.h"
#include "tests/fuzz/memory_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[32];
    Error error = {0};
    SafeTensors file;
    int descriptor = memory_file(data, size, path);
    if (safetensors_open(&file, path, &error)) {
        int64_t bytes = 0;
        for (int i = 0; i < file.count; i++) {
            hash_u64(file.tensors[i].data, (uint64_t)file.tensors[i].bytes);
            check(safetensors_find(&file, file.tensors[i].name) == &file.tensors[i]);
            bytes += file.tensors[i].bytes;
        }
        check(bytes < file.file.size);
        safetensors_verify(&file, path, &error);
    } else {
        check(error.kind != ERROR_NONE && error.message[0]);
    }
    safetensors_close(&file);
    close(descriptor);
    return 0;
}
