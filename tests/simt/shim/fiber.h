/* Fibers: stacks of their own, switched by hand. On x86-64 a switch is a dozen instructions; elsewhere ucontext does it
 * with a system call. A fiber that is never resumed is simply started again. */
#pragma once
#include <cstddef>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

struct Fiber {
    void *stack = nullptr; // mapped on first start; NULL: the thread's own
#if defined(__x86_64__)
    void *pointer = nullptr;
#else
    ucontext_t context;
#endif
};

void fiber_start(Fiber *, void (*body)()); // body must never return
void fiber_switch(Fiber *from, Fiber *to); // from NULL: it is left for good
const char *fiber_stack(const Fiber *, const char **end);
