/* See nccl_facts.h. NCCL has no call that tells its CUDA, but prints it: the text stands in its read-only data, which
 * are small beside the kernels in the file. */
#include "kernels/cuda/host/nccl_facts.h"
#include <elf.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LEAST_VERSION = 21800 };
static const char TEXT[] = "NCCL version ", CUDA_TEXT[] = "+cuda";

typedef struct File {
    const char *data;
    size_t size;
} File;

static File map(const char *path) {
    struct stat facts;
    File file = {0};
    int handle = open(path, O_RDONLY | O_CLOEXEC);
    if (handle >= 0 && fstat(handle, &facts) == 0 && facts.st_size > 0) {
        void *data = mmap(NULL, (size_t)facts.st_size, PROT_READ, MAP_PRIVATE, handle, 0);
        if (data != MAP_FAILED) file = (File){data, (size_t)facts.st_size};
    }
    if (handle >= 0) close(handle);
    return file;
}

static bool holds(const File *f, uint64_t at, uint64_t bytes) { return at <= f->size && bytes <= f->size - at; }

// A section of an ELF file of this machine's kind; empty where there is none.
static File section(const File *f, const char *name) {
    const Elf64_Ehdr *head = (const void *)f->data;
    if (!holds(f, 0, sizeof *head) || memcmp(head->e_ident, ELFMAG, SELFMAG) != 0 ||
        head->e_ident[EI_CLASS] != ELFCLASS64 || head->e_shoff % sizeof(uint64_t) ||
        head->e_shstrndx >= head->e_shnum || !holds(f, head->e_shoff, head->e_shnum * sizeof(Elf64_Shdr)))
        return (File){0};
    const Elf64_Shdr *sections = (const void *)(f->data + head->e_shoff), *names = &sections[head->e_shstrndx];
    if (!holds(f, names->sh_offset, names->sh_size)) return (File){0};
    for (int i = 0; i < head->e_shnum; i++) {
        const Elf64_Shdr *s = &sections[i];
        if (s->sh_name >= names->sh_size || names->sh_size - s->sh_name <= strlen(name) ||
            strcmp(f->data + names->sh_offset + s->sh_name, name) != 0 || !holds(f, s->sh_offset, s->sh_size))
            continue;
        return (File){f->data + s->sh_offset, (size_t)s->sh_size};
    }
    return (File){0};
}

// "2.28.9+cuda13.0": the part behind CUDA_TEXT; 0 where that does not stand there.
static int parse(const char *text, const char *end) {
    char copy[64] = "";
    size_t length = (size_t)(end - text) < sizeof copy - 1 ? (size_t)(end - text) : sizeof copy - 1;
    memcpy(copy, text, length);
    const char *cuda = strstr(copy, CUDA_TEXT);
    if (!cuda) return 0;
    char *dot;
    long major = strtol(cuda + sizeof CUDA_TEXT - 1, &dot, 10), minor = *dot == '.' ? strtol(dot + 1, NULL, 10) : 0;
    return major > 0 && major < 1000 && minor >= 0 && minor < 100 ? (int)(1000 * major + 10 * minor) : 0;
}

int nccl_built_for(const char *path) {
    File file = map(path), texts = section(&file, ".rodata");
    int version = 0;
    for (const char *at = texts.data, *end = at + texts.size; at && at < end && !version; at++) {
        at = memmem(at, (size_t)(end - at), TEXT, sizeof TEXT - 1);
        if (!at) break;
        version = parse(at + sizeof TEXT - 1, end);
    }
    if (file.data) munmap((void *)file.data, file.size);
    return version;
}

bool nccl_fits(const NcclFacts *f, Error *error) {
    int major = f->version / 10000, minor = f->version / 100 % 100, patch = f->version % 100;
    if (f->version < LEAST_VERSION)
        return error_set(error, ERROR_USAGE,
                         "NCCL %d.%d.%d is too old: %d.%d is the oldest that works; install a newer one, or set "
                         "BIFOCAL_NCCL=off to go through the hosts' memory",
                         major, minor, patch, LEAST_VERSION / 10000, LEAST_VERSION / 100 % 100);
    if (!f->built_for || f->built_for / 1000 == f->runtime / 1000) return true;
    return error_set(error, ERROR_USAGE,
                     "NCCL %d.%d.%d was built for CUDA %d.%d, this program for CUDA %d.%d (the driver knows up to "
                     "%d.%d): install the NCCL for CUDA %d, or set BIFOCAL_NCCL=off to go through the hosts' memory",
                     major, minor, patch, f->built_for / 1000, f->built_for % 1000 / 10, f->runtime / 1000,
                     f->runtime % 1000 / 10, f->driver / 1000, f->driver % 1000 / 10, f->runtime / 1000);
}
