/* bifocal plan stages: what the units of a run's model cost, how they are cut into the stages of a pipeline, and what
 * that gives beside equal numbers of blocks and one process. */
#include "base/files.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "train/schedule_svg.h"
#include "train/split_plan.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double GIB = 0x1p30, MIB = 0x1p20, GIGA = 1e9, TERA = 1e12, MILLI = 1e-3, MOST = 1e12;

typedef struct Arguments {
    ConfigWords words;
    double memory, flops, bandwidth, send; // GiB, TFLOP/s, GB/s, ms; 0: not given
    const char *svg;
    bool measure, json, help;
} Arguments;

typedef struct Outcome {
    TrainConfig config;
    Layout layout;
    SplitOptions options;
    SplitPlan plan, even; // even: equal numbers of blocks
    StagePeak *peaks;     // (stages)
} Outcome;

static void usage(FILE *out) {
    fputs("usage: bifocal plan stages CONFIG [section.key=value]... --stages P [options]\n\n"
          "  CONFIG              YAML file of a training run; its data need not be there\n"
          "  section.key=value   as for bifocal train\n"
          "  --stages P          parallel.pipeline\n"
          "  --schedule S        parallel.schedule\n"
          "  --chunks V          parallel.chunks\n"
          "  --microbatches M    train.microbatches: of a step, over all data ranks\n"
          "  --memory GIB        that a stage may take; otherwise parallel.stage_memory\n"
          "  --flops TFLOPS      that matrix products reach on a rank, in TFLOP/s\n"
          "  --bandwidth GBS     of its memory, in GB/s\n"
          "  --measure           measure units on this machine instead of modelling them\n"
          "  --send MS           from the end of a part to the start of the next on another stage (0)\n"
          "  --svg FILE          draw both timelines, by cost and by equal numbers of blocks\n"
          "  --json              print everything as JSON\n\n"
          "Prints what every unit of the model costs on the microbatches of the run, the split over stages that keeps\n"
          "the busiest stage shortest, and time and memory of every stage. What it finds is what parallel.split: cost\n"
          "(or measured) does; the last line says it in words that parallel.split takes too.\n",
          out);
}

// ---- the command line ----

static bool take(Arguments *a, int option, Arena *arena, Error *error) {
    switch (option) {
    case 'p':
        return config_words_set(&a->words, arena_printf(arena, "parallel.pipeline=%s", optarg), error);
    case 's':
        return config_words_set(&a->words, arena_printf(arena, "parallel.schedule=%s", optarg), error);
    case 'c':
        return config_words_set(&a->words, arena_printf(arena, "parallel.chunks=%s", optarg), error);
    case 'm':
        return config_words_set(&a->words, arena_printf(arena, "train.microbatches=%s", optarg), error);
    case 'G':
        return option_number(optarg, 1e-6, MOST, "--memory", &a->memory, error);
    case 'f':
        return option_number(optarg, 1e-6, MOST, "--flops", &a->flops, error);
    case 'b':
        return option_number(optarg, 1e-6, MOST, "--bandwidth", &a->bandwidth, error);
    case 'S':
        return option_number(optarg, 0, MOST, "--send", &a->send, error);
    case 'o':
        a->svg = optarg;
        return true;
    case 'M':
        return a->measure = true;
    case 'j':
        return a->json = true;
    case 'h':
        return a->help = true;
    default:
        return false;
    }
}

static bool parse(Arguments *a, int argc, char **argv, Arena *arena, Error *error) {
    static const struct option options[] = {{"stages", required_argument, 0, 'p'},
                                            {"schedule", required_argument, 0, 's'},
                                            {"chunks", required_argument, 0, 'c'},
                                            {"microbatches", required_argument, 0, 'm'},
                                            {"memory", required_argument, 0, 'G'},
                                            {"flops", required_argument, 0, 'f'},
                                            {"bandwidth", required_argument, 0, 'b'},
                                            {"measure", no_argument, 0, 'M'},
                                            {"send", required_argument, 0, 'S'},
                                            {"svg", required_argument, 0, 'o'},
                                            {"json", no_argument, 0, 'j'},
                                            {"help", no_argument, 0, 'h'},
                                            {0}};
    *a = (Arguments){0};
    for (int c; !a->help && (c = option_next(argc, argv, options, "plan stages", error)) != -1;)
        if (!take(a, c, arena, error)) return false;
    if (a->help) return true;
    if (!config_words(&a->words, argc, argv, error)) return false;
    return a->words.config || error_set(error, ERROR_USAGE, "CONFIG is missing; see `bifocal plan stages --help`");
}

// ---- the plan ----

static bool read_run(const Arguments *a, Outcome *o, Arena *arena, Error *error) {
    TrainConfig *c = &o->config;
    if (!train_config_read_planned(c, a->words.config, a->words.settings, a->words.count, arena, error)) return false;
    const int64_t *size = c->parallel.size;
    int64_t ranks = (size[MESH_DATA] ? size[MESH_DATA] : 1) * size[MESH_PIPELINE] * size[MESH_TENSOR];
    if (size[MESH_PIPELINE] < 2)
        return error_set(error, ERROR_USAGE, "one stage is no pipeline; give --stages P, or parallel.pipeline=P");
    return layout_resolve(c, (int)ranks, &o->layout, error);
}

static bool work_out(const Arguments *a, Outcome *o, Arena *arena, Error *error) {
    if (!read_run(a, o, arena, error)) return false;
    const PipelineShape *shape = &o->layout.pipeline;
    MachineRates rates = machine_rates(&o->config);
    o->options = (SplitOptions){.shape = *shape,
                                .measured = a->measure,
                                .threads = (int)o->config.threads,
                                .rates = {a->flops > 0 ? a->flops * TERA : rates.flops,
                                          a->bandwidth > 0 ? a->bandwidth * GIGA : rates.bandwidth},
                                .memory = a->memory > 0 ? a->memory * GIB : (double)o->config.parallel.stage_memory,
                                .send = a->send * MILLI};
    if (!split_plan_find(&o->config, &o->layout, &o->options, arena, &o->plan, error)) return false;
    int parts = shape->stages * shape->chunks, *first = arena_array(arena, int, parts + 1);
    split_evenly(o->plan.costs.list, o->plan.costs.units, parts, first);
    split_plan_at(&o->config, &o->layout, &o->plan, first, arena, &o->even);
    o->peaks = arena_array(arena, StagePeak, shape->stages);
    return pipeline_check(&o->plan.table, o->peaks, error);
}

// ---- in words ----

// Share of the microbatches that have something for a unit.
static double share_of(const UnitCosts *c, int unit) {
    int busy = 0;
    for (int i = 0; i < c->pieces; i++) busy += unit_time(c, unit, i).forward > 0;
    return (double)busy / c->pieces;
}

// Units from `unit` on that differ in nothing but their place.
static int alike(const UnitCosts *c, int unit) {
    const UnitCost *a = &c->mean[unit];
    int end = unit + 1;
    for (; end < c->units && c->list[end].kind == c->list[unit].kind; end++) {
        const UnitCost *b = &c->mean[end];
        if (a->forward != b->forward || a->input != b->input || a->weight != b->weight ||
            a->parameters != b->parameters || a->activations != b->activations)
            break;
    }
    return end - unit;
}

typedef struct TimeText {
    char text[32];
} TimeText;

static TimeText time_text(double seconds) {
    TimeText t;
    bool whole = seconds >= 10;
    snprintf(t.text, sizeof t.text, "%.4g %s", whole ? seconds : 1e3 * seconds, whole ? "s" : "ms");
    return t;
}

static void print_units(const Outcome *o) {
    const UnitCosts *c = &o->plan.costs;
    char name[96];
    printf(
        "of a microbatch, each      %s forward        input       weight  microbatches    parameters   activations\n",
        o->plan.features > 0 ? "features +" : "          ");
    for (int u = 0, count; u < c->units; u += count) {
        const UnitCost *m = &c->mean[u];
        count = alike(c, u);
        if (count > 1)
            snprintf(name, sizeof name, "%s .. %d", c->list[u].name, c->list[u + count - 1].layer);
        else
            snprintf(name, sizeof name, "%s", c->list[u].name);
        printf("%-32s %12s %12s %12s %12.4g%% %9.4g MiB %9.4g MiB\n", name, time_text(m->forward).text,
               time_text(m->input).text, time_text(m->weight).text, 100 * share_of(c, u), m->parameters / MIB,
               m->activations / MIB);
    }
}

// "vision.patches .. vision.blocks.7 (9 units)"
static void describe_part(const SplitPlan *p, int part, Buffer *out) {
    int first = p->first[part], end = p->first[part + 1];
    buffer_text(out, p->costs.list[first].name);
    if (end - first > 1) buffer_printf(out, " .. %s (%d)", p->costs.list[end - 1].name, end - first);
}

static void print_stages(const SplitPlan *p) {
    const PipelineShape *s = &p->table.shape;
    printf("stage       works    waits   parameters   activations  units\n");
    for (int i = 0; i < s->stages; i++) {
        const StagePlan *stage = &p->stages[i];
        Buffer units = {0};
        for (int c = 0; c < s->chunks; c++) {
            if (c) buffer_text(&units, "; ");
            describe_part(p, pipeline_part(s, i, c), &units);
        }
        printf("%5d %11s %7.2f%% %8.4g GiB %9.4g GiB  %s\n", i, time_text(stage->time).text, 100 * stage->bubble,
               stage->parameters / GIB, stage->tapes / GIB, units.data);
        buffer_free(&units);
    }
}

// As parallel.split takes it.
static void write_split(const SplitPlan *p, Buffer *out) {
    int parts = p->table.shape.stages * p->table.shape.chunks;
    for (int part = 1; part < parts; part++)
        buffer_printf(out, "%s%s", part > 1 ? "," : "", p->costs.list[p->first[part]].name);
}

static void print_text(const Arguments *a, const Outcome *o) {
    const PipelineShape *s = &o->plan.table.shape;
    const SplitPlan *p = &o->plan, *even = &o->even;
    Buffer split = {0};
    printf("%s: %d units in %d parts on %d stages, %s, %d microbatches of a data rank; ", a->words.config,
           p->costs.units, s->stages * s->chunks, s->stages, pipeline_names[s->kind], s->microbatches);
    if (o->options.measured)
        printf("measured on this machine\n\n");
    else
        printf("modelled at %.4g TFLOP/s and %.4g GB/s\n\n", o->options.rates.flops / TERA,
               o->options.rates.bandwidth / GIGA);
    print_units(o);
    printf("\nby cost: a step takes %s, %.2f%% of the stages' time is waiting\n", time_text(p->total).text,
           100 * p->bubble);
    if (p->features > 0)
        printf("(%s of it for the features of all pairs, before the other rows)\n", time_text(p->features).text);
    print_stages(p);
    printf("\nby equal numbers of blocks: %s, %.2f%% waiting; by cost it is %.2f x as fast\n",
           time_text(even->total).text, 100 * even->bubble, even->total / p->total);
    print_stages(even);
    printf("\none process alone: %s; %d stages are %.2f x as fast\n", time_text(p->alone).text, s->stages,
           p->alone / p->total);
    write_split(p, &split);
    printf("parallel.split: %s\n", split.data);
    buffer_free(&split);
}

// ---- for machines ----

static json_t *json_of_unit(const UnitCosts *c, int unit) {
    const UnitCost *m = &c->mean[unit];
    return json_pack("{ss sf sf sf sf sf sf sf}", "name", c->list[unit].name, "forward", m->forward, "input", m->input,
                     "weight", m->weight, "microbatches", share_of(c, unit), "parameters", m->parameters, "activations",
                     m->activations, "work", m->work);
}

static json_t *json_of_plan(const SplitPlan *p) {
    const PipelineShape *s = &p->table.shape;
    json_t *stages = json_array(), *first = json_array();
    Buffer split = {0};
    write_split(p, &split);
    for (int i = 0; i <= s->stages * s->chunks; i++) json_array_append_new(first, json_integer(p->first[i]));
    for (int i = 0; i < s->stages; i++)
        json_array_append_new(stages,
                              json_pack("{sf sf sf sf}", "work", p->stages[i].time, "bubble", p->stages[i].bubble,
                                        "parameters", p->stages[i].parameters, "activations", p->stages[i].tapes));
    json_t *all = json_pack("{sf sf sf so so ss}", "time", p->total, "bubble", p->bubble, "features", p->features,
                            "first", first, "stages", stages, "split", split.data);
    buffer_free(&split);
    return all;
}

static void print_json(const Arguments *a, const Outcome *o) {
    const PipelineShape *s = &o->plan.table.shape;
    json_t *units = json_array();
    Buffer text = {0};
    (void)a;
    for (int u = 0; u < o->plan.costs.units; u++) json_array_append_new(units, json_of_unit(&o->plan.costs, u));
    json_t *all = json_pack("{ss si si si sb so sf so so}", "schedule", pipeline_names[s->kind], "stages_count",
                            s->stages, "chunks", s->chunks, "microbatches", s->microbatches, "measured",
                            (int)o->options.measured, "units", units, "alone", o->plan.alone, "by_cost",
                            json_of_plan(&o->plan), "by_blocks", json_of_plan(&o->even));
    check(json_text(all, &text));
    fwrite(text.data, 1, text.size, stdout);
    json_decref(all);
    buffer_free(&text);
}

static bool draw(const Arguments *a, const Outcome *o, Error *error) {
    const SplitPlan *plans[2] = {&o->plan, &o->even};
    static const char *const names[2] = {"by cost", "by equal numbers of blocks"};
    char titles[2][160];
    TimelinePanel panels[2];
    Buffer svg = {0};
    for (int i = 0; i < 2; i++) {
        snprintf(titles[i], sizeof titles[i], "%s, split %s: step %.4g ms, bubble %.1f %%",
                 pipeline_names[o->plan.table.shape.kind], names[i], 1e3 * plans[i]->total, 100 * plans[i]->bubble);
        panels[i] = (TimelinePanel){titles[i], &plans[i]->line, o->peaks};
    }
    bool ok = timeline_svg(&svg, panels, 2, error) && file_write(a->svg, svg.data, svg.size, error);
    buffer_free(&svg);
    return ok;
}

int plan_stages_main(int argc, char **argv) {
    Arguments a;
    Error error = {0};
    Arena *arena = arena_new(1 << 20);
    Outcome *o = arena_array(arena, Outcome, 1);
    bool ok = parse(&a, argc, argv, arena, &error);
    if (ok && a.help)
        usage(stdout);
    else
        ok = ok && work_out(&a, o, arena, &error) && (!a.svg || draw(&a, o, &error));
    if (!ok)
        fprintf(stderr, "bifocal plan stages: %s\n", error.message);
    else if (!a.help)
        (a.json ? print_json : print_text)(&a, o);
    arena_free(arena);
    return ok ? 0 : (int)error.kind;
}
