/* What a tape says when the device fails: here the CPU plays one that fails at its third product. */
#include "kernels/cpu/cpu.h"
#include "kernels/ops.h"
#include "tests/support/test.h"
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static int products;
static void (*true_matmul)(Backend *, const Matmul *);

static void counted_matmul(Backend *b, const Matmul *p) {
    products++;
    true_matmul(b, p);
}

static const char *fault(Backend *b) {
    (void)b;
    return products >= 3 ? "an illegal address (in this test)" : NULL;
}

static Tensor *constant(Tape *t, const char *name, int rank, const int64_t *shape) {
    static const float numbers[64] = {1, 2, 3};
    Tensor *x = tape_constant(t, F32, rank, shape, numbers);
    x->name = name;
    x->needs_grad = true;
    return x;
}

// Two products forward, the third is the first one backward.
static void fail_backward(void) {
    Backend *b = cpu_backend_new(1, NULL, NULL);
    true_matmul = b->matmul, b->matmul = counted_matmul, b->fault = fault;
    Tape *t = tape_new(b, true);
    Tensor *x = constant(t, "x", SHAPE(2, 3)), *w = constant(t, "text.weight", SHAPE(5, 3));
    w->is_parameter = true;
    w->grad = constant(t, "g", SHAPE(5, 3))->data;
    Tensor *y = linear(t, x, w, NULL);
    tape_backward(t, sum(t, linear(t, y, constant(t, "v", SHAPE(1, 5)), NULL), 1), ALL_GRADIENTS);
}

static void a_fault_names_operator_shapes_and_place(void **state) {
    (void)state;
    int end[2], status = 0;
    char text[1024] = "";
    assert_int_equal(pipe(end), 0);
    pid_t child = fork();
    if (child == 0) {
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        signal(SIGABRT, SIG_DFL);
        dup2(end[1], STDERR_FILENO);
        fail_backward();
        _exit(0);
    }
    close(end[1]);
    for (size_t used = 0; used < sizeof text - 1;) {
        ssize_t n = read(end[0], text + used, sizeof text - 1 - used);
        if (n <= 0) break;
        used += (size_t)n;
    }
    close(end[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    static const char want[] = "the device failed in linear, backward, f32 (2, 5), f32 (1, 5) -> f32 (2, 1), after "
                               "text.weight: an illegal address (in this test)";
    if (!strstr(text, want)) fail_msg("'%s' is not '%s'", text, want);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_fault_names_operator_shapes_and_place)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
