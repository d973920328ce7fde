/* bifocal plan schedule: what a pipeline schedule costs in time and memory, and a picture of it. */
#include "base/files.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "train/schedule_svg.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double MOST_TIME = 1e12;

typedef struct Arguments {
    PipelineShape shape;
    const char *costs[3]; // of forward, input gradient, weight gradient, as written
    double send;
    const char *svg;
    bool json, help;
} Arguments;

typedef struct Outcome {
    PipelineTable table;
    Timeline line;
    PipelineTime time;
    StageTime *stages; // (stages)
    StagePeak *peaks;  // (stages)
} Outcome;

static const char *const cost_names[3] = {"--forward", "--input-gradient", "--weight-gradient"};

static void usage(FILE *out) {
    fputs(
        "usage: bifocal plan schedule --stages P --microbatches M --schedule S [options]\n"
        "       bifocal plan schedule --trace FILE [options]\n\n"
        "  --stages P             stages of the pipeline\n"
        "  --microbatches M       microbatches of a step that go through it\n"
        "  --schedule S           gpipe, 1f1b, interleaved, zb-h1, zb-h2 or zb-v\n"
        "  --chunks C             parts of the model a stage holds: interleaved 2 (default) or more, zb-v 2, else 1\n"
        "  --forward T            time of one microbatch in a stage (1), shared evenly by its chunks; or P x C times\n"
        "  --input-gradient T     with commas, one for each part of the model in its order; any unit\n"
        "  --weight-gradient T\n"
        "  --send T               from the end of a part to the start of the next on another stage (0)\n"
        "  --svg FILE             draw the timeline\n"
        "  --json                 print everything as JSON, every row with its times\n"
        "  --trace FILE           the pipeline of a real run beside its simulation: see --trace FILE --help\n\n"
        "Prints how long a step takes, how much of it each stage waits, and how many microbatches it holds.\n",
        out);
}

// ---- the command line ----

static bool whole_number(const char *text, int most, const char *option, int *value, Error *error) {
    double number = 0;
    if (!option_number(text, 1, most, option, &number, error)) return false;
    *value = (int)number;
    return number == *value || error_set(error, ERROR_USAGE, "%s '%s' is not a whole number", option, text);
}

static bool take(Arguments *a, int option, Error *error) {
    switch (option) {
    case 'p':
        return whole_number(optarg, MOST_STAGES, "--stages", &a->shape.stages, error);
    case 'm':
        return whole_number(optarg, MOST_MICROBATCHES, "--microbatches", &a->shape.microbatches, error);
    case 'c':
        return whole_number(optarg, MOST_CHUNKS, "--chunks", &a->shape.chunks, error);
    case 's':
        return pipeline_kind(optarg, &a->shape.kind, error);
    case 'F':
        a->costs[0] = optarg;
        return true;
    case 'B':
        a->costs[1] = optarg;
        return true;
    case 'W':
        a->costs[2] = optarg;
        return true;
    case 'S':
        return option_number(optarg, 0, MOST_TIME, "--send", &a->send, error);
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
    static const struct option options[] = {{"stages", required_argument, 0, 'p'},
                                            {"microbatches", required_argument, 0, 'm'},
                                            {"schedule", required_argument, 0, 's'},
                                            {"chunks", required_argument, 0, 'c'},
                                            {"forward", required_argument, 0, 'F'},
                                            {"input-gradient", required_argument, 0, 'B'},
                                            {"weight-gradient", required_argument, 0, 'W'},
                                            {"send", required_argument, 0, 'S'},
                                            {"svg", required_argument, 0, 'o'},
                                            {"json", no_argument, 0, 'j'},
                                            {"help", no_argument, 0, 'h'},
                                            {0}};
    *a = (Arguments){.shape.kind = PIPELINES, .costs = {"1", "1", "1"}};
    for (int c; !a->help && (c = option_next(argc, argv, options, "plan schedule", error)) != -1;)
        if (!take(a, c, error)) return false;
    if (a->help) return true;
    if (optind < argc) return error_set(error, ERROR_USAGE, "no argument is expected: '%s'", argv[optind]);
    const char *missing = !a->shape.stages             ? "--stages"
                          : !a->shape.microbatches     ? "--microbatches"
                          : a->shape.kind == PIPELINES ? "--schedule"
                                                       : NULL;
    if (missing) return error_set(error, ERROR_USAGE, "%s is missing; see `bifocal plan schedule --help`", missing);
    a->shape.chunks = pipeline_chunks(a->shape.kind, a->shape.chunks);
    return pipeline_shape_valid(&a->shape, error);
}

// One time, shared by the chunks of a stage, or one of each part. (parts), in the arena; NULL with the error.
static const double *read_costs(const Arguments *a, int which, Arena *arena, Error *error) {
    int parts = a->shape.stages * a->shape.chunks, count = 0;
    double *times = arena_array(arena, double, parts);
    char *text = arena_string(arena, a->costs[which]);
    for (char *next = text; next; count++) {
        char *word = next;
        double time = 0;
        if ((next = strchr(word, ','))) *next++ = 0;
        if (!option_number(word, 0, MOST_TIME, cost_names[which], &time, error)) return NULL;
        if (count < parts) times[count] = time;
    }
    if (count != 1 && count != parts) {
        error_set(error, ERROR_USAGE, "%s has %d times: give 1, or %d, one for each part of the model",
                  cost_names[which], count, parts);
        return NULL;
    }
    double each = times[0] / a->shape.chunks;
    for (int i = 0; count == 1 && i < parts; i++) times[i] = each;
    return times;
}

// ---- what comes out ----

static bool work_out(const Arguments *a, Arena *arena, Outcome *o, Error *error) {
    const double *times[3];
    for (int i = 0; i < 3; i++)
        if (!(times[i] = read_costs(a, i, arena, error))) return false;
    PipelineCosts costs = {times[0], times[1], times[2], .send = a->send};
    o->stages = arena_array(arena, StageTime, a->shape.stages);
    o->peaks = arena_array(arena, StagePeak, a->shape.stages);
    if (!pipeline_make(&a->shape, arena, &o->table, error) || !pipeline_check(&o->table, o->peaks, error)) return false;
    o->line = timeline_simulate(&o->table, &costs, arena);
    o->time = timeline_measure(&o->line, o->stages);
    return true;
}

static void print_text(const Outcome *o) {
    const PipelineShape *s = &o->table.shape;
    printf("%s: %d stage%s, %d microbatch%s, %d chunk%s a stage\n\n", pipeline_names[s->kind], s->stages,
           s->stages > 1 ? "s" : "", s->microbatches, s->microbatches > 1 ? "es" : "", s->chunks,
           s->chunks > 1 ? "s" : "");
    printf("  %-22s %12.6g  the busiest stage works for %.6g of it\n", "time of a step", o->time.total, o->time.work);
    printf("  %-22s %11.2f%%  of the stages' time in a step\n", "bubble", 100 * o->time.bubble);
    printf("  %-22s %11.2f%%  where the next step may begin on a stage while others still finish this one\n",
           "bubble, overlapped", 100 * o->time.rate);
    printf(
        "\nstage        works     waits    holds  of them whole   (microbatches; the others: for weight gradients)\n");
    for (int i = 0; i < s->stages; i++)
        printf("%5d %12.6g %8.2f%% %8.6g %14.6g\n", i, o->stages[i].busy, 100 * o->stages[i].bubble,
               (double)o->peaks[i].live / s->chunks, (double)o->peaks[i].whole / s->chunks);
}

static json_t *json_of_stage(const Outcome *o, int stage) {
    json_t *rows = json_array();
    for (int k = 0; k < o->table.counts[stage]; k++) {
        const Slot *row = &o->table.rows[stage][k];
        const Span *span = &o->line.spans[stage][k];
        json_array_append_new(rows,
                              json_pack("{ss si si sf sf}", "work", work_names[row->work], "microbatch",
                                        row->microbatch, "chunk", row->chunk, "begin", span->begin, "end", span->end));
    }
    const StageTime *time = &o->stages[stage];
    return json_pack("{sf sf sf sf si si so}", "begin", time->span.begin, "end", time->span.end, "work", time->busy,
                     "bubble", time->bubble, "live_chunks", o->peaks[stage].live, "whole_chunks", o->peaks[stage].whole,
                     "rows", rows);
}

static void print_json(const Outcome *o) {
    const PipelineShape *s = &o->table.shape;
    Buffer text = {0};
    json_t *stages = json_array();
    for (int i = 0; i < s->stages; i++) json_array_append_new(stages, json_of_stage(o, i));
    json_t *all = json_pack("{ss si si sf sf sf sf so}", "schedule", pipeline_names[s->kind], "microbatches",
                            s->microbatches, "chunks", s->chunks, "time", o->time.total, "work", o->time.work, "bubble",
                            o->time.bubble, "bubble_overlapped", o->time.rate, "stages", stages);
    check(json_text(all, &text));
    fwrite(text.data, 1, text.size, stdout);
    json_decref(all);
    buffer_free(&text);
}

static bool draw(const Arguments *a, const Outcome *o, Error *error) {
    const PipelineShape *s = &a->shape;
    char title[160];
    Buffer svg = {0};
    snprintf(title, sizeof title, "%s: %d stages, %d microbatches; step %.6g, bubble %.1f %%", pipeline_names[s->kind],
             s->stages, s->microbatches, o->time.total, 100 * o->time.bubble);
    bool ok = timeline_svg(&svg, &(TimelinePanel){title, &o->line, o->peaks}, 1, error) &&
              file_write(a->svg, svg.data, svg.size, error);
    buffer_free(&svg);
    return ok;
}

static bool has_trace(int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (!strncmp(argv[i], "--trace", 7)) return true;
    return false;
}

int plan_schedule_main(int argc, char **argv) {
    if (has_trace(argc, argv)) return plan_trace_main(argc, argv);
    Arguments a;
    Outcome o = {0};
    Error error = {0};
    Arena *arena = arena_new(1 << 16);
    bool ok = parse(&a, argc, argv, &error);
    if (ok && a.help)
        usage(stdout);
    else
        ok = ok && work_out(&a, arena, &o, &error) && (!a.svg || draw(&a, &o, &error));
    if (!ok)
        fprintf(stderr, "bifocal plan schedule: %s\n", error.message);
    else if (!a.help)
        (a.json ? print_json : print_text)(&o);
    arena_free(arena);
    return ok ? 0 : (int)error.kind;
}
