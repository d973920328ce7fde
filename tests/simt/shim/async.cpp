/* Asynchronous copies into shared memory (cp.async). A GPU may carry one out at any time between its start and the end
 * of the wait for it. Here its target becomes garbage when it starts and is written where the wait ends, both as writes
 * of the thread that started it: who reads too early, or still reads what was there before, reads NaN or races. */
#include "tests/simt/shim/engine.h"
#include <vector>

enum { MOST_THREADS = 1024 };

struct Copy {
    void *to;
    const void *from; // NULL: zeros
    size_t bytes, group;
};

static struct Thread {
    std::vector<Copy> copies; // under way, the oldest first
    size_t groups;            // committed so far
} threads[MOST_THREADS];

void simt_copy_async(void *shared, const void *global, size_t bytes, bool there) {
    Thread *t = &threads[position.thread];
    simt_check_vector(shared, bytes);
    if (!memory_is_shared(shared)) simt_fault("an asynchronous copy to memory that is not shared");
    memory_access(shared, bytes, ACCESS_WRITE);
    memset(shared, 0xff, bytes);
    if (there) {
        simt_check_vector(global, bytes);
        memory_access(global, bytes, ACCESS_READ);
    }
    t->copies.push_back({shared, there ? global : nullptr, bytes, t->groups});
}

void simt_copy_commit() { threads[position.thread].groups++; }

void simt_copy_wait(size_t latest) {
    Thread *t = &threads[position.thread];
    size_t done = 0;
    for (; done < t->copies.size() && t->copies[done].group + latest < t->groups; done++) {
        const Copy &c = t->copies[done];
        memory_access(c.to, c.bytes, ACCESS_WRITE);
        if (c.from) {
            memory_access(c.from, c.bytes, ACCESS_READ);
            memcpy(c.to, c.from, c.bytes);
        } else {
            memset(c.to, 0, c.bytes);
        }
    }
    t->copies.erase(t->copies.begin(), t->copies.begin() + static_cast<ptrdiff_t>(done));
}

void async_end_thread() {
    Thread *t = &threads[position.thread];
    if (!t->copies.empty()) simt_fault("the thread ends with %zu asynchronous copies under way", t->copies.size());
    t->groups = 0;
}

void async_begin_launch() {
    for (Thread &t : threads) t.copies.clear(), t.groups = 0;
}
