#include "tests/simt/shim/fiber.h"
#include <cstdint>
#include <cstdlib>
#include <sys/mman.h>

enum { STACK_BYTES = 128 << 10, GUARD_BYTES = 4096 };

const char *fiber_stack(const Fiber *f, const char **end) {
    *end = static_cast<const char *>(f->stack) + STACK_BYTES;
    return static_cast<const char *>(f->stack);
}

static void map_stack(Fiber *f) {
    if (f->stack) return;
    void *memory = mmap(nullptr, GUARD_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, GUARD_BYTES, PROT_NONE)) abort();
    f->stack = static_cast<char *>(memory) + GUARD_BYTES;
}

#if defined(__x86_64__)
// Keeps the registers that a call keeps, the stack pointer last.
__asm__(".text\n"
        ".type simt_switch_stacks, @function\n"
        "simt_switch_stacks:\n"
        "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
        "movq %rsp, (%rdi)\n"
        "movq %rsi, %rsp\n"
        "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n"
        "ret\n"
        ".size simt_switch_stacks, . - simt_switch_stacks\n");
extern "C" void simt_switch_stacks(void **from, void *to);

void fiber_start(Fiber *f, void (*body)()) {
    map_stack(f);
    uintptr_t *top = reinterpret_cast<uintptr_t *>(static_cast<char *>(f->stack) + STACK_BYTES);
    *--top = 0; // a return address no one takes, which also aligns the stack as at a call
    *--top = reinterpret_cast<uintptr_t>(body);
    for (int i = 0; i < 6; i++) *--top = 0;
    f->pointer = top;
}

void fiber_switch(Fiber *from, Fiber *to) {
    void *unused;
    simt_switch_stacks(from ? &from->pointer : &unused, to->pointer);
}
#else
void fiber_start(Fiber *f, void (*body)()) {
    map_stack(f);
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = STACK_BYTES;
    f->context.uc_link = nullptr;
    makecontext(&f->context, body, 0);
}

void fiber_switch(Fiber *from, Fiber *to) {
    if (from)
        swapcontext(&from->context, &to->context);
    else
        setcontext(&to->context);
}
#endif
