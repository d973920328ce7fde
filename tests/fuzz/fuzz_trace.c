/* Fuzzes the reader of a pipeline's timeline. Of what it lets through every step has all rows of its table, one after
 * the other, and a simulation whose stages work as long. */
#include "tests/fuzz/memory_file.h"
#include "train/schedule_trace.h"
#include <math.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void expect_whole(const TracedStep *step) {
    PipelineTime measured = timeline_measure(&step->measured, NULL),
                 simulated = timeline_measure(&step->simulated, NULL);
    check(isfinite(measured.total) && isfinite(simulated.total) && step->send >= 0);
    check(fabs(measured.work - simulated.work) <= 1e-9 * (measured.total + simulated.total));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[32];
    Error error = {0};
    ScheduleTrace trace;
    Arena *arena = arena_new(1 << 16);
    int descriptor = memory_file(data, size, path);
    if (schedule_trace_read(path, &(TraceChoice){0}, arena, &trace, &error)) {
        check(trace.count > 0);
        for (int i = 0; i < trace.count; i++) expect_whole(&trace.steps[i]);
    } else {
        check(error.kind != ERROR_NONE && error.message[0]);
    }
    arena_free(arena);
    close(descriptor);
    return 0;
}
