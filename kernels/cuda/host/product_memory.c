/* See product_memory.h. */
#include "kernels/cuda/host/product_memory.h"
#include "kernels/cuda/host/shape_cache.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC "bifocal products 1"
enum {
    KEY_WORDS = sizeof(ProductKey) / sizeof(uint64_t),
    WORDS = KEY_WORDS + sizeof(ProductChoice) / sizeof(uint64_t),
    WHOSE_MOST = 256,
    LINE_MOST = 17 * (WORDS + 1) + 2, // bytes
};

typedef struct Entry { // of the list, in the order of settling
    uint64_t word[WORDS];
} Entry;

struct ProductMemory {
    char path[PATH_MAX], whose[WHOSE_MOST]; // path "": there is no file
    Entry *entry;                           // (count)
    int64_t count, room;
    ShapeCache *known; // ProductKey -> int64_t, index of the entry
    Log *log;
};

static bool entry_of(const ProductMemory *m, const ProductKey *key, int64_t *index) {
    bool found;
    int64_t *at = shape_cache_get(m->known, key, &found);
    if (!found) *at = -1;
    *index = *at;
    return *at >= 0;
}

static void add(ProductMemory *m, const Entry *e) {
    ProductKey key;
    bool found;
    memcpy(&key, e->word, sizeof key);
    if (m->count == m->room) {
        m->room = m->room ? 2 * m->room : 64;
        m->entry = realloc(m->entry, (size_t)m->room * sizeof *m->entry);
        check(m->entry);
    }
    *(int64_t *)shape_cache_get(m->known, &key, &found) = m->count;
    m->entry[m->count++] = *e;
}

// ---- the file ----

static uint64_t sum_of(const Entry *e) { // FNV-1a over words
    uint64_t h = 14695981039346656037u;
    for (int i = 0; i < WORDS; i++) h = (h ^ e->word[i]) * 1099511628211u, h ^= h >> 29;
    return h;
}

static bool read_line(const char *line, Entry *e) {
    uint64_t sum = 0;
    for (int i = 0; i <= WORDS; i++) {
        char *end;
        uint64_t value = strtoull(line, &end, 16);
        if (end == line || (i < WORDS ? *end != ' ' : *end != '\n')) return false;
        *(i < WORDS ? &e->word[i] : &sum) = value;
        line = end;
    }
    return sum == sum_of(e);
}

// "" or what is wrong with the file. Entries that are known already stay as they are.
static const char *take_file(ProductMemory *m, FILE *f) {
    char line[LINE_MOST + WHOSE_MOST];
    if (!fgets(line, sizeof line, f) || strcmp(line, MAGIC "\n") != 0) return "it is not such a file";
    if (!fgets(line, sizeof line, f) || strlen(line) < 1) return "it ends in its head";
    line[strlen(line) - 1] = 0;
    if (strcmp(line, m->whose) != 0) return "it is of another GPU or library";
    while (fgets(line, sizeof line, f)) {
        Entry e;
        ProductKey key;
        int64_t index;
        if (!read_line(line, &e)) return "a line is damaged";
        memcpy(&key, e.word, sizeof key);
        if (!entry_of(m, &key, &index)) add(m, &e);
    }
    return "";
}

static void read_file(ProductMemory *m) {
    FILE *f = m->path[0] ? fopen(m->path, "r") : NULL;
    if (!f) return;
    const char *wrong = take_file(m, f);
    if (wrong[0]) log_warning(m->log, "%s: ignored from there on, %s; products are timed again", m->path, wrong);
    (void)fclose(f);
}

static bool write_lines(const ProductMemory *m, FILE *f) {
    bool ok = fprintf(f, MAGIC "\n%s\n", m->whose) > 0;
    for (int64_t i = 0; i < m->count && ok; i++) {
        for (int w = 0; w < WORDS; w++) ok = fprintf(f, "%llx ", (unsigned long long)m->entry[i].word[w]) > 0 && ok;
        ok = fprintf(f, "%llx\n", (unsigned long long)sum_of(&m->entry[i])) > 0 && ok;
    }
    return ok;
}

// Beside, then renamed. What cannot be written is not worth an end: the next run times again.
static void write_file(ProductMemory *m) {
    char beside[PATH_MAX + 32];
    (void)snprintf(beside, sizeof beside, "%s.%ld", m->path, (long)getpid());
    FILE *f = fopen(beside, "w");
    bool ok = f && write_lines(m, f);
    if (f) ok = fclose(f) == 0 && ok;
    if (ok && rename(beside, m->path) == 0) return;
    log_warning(m->log, "%s: not written (%s); the next run times its products again", m->path, strerror(errno));
    (void)unlink(beside);
    m->path[0] = 0;
}

// ---- the module ----

ProductMemory *product_memory_open(const char *path, const char *whose, Log *log) {
    ProductMemory *m = calloc(1, sizeof *m);
    check(m);
    m->log = log;
    if (path && strlen(path) < sizeof m->path) strcpy(m->path, path);
    (void)snprintf(m->whose, sizeof m->whose, "%s", whose);
    m->known = shape_cache_new(sizeof(ProductKey), sizeof(int64_t));
    read_file(m);
    return m;
}

void product_memory_close(ProductMemory *m) {
    if (!m) return;
    shape_cache_free(m->known, NULL);
    free(m->entry);
    free(m);
}

bool product_memory_find(const ProductMemory *m, const ProductKey *key, ProductChoice *choice) {
    int64_t index;
    if (!entry_of(m, key, &index)) return false;
    memcpy(choice, m->entry[index].word + KEY_WORDS, sizeof *choice);
    return true;
}

void product_memory_settle(ProductMemory *m, const ProductKey *key, ProductChoice *choice) {
    char path[PATH_MAX + 8];
    Entry e;
    (void)snprintf(path, sizeof path, "%s.lock", m->path);
    int lock = m->path[0] ? open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0644) : -1;
    if (lock >= 0) (void)flock(lock, LOCK_EX);
    read_file(m); // others may have been there
    if (!product_memory_find(m, key, choice)) {
        memcpy(e.word, key, sizeof *key);
        memcpy(e.word + KEY_WORDS, choice, sizeof *choice);
        add(m, &e);
        if (m->path[0]) write_file(m);
    }
    if (lock >= 0) (void)close(lock);
}

int64_t product_memory_count(const ProductMemory *m) { return m->count; }

bool product_memory_path(char *out, int size, const char *name) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int at;
    if (cache && cache[0] == '/')
        at = snprintf(out, (size_t)size, "%s", cache);
    else if (home && home[0] == '/')
        at = snprintf(out, (size_t)size, "%s/.cache", home);
    else
        return false;
    if (at < 0 || at + 10 + (int)strlen(name) >= size) return false;
    (void)mkdir(out, 0755);
    strcpy(out + at, "/bifocal");
    if (mkdir(out, 0755) != 0 && errno != EEXIST) return false;
    strcat(out, "/");
    for (at += 9; *name; name++) {
        bool plain = (*name >= 'a' && *name <= 'z') || (*name >= 'A' && *name <= 'Z') || (*name >= '0' && *name <= '9');
        out[at++] = plain || *name == '.' || *name == '_' ? *name : '-';
    }
    out[at] = 0;
    return true;
}
