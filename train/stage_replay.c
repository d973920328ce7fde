/* See stage_replay.h. */
#include "train/stage_replay.h"
#include "kernels/dry.h"
#include "train/rehearsal.h"

// A microbatch on its way through a chunk; its tape serves the next one.
typedef struct Flight {
    UnitRun run;
    bool under_way;
} Flight;

typedef struct Replay {
    const UnitCosts *costs;
    const PipelineTable *table;
    const int *first;
    int first_piece;
    Backend *backend;
    Rehearsal rehearsal;
    Flight *flights; // (count)
    int count;
    int *flight; // (chunks, microbatches) number of each one's
} Replay;

static int depart(Replay *r) {
    int i = 0;
    while (i < r->count && r->flights[i].under_way) i++;
    if (i == r->count) r->flights[r->count++].run.tape = tape_new_in(r->rehearsal.memory, true);
    r->flights[i].under_way = true;
    return i;
}

static void run_forward(Replay *r, int part, int microbatch, Flight *f) {
    const UnitCosts *c = r->costs;
    int shape = c->shape[r->first_piece + microbatch], first = r->first[part];
    f->run.first = first;
    f->run.end = r->first[part + 1];
    f->run.batch = &c->batches[shape];
    f->run.wanted = c->wanted[(int64_t)first * c->shapes + shape];
    rehearse_arrive(&r->rehearsal, &f->run);
    rehearse_forward(&r->rehearsal, &f->run);
}

static void run_backward(Replay *r, Work work, Flight *f) {
    static const Halves halves[WORKS] = {0, INPUT_GRADIENTS, WEIGHT_GRADIENTS, ALL_GRADIENTS};
    bool input = work != WORK_WEIGHT_GRADIENT;
    if (input) rehearse_seed(&r->rehearsal, &f->run);
    rehearse_backward(&f->run, halves[work]);
    if (input) rehearse_leave(&f->run);
    if (work == WORK_INPUT_GRADIENT) return;
    tape_reset(f->run.tape);
    f->under_way = false;
}

static void run_row(Replay *r, int stage, const Slot *row) {
    const PipelineShape *s = &r->table->shape;
    int *number = &r->flight[row->chunk * s->microbatches + row->microbatch];
    if (row->work == WORK_FORWARD) {
        *number = depart(r);
        run_forward(r, pipeline_part(s, stage, row->chunk), row->microbatch, &r->flights[*number]);
    } else {
        run_backward(r, row->work, &r->flights[*number]);
    }
}

static double run_stage(Replay *r, int stage) {
    r->count = 0;
    for (int k = 0; k < r->table->counts[stage]; k++) run_row(r, stage, &r->table->rows[stage][k]);
    double peak = (double)tape_memory_peak(r->rehearsal.memory);
    for (int i = 0; i < r->count; i++) tape_free(r->flights[i].run.tape);
    rehearsal_renew(&r->rehearsal, r->backend);
    return peak;
}

void stage_replay(const TrainConfig *config, const UnitCosts *costs, const PipelineTable *table, const int *first,
                  int first_piece, double *peaks) {
    int64_t cells = (int64_t)table->shape.chunks * table->shape.microbatches;
    Error error = {0};
    Arena *arena = arena_new(1 << 16);
    Replay r = {.costs = costs,
                .table = table,
                .first = first,
                .first_piece = first_piece,
                .backend = dry_backend_new(),
                .flights = arena_array(arena, Flight, cells),
                .flight = arena_array(arena, int, cells)};
    Parallel parallel = rehearsal_parallel(config);
    Joint *joint = rehearsal_model(r.backend, &config->model, &parallel, config->precision ? BF16 : F32, &error);
    check(joint); // the same as that of the costs
    rehearsal_open(&r.rehearsal, r.backend, joint, costs->batches, costs->shapes);
    for (int i = 0; i < table->shape.stages; i++) peaks[i] = run_stage(&r, i);
    rehearsal_close(&r.rehearsal);
    joint_free(joint);
    rehearsal_parallel_free(&parallel);
    backend_free(r.backend);
    arena_free(arena);
}
