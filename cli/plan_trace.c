/* bifocal plan schedule --trace: the pipeline of a real run beside its simulation. Figures are medians over the steps
 * of the trace; the drawing is of the step whose time is in the middle. */
#include "base/files.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "train/schedule_svg.h"
#include "train/schedule_trace.h"
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

typedef struct Arguments {
    const char *path; // of the run's timeline
    TraceChoice choice;
    const char *svg; // file to draw into; NULL: none
    bool json, help;
} Arguments;

enum { MEASURED, SIMULATED, AVERAGED, KINDS }; // of the run; simulated with each row's time; with those of its part
static const char *const kind_names[KINDS] = {"measured", "simulated", "averaged"};

typedef struct Beside { // the same figure of all kinds
    double of[KINDS];
} Beside;

typedef struct StepFigures {
    Beside time, bubble; // seconds; share of the stages' time
    Beside *stages;      // (stages) bubbles
} StepFigures;

typedef struct Figures {
    const ScheduleTrace *trace;
    StepFigures *steps; // of each
    StepFigures median;
    double send, features, early;
    int middle; // the step whose time is the median, or next to it
} Figures;

// ---- the command line ----

static void usage(FILE *out) {
    fputs("usage: bifocal plan schedule --trace FILE [options]\n\n"
          "  --trace FILE           timeline of a run with a pipeline: `bifocal train CONFIG --run DIR --trace FILE`\n"
          "  --step N               of this step alone; otherwise medians over all that are in it\n"
          "  --data-place D         whose pipeline: that of this data rank (0)\n"
          "  --tensor-place T       and of this tensor rank (0)\n"
          "  --svg FILE             draw the step in the middle and its simulation, on one scale\n"
          "  --json                 print everything as JSON, step by step\n\n"
          "Prints the time of a step's rows and how much of it each stage waits, as measured and as the same table\n"
          "takes in the simulator: with the measured time of every row, and with that of the rows of its part on\n"
          "average. Gradient norm and update are no rows.\n",
          out);
}

static bool whole_number(double least, double most, const char *option, int64_t *value, Error *error) {
    double number = 0;
    if (!option_number(optarg, least, most, option, &number, error)) return false;
    *value = (int64_t)number;
    return number == (double)*value || error_set(error, ERROR_USAGE, "%s '%s' is not a whole number", option, optarg);
}

static bool take(Arguments *a, int option, Error *error) {
    static const double most_step = 1e12, most_place = 1 << 20;
    int64_t place = 0;
    switch (option) {
    case 't':
        a->path = optarg;
        return true;
    case 's':
        return whole_number(1, most_step, "--step", &a->choice.step, error);
    case 'd':
    case 'n':
        if (!whole_number(0, most_place, option == 'd' ? "--data-place" : "--tensor-place", &place, error))
            return false;
        *(option == 'd' ? &a->choice.data : &a->choice.tensor) = (int)place;
        return true;
    case 'o':
        a->svg = optarg;
        return true;
    case 'j':
        return a->json = true;
    case 'h':
        return a->help = true;
    default:
        return false;
    }
}

static bool parse(Arguments *a, int argc, char **argv, Error *error) {
    static const struct option options[] = {{"trace", required_argument, 0, 't'},
                                            {"step", required_argument, 0, 's'},
                                            {"data-place", required_argument, 0, 'd'},
                                            {"tensor-place", required_argument, 0, 'n'},
                                            {"svg", required_argument, 0, 'o'},
                                            {"json", no_argument, 0, 'j'},
                                            {"help", no_argument, 0, 'h'},
                                            {0}};
    *a = (Arguments){0};
    for (int c; !a->help && (c = option_next(argc, argv, options, "plan schedule --trace", error)) != -1;)
        if (!take(a, c, error)) return false;
    return a->help || optind == argc || error_set(error, ERROR_USAGE, "no argument is expected: '%s'", argv[optind]);
}

// ---- figures ----

static StepFigures figures_of(const TracedStep *step, StageTime *stages, Arena *arena) {
    const Timeline *const lines[KINDS] = {&step->measured, &step->simulated, &step->averaged};
    int count = step->measured.table->shape.stages;
    StepFigures f = {.stages = arena_array(arena, Beside, count)};
    for (int k = 0; k < KINDS; k++) {
        PipelineTime time = timeline_measure(lines[k], stages);
        f.time.of[k] = time.total, f.bubble.of[k] = time.bubble;
        for (int i = 0; i < count; i++) f.stages[i].of[k] = stages[i].bubble;
    }
    return f;
}

// The figure of a step that `which` names: 0 time, 1 bubble, 2 and on that of a stage.
static Beside *figure(StepFigures *f, int which) {
    return which == 0 ? &f->time : which == 1 ? &f->bubble : &f->stages[which - 2];
}

static void take_medians(Figures *f, Arena *arena) {
    int count = f->trace->count, stages = f->trace->table.shape.stages;
    double *values = arena_array(arena, double, count);
    f->median.stages = arena_array(arena, Beside, stages);
    for (int which = 0; which < 2 + stages; which++)
        for (int k = 0; k < KINDS; k++) {
            for (int i = 0; i < count; i++) values[i] = figure(&f->steps[i], which)->of[k];
            figure(&f->median, which)->of[k] = schedule_trace_median(values, count);
        }
    for (int i = 0; i < count; i++) values[i] = f->trace->steps[i].send;
    f->send = schedule_trace_median(values, count);
    for (int i = 0; i < count; i++) values[i] = f->trace->steps[i].features;
    f->features = schedule_trace_median(values, count);
}

static Figures work_out(const ScheduleTrace *t, Arena *arena) {
    Figures f = {.trace = t, .steps = arena_array(arena, StepFigures, t->count)};
    StageTime *stages = arena_array(arena, StageTime, t->table.shape.stages);
    for (int i = 0; i < t->count; i++) {
        f.steps[i] = figures_of(&t->steps[i], stages, arena);
        f.early = fmax(f.early, t->steps[i].early);
    }
    take_medians(&f, arena);
    double want = f.median.time.of[MEASURED];
    for (int i = 1; i < t->count; i++)
        if (fabs(f.steps[i].time.of[MEASURED] - want) < fabs(f.steps[f.middle].time.of[MEASURED] - want)) f.middle = i;
    return f;
}

// ---- what comes out ----

static void print_row(const char *name, const Beside *b, double scale, const char *unit) {
    printf("%-18s %10.4g%-2s", name, scale * b->of[MEASURED], unit);
    for (int k = SIMULATED; k < KINDS; k++) {
        printf(" %10.4g%-2s", scale * b->of[k], unit);
        if (b->of[k] > 0)
            printf(" %6.3f x", b->of[MEASURED] / b->of[k]);
        else
            printf(" %8s", "");
    }
    printf("\n");
}

static void print_text(const Arguments *a, const Figures *f) {
    static const double clocks_apart = 1e-3; // seconds: less is what notes of times cost
    const ScheduleTrace *t = f->trace;
    const PipelineShape *s = &t->table.shape;
    char name[32];
    printf("%s: %s, %d stages, %d microbatches, %d chunk%s a stage; data place %d of %d, tensor place %d of %d\n",
           a->path, pipeline_names[s->kind], s->stages, s->microbatches, s->chunks, s->chunks > 1 ? "s" : "",
           a->choice.data, t->data, a->choice.tensor, t->tensor);
    printf("%d step%s (%" PRId64 " to %" PRId64
           "), medians; simulated with each row's time as measured, and %.3g ms to "
           "send\n\n",
           t->count, t->count > 1 ? "s" : "", t->steps[0].number, t->steps[t->count - 1].number, 1e3 * f->send);
    printf("%-18s %12s %12s %8s %12s %8s\n", "", "measured", "simulated", "apart", "by part", "apart");
    print_row("time of the rows", &f->median.time, 1e3, "ms");
    print_row("bubble", &f->median.bubble, 100, " %");
    for (int i = 0; i < s->stages; i++) {
        snprintf(name, sizeof name, "  stage %d", i);
        print_row(name, &f->median.stages[i], 100, " %");
    }
    if (f->features > 0)
        printf("\nbefore them, not in these figures: features of all pairs, %.4g ms\n", 1e3 * f->features);
    if (t->cut) printf("\n%d steps left aside: the trace has not all of their slices\n", t->cut);
    if (f->early > clocks_apart)
        printf("\nrows begin up to %.3g ms before what they read is done: machines' clocks are apart, or sums of "
               "gradients "
               "take so long, which wait until a row's message has gone\n",
               1e3 * f->early);
}

static json_t *json_of_figure(const Beside *b) {
    json_t *figure = json_object();
    for (int k = 0; k < KINDS; k++) json_object_set_new(figure, kind_names[k], json_real(b->of[k]));
    return figure;
}

static json_t *json_of(const StepFigures *f, int stages) {
    json_t *of_stages = json_array();
    for (int i = 0; i < stages; i++) json_array_append_new(of_stages, json_of_figure(&f->stages[i]));
    return json_pack("{so so so}", "time", json_of_figure(&f->time), "bubble", json_of_figure(&f->bubble), "stages",
                     of_stages);
}

static void print_json(const Figures *f) {
    const ScheduleTrace *t = f->trace;
    const PipelineShape *s = &t->table.shape;
    Buffer text = {0};
    json_t *steps = json_array();
    for (int i = 0; i < t->count; i++) {
        json_t *one = json_of(&f->steps[i], s->stages);
        json_object_set_new(one, "step", json_integer(t->steps[i].number));
        json_object_set_new(one, "send", json_real(t->steps[i].send));
        json_object_set_new(one, "features", json_real(t->steps[i].features));
        json_array_append_new(steps, one);
    }
    json_t *all = json_pack("{ss si si si sf sf si so so}", "schedule", pipeline_names[s->kind], "stages", s->stages,
                            "microbatches", s->microbatches, "chunks", s->chunks, "send", f->send, "clocks_apart",
                            f->early, "steps_cut", t->cut, "median", json_of(&f->median, s->stages), "steps", steps);
    check(json_text(all, &text));
    fwrite(text.data, 1, text.size, stdout);
    json_decref(all);
    buffer_free(&text);
}

static bool draw(const Arguments *a, const Figures *f, Error *error) {
    const TracedStep *step = &f->trace->steps[f->middle];
    const StepFigures *own = &f->steps[f->middle];
    const char *kind = pipeline_names[f->trace->table.shape.kind];
    char titles[2][160];
    Buffer svg = {0};
    snprintf(titles[0], sizeof titles[0], "%s, step %" PRId64 " as it ran: %.4g s, bubble %.1f %%", kind, step->number,
             own->time.of[MEASURED], 100 * own->bubble.of[MEASURED]);
    snprintf(titles[1], sizeof titles[1], "simulated with the same rows' times: %.4g s, bubble %.1f %%",
             own->time.of[SIMULATED], 100 * own->bubble.of[SIMULATED]);
    TimelinePanel panels[] = {{titles[0], &step->measured, NULL}, {titles[1], &step->simulated, NULL}};
    bool ok = timeline_svg(&svg, panels, 2, error) && file_write(a->svg, svg.data, svg.size, error);
    buffer_free(&svg);
    return ok;
}

static bool show(const Arguments *a, Error *error) {
    Arena *arena = arena_new(1 << 18);
    ScheduleTrace trace;
    bool ok = schedule_trace_read(a->path, &a->choice, arena, &trace, error);
    if (ok) {
        Figures f = work_out(&trace, arena);
        ok = !a->svg || draw(a, &f, error);
        if (ok && a->json) print_json(&f);
        if (ok && !a->json) print_text(a, &f);
    }
    arena_free(arena);
    return ok;
}

int plan_trace_main(int argc, char **argv) {
    Arguments a;
    Error error = {0};
    bool ok = parse(&a, argc, argv, &error);
    if (ok && a.help)
        usage(stdout);
    else
        ok = ok && show(&a, &error);
    if (!ok) fprintf(stderr, "bifocal plan schedule: %s\n", error.message);
    return ok ? 0 : (int)error.kind;
}
