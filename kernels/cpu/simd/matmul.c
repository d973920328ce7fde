/* Matrix products of the CPU backend.
 *
 * C is cut into blocks of columns and of rows, the inner dimension into even chunks that depend on the problem alone,
 * so the bits of the result do not depend on the number of threads. A task is one block: for each chunk it copies its
 * part of B to panels in its own scratch (sized for the second-level cache) and runs the tile kernel over all pairs of
 * row panel and column panel. A is read in place unless its order or its strides forbid it. */
#include "kernels/cpu/simd/matmul_pack.h"
#include <string.h>

enum {
    CHUNK_UNITS = 768,            // of the inner dimension at once
    CHUNK_UNITS_STAGED = 384,     // where A is copied in units: wider blocks of B, so that the copy serves more columns
    B_FLOATS = 128 * CHUNK_UNITS, // of a block of B
    B_FLOATS_STAGED = 384 * CHUNK_UNITS_STAGED,
    A_FLOATS = 8 * CHUNK_UNITS_STAGED * 16, // of copied panels of A
    C_FLOATS = 1 << 16,                     // of sums of a block of a bf16 C between chunks
    ROW_FLOATS = CHUNK_UNITS + 16,          // from a copied row of A to the next
    PACK_STEP = 32,                         // units copied of each panel before the next panel's
    ALIAS_BYTES = 4096,                     // lines this far apart share a set of the first-level cache
    WIDE_COLUMNS = 128,                     // of a block of a bf16 C in several chunks, times 3 where staged
    SERIAL_MULTIPLIES = 1 << 20             // of units, below which no second thread is called
};
enum { SCRATCH = (B_FLOATS_STAGED + A_FLOATS + C_FLOATS) * 4 }; // bytes, of a worker
_Static_assert(MATMUL_ROWS *ROW_FLOATS <= A_FLOATS, "a copied row panel fits");

// How A is read. Rows are copied where they lie a multiple of ALIAS_BYTES apart; where k is strided (and of bf16 or
// such a distance apart), or must be converted, or has an odd end, several panels are copied in units.
typedef enum Stage { STAGE_NONE, STAGE_ROWS, STAGE_UNITS } Stage;

typedef struct Plan {
    MatmulUnit unit;
    int size;              // bytes of an element of A and B
    int64_t per_unit;      // elements of a unit
    int64_t units, chunks; // of the inner dimension
    Stage stage;
    bool in_place;         // whole panels of B are read where they lie
    int64_t row_panels;    // of M, each of MATMUL_ROWS rows or one less
    int64_t row_blocks;    // tasks along M
    int64_t column_panels; // of N, each MATMUL_PANEL wide
    int64_t column_blocks; // tasks along N
} Plan;

typedef struct Job {
    const Matmul *p;
    const Plan *plan;
    const Backend *backend;
} Job;

// Work of the slowest thread, in units of a multiply-add of two vectors, when C is cut into `rows` x `columns` blocks.
static int64_t cost_of(const Plan *plan, int64_t batch, int64_t rows, int64_t columns, int threads) {
    int64_t m = divide_up(plan->row_panels, rows), n = divide_up(plan->column_panels, columns);
    int64_t task = m * n * MATMUL_ROWS + (plan->in_place ? 0 : 5 * n) + 2 * (1 + plan->stage) * m;
    return divide_up(batch * rows * columns, threads) * task;
}

static bool small(const Matmul *p, const Plan *plan) {
    return p->batch * p->m * p->n * plan->units < SERIAL_MULTIPLIES;
}

static void choose_blocks(Plan *plan, const Matmul *p, int threads) {
    int64_t chunk = most(divide_up(plan->units, plan->chunks), 1);
    int64_t widest = (plan->stage == STAGE_UNITS ? B_FLOATS_STAGED : B_FLOATS) / (chunk * MATMUL_PANEL); // panels
    if (p->out == BF16 && plan->chunks > 1)
        widest = least(widest, WIDE_COLUMNS / MATMUL_PANEL * (plan->stage == STAGE_UNITS ? 3 : 1));
    int64_t fewest = divide_up(plan->column_panels, most(widest, 1));
    plan->row_blocks = 1;
    plan->column_blocks = fewest;
    if (threads == 1 || small(p, plan)) return;
    int64_t best = INT64_MAX;
    for (int64_t columns = fewest; columns <= least(plan->column_panels, fewest + 2 * threads); columns++) {
        for (int64_t rows = 1; rows <= least(plan->row_panels, 2 * threads); rows++) {
            int64_t cost = cost_of(plan, p->batch, rows, columns, threads);
            if (cost >= best) continue;
            best = cost;
            plan->row_blocks = rows;
            plan->column_blocks = columns;
        }
    }
}

static Plan plan_for(const Matmul *p, int threads) {
#if defined(__AVX512BF16__)
    bool pairs = p->in == BF16;
#else
    bool pairs = false;
#endif
    Plan plan = {.unit = pairs ? UNIT_PAIR : UNIT_F32, .size = (int)dtype_size(p->in), .per_unit = pairs ? 2 : 1};
    int64_t apart = (p->a_column == 1 ? p->a_row : p->a_column) * plan.size;
    bool order = p->in == BF16 && (!pairs || p->a_column != 1 || p->k % 2);
    bool alias = p->m > 1 && apart % ALIAS_BYTES == 0 && p->n > MATMUL_PANEL;
    plan.stage = order || (alias && p->a_column != 1) ? STAGE_UNITS : alias ? STAGE_ROWS : STAGE_NONE;
    plan.units = divide_up(p->k, plan.per_unit);
    plan.chunks = divide_up(most(plan.units, 1), plan.stage == STAGE_UNITS ? CHUNK_UNITS_STAGED : CHUNK_UNITS);
    plan.in_place = p->in == F32 && p->b_column == 1 && p->m <= 2 * MATMUL_ROWS;
    plan.row_panels = divide_up(p->m, MATMUL_ROWS);
    plan.column_panels = divide_up(p->n, MATMUL_PANEL);
    choose_blocks(&plan, p, threads);
    return plan;
}

// ---- one block of C ----

typedef struct Block {
    const Matmul *p;
    const Plan *plan;
    const char *a, *b; // of this product of the batch
    char *c;
    int64_t panel0, panel1;               // row panels
    int64_t n0, n1;                       // columns
    int64_t u0, u1;                       // units of the running chunk
    float *packed_b, *packed_a, *partial; // (panels, units, MATMUL_PANEL) (panels, units, MATMUL_STAGE) (rows, columns)
} Block;

static int64_t first_row(const Block *w, int64_t panel) { return panel * w->p->m / w->plan->row_panels; }

static int64_t inner_count(const Block *w, int64_t u0, int64_t u1) { // elements k of units [u0, u1)
    return least(u1 * w->plan->per_unit, w->p->k) - u0 * w->plan->per_unit;
}

// Some units of each panel in turn where k is strided, because neighbouring panels share cache lines and pages.
static void pack_b(const Block *w) {
    const Matmul *p = w->p;
    int64_t units = w->u1 - w->u0, step = p->b_row == 1 ? units : PACK_STEP;
    for (int64_t u = w->u0; u < w->u1; u += step) {
        int64_t k = inner_count(w, u, least(u + step, w->u1));
        float *out = w->packed_b + (u - w->u0) * MATMUL_PANEL;
        for (int64_t n = w->n0; n < w->n1; n += MATMUL_PANEL, out += units * MATMUL_PANEL) {
            int64_t count = least(MATMUL_PANEL, w->n1 - n);
            if (w->plan->in_place && count == MATMUL_PANEL) continue;
            int64_t at = u * w->plan->per_unit * p->b_row + n * p->b_column;
            Lines x = {w->b + at * w->plan->size, p->b_column, p->b_row, count, k, p->in};
            SIMD_NAME(matmul_pack)(out, MATMUL_PANEL, &x, w->plan->unit);
        }
    }
}

// Row panels [panel0, panel1) in units.
static void pack_a(const Block *w, int64_t panel0, int64_t panel1) {
    const Matmul *p = w->p;
    int64_t units = w->u1 - w->u0;
    for (int64_t u = w->u0; u < w->u1; u += PACK_STEP) {
        for (int64_t panel = panel0; panel < panel1; panel++) {
            int64_t row = first_row(w, panel), at = row * p->a_row + u * w->plan->per_unit * p->a_column;
            int64_t k = inner_count(w, u, least(u + PACK_STEP, w->u1));
            Lines x = {w->a + at * w->plan->size, p->a_row, p->a_column, first_row(w, panel + 1) - row, k, p->in};
            float *out = w->packed_a + ((panel - panel0) * units + u - w->u0) * MATMUL_STAGE;
            SIMD_NAME(matmul_pack)(out, MATMUL_STAGE, &x, w->plan->unit);
        }
    }
}

// Where the sums of this chunk start from and where they go: the first takes bias and C, the last writes C, and between
// them a bf16 C keeps its sums in f32 aside.
static void route(const Block *w, Tile *t, int64_t row, int64_t n) {
    const Matmul *p = w->p;
    bool first = w->u0 == 0, last = w->u1 == w->plan->units;
    char *c = w->c + (row * p->c_row + n) * (int64_t)dtype_size(p->out);
    float *aside = w->partial + (row - first_row(w, w->panel0)) * (w->n1 - w->n0) + n - w->n0;
    bool through = p->out == F32;
    t->bias = first && p->bias ? p->bias + n : NULL;
    t->from = first ? (p->add ? c : NULL) : through ? c : (char *)aside;
    t->from_type = first ? p->out : F32;
    t->from_row = first || through ? p->c_row : w->n1 - w->n0;
    t->to = last || through ? c : (char *)aside;
    t->to_type = last ? p->out : F32;
    t->to_row = last || through ? p->c_row : w->n1 - w->n0;
}

// All tiles of one row panel. a, a_row and a_unit of the tile are set.
static void run_panel(const Block *w, Tile *t, int64_t panel) {
    const Matmul *p = w->p;
    int64_t row = first_row(w, panel), units = w->u1 - w->u0;
    const float *packed = w->packed_b;
    t->rows = (int)(first_row(w, panel + 1) - row);
    t->units = units;
    for (int64_t n = w->n0; n < w->n1; n += MATMUL_PANEL, packed += units * MATMUL_PANEL) {
        t->columns = (int)least(MATMUL_PANEL, w->n1 - n);
        bool in_place = w->plan->in_place && t->columns == MATMUL_PANEL;
        t->b = in_place ? (const float *)(const void *)w->b + w->u0 * p->b_row + n : packed;
        t->b_unit = in_place ? p->b_row : MATMUL_PANEL;
        route(w, t, row, n);
        SIMD_NAME(matmul_tile)(t, w->plan->unit);
    }
}

// Reads row panel `panel` where it lies, or a copy of it; a group of panels is copied when its first one is wanted.
static void open_panel(const Block *w, Tile *t, int64_t panel) {
    const Matmul *p = w->p;
    int64_t units = w->u1 - w->u0, size = w->plan->size, first = first_row(w, panel);
    const char *a = w->a + (first * p->a_row + w->u0 * w->plan->per_unit * p->a_column) * size;
    if (w->plan->stage == STAGE_NONE) {
        bool by_row = p->a_column == 1;
        *t = (Tile){.a = a, .a_row = by_row ? p->a_row * size : 4, .a_unit = by_row ? 4 : p->a_column * size};
    } else if (w->plan->stage == STAGE_ROWS) {
        for (int64_t r = 0; r < first_row(w, panel + 1) - first; r++)
            memcpy(w->packed_a + r * ROW_FLOATS, a + r * p->a_row * size, (size_t)units * sizeof(float));
        *t = (Tile){.a = (const char *)w->packed_a, .a_row = 4 * ROW_FLOATS, .a_unit = 4};
    } else {
        int64_t group = A_FLOATS / (most(units, 1) * MATMUL_STAGE), in_group = (panel - w->panel0) % group;
        if (!in_group) pack_a(w, panel, least(panel + group, w->panel1));
        const float *packed = w->packed_a + in_group * units * MATMUL_STAGE;
        *t = (Tile){.a = (const char *)packed, .a_row = 4, .a_unit = 4 * MATMUL_STAGE};
    }
}

static void run_chunk(const Block *w) {
    pack_b(w);
    for (int64_t panel = w->panel0; panel < w->panel1; panel++) {
        Tile t;
        open_panel(w, &t, panel);
        run_panel(w, &t, panel);
    }
}

// Row panels [panel0, panel1) and columns [n0, n1) of product z of the batch.
static void run_block(const Matmul *p, const Plan *plan, int64_t z, const int64_t panels[2], const int64_t columns[2],
                      float *scratch) {
    Block w = {.p = p,
               .plan = plan,
               .n0 = columns[0],
               .n1 = least(columns[1], p->n),
               .packed_b = scratch,
               .packed_a = scratch + B_FLOATS_STAGED,
               .partial = scratch + B_FLOATS_STAGED + A_FLOATS};
    w.a = (const char *)p->a + z * p->a_batch * plan->size;
    w.b = (const char *)p->b + z * p->b_batch * plan->size;
    w.c = (char *)p->c + z * p->c_batch * (int64_t)dtype_size(p->out);
    int64_t at_once = panels[1] - panels[0];
    if (p->out == BF16 && plan->chunks > 1) at_once = C_FLOATS / (w.n1 - w.n0) / MATMUL_ROWS;
    for (w.panel0 = panels[0]; w.panel0 < panels[1]; w.panel0 = w.panel1) {
        w.panel1 = least(w.panel0 + at_once, panels[1]);
        for (int64_t chunk = 0; chunk < plan->chunks; chunk++) {
            w.u0 = chunk * plan->units / plan->chunks;
            w.u1 = (chunk + 1) * plan->units / plan->chunks;
            run_chunk(&w);
        }
    }
}

// Blocks count along columns first, then rows, then the batch.
static void run_task(const Matmul *p, const Plan *plan, int64_t task, float *scratch) {
    int64_t column = task % plan->column_blocks, row = task / plan->column_blocks % plan->row_blocks;
    int64_t z = task / plan->column_blocks / plan->row_blocks;
    int64_t panels[2] = {row * plan->row_panels / plan->row_blocks, (row + 1) * plan->row_panels / plan->row_blocks};
    int64_t columns[2] = {column * plan->column_panels / plan->column_blocks * MATMUL_PANEL,
                          (column + 1) * plan->column_panels / plan->column_blocks * MATMUL_PANEL};
    run_block(p, plan, z, panels, columns, scratch);
}

static bool empty(const Matmul *p) { return p->m <= 0 || p->n <= 0 || p->batch <= 0; }

static int64_t task_count(const Matmul *p, const Plan *plan) {
    return p->batch * plan->row_blocks * plan->column_blocks;
}

static void task_of(void *context, int64_t task, int worker) {
    const Job *job = context;
    run_task(job->p, job->plan, task, cpu_worker_scratch(job->backend, worker, SCRATCH));
}

static void matmul(Backend *b, const Matmul *p) {
    if (empty(p)) return;
    Threads *threads = cpu_threads(b);
    Plan plan = plan_for(p, threads_count(threads));
    Job job = {p, &plan, b};
    if (small(p, &plan)) // the calling thread is worker 0
        for (int64_t task = 0; task < task_count(p, &plan); task++) task_of(&job, task, 0);
    else
        threads_run(threads, task_count(p, &plan), task_of, &job);
}

void SIMD_NAME(install_matmul)(Backend *b) { b->matmul = matmul; }
