/* bifocal eval: tasks over a model; a table on stdout, results.json in the run. */
#include "base/files.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "eval/evaluate.h"
#include "eval/task.h"
#include "kernels/device.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_TASKS = 64 };

typedef struct Arguments {
    EvaluateOptions options;
    const char *model, *out;
    const char *tasks[MOST_TASKS];
    int precision; // 0 f32, 1 bf16
    int device;    // Device
    bool json, log_samples;
} Arguments;

static void usage(FILE *out) {
    Arena *memory = arena_new(1 << 14);
    StringList tasks = task_list(memory);
    fputs("usage: bifocal eval MODEL --task TASK,... [OPTION]...\n\n"
          "  MODEL             a run (its newest checkpoint) or a checkpoint folder\n"
          "  --task TASK,...   shipped tasks, or paths of YAML files; may be given several times\n"
          "  --data PATH       a .jsonl with images beside it, a .txt file or a dataset folder, instead of the tasks' "
          "own\n"
          "  --limit N         the first N samples\n"
          "  --batch N         samples at a time (32); changes no score\n"
          "  --out FILE        also merge the results into this file (a run keeps them in eval/results.json)\n"
          "  --log-samples     one line a sample in samples_TASK.jsonl beside the results\n"
          "  --precision P     f32 (the default) or bf16\n"
          "  --device D        cpu (the default), cuda, or auto: a GPU where there is one\n"
          "  --threads N       0, the default: one per core; changes no score\n"
          "  --json            results as JSON on stdout instead of the table\n\n"
          "shipped tasks:",
          out);
    for (int i = 0; i < tasks.count; i++) fprintf(out, " %s", tasks.items[i]);
    fputs("\nkeys of a task file:\n", out);
    Buffer keys = {0};
    config_help(&task_schema, &keys);
    fputs(keys.data ? keys.data : "", out);
    buffer_free(&keys);
    arena_free(memory);
}

static bool take_tasks(Arguments *a, char *words, Error *error) {
    for (char *word; (word = strsep(&words, ","));) {
        if (!*word) continue;
        if (a->options.task_count == MOST_TASKS) return error_set(error, ERROR_USAGE, "more than %d tasks", MOST_TASKS);
        a->tasks[a->options.task_count++] = word;
    }
    return true;
}

static bool take_option(Arguments *a, int c, char *value, Error *error) {
    double number = 0;
    switch (c) {
    case 't':
        return take_tasks(a, value, error);
    case 'd':
        a->options.data = value;
        return true;
    case 'o':
        a->out = value;
        return true;
    case 's':
        a->log_samples = true;
        return true;
    case 'j':
        a->json = true;
        return true;
    case 'p':
        return option_choice(value, "f32|bf16", "--precision", &a->precision, error);
    case 'v':
        return option_choice(value, DEVICE_CHOICES, "--device", &a->device, error);
    case 'l':
        if (!option_number(value, 1, 1e15, "--limit", &number, error)) return false;
        a->options.limit = (int64_t)number;
        return true;
    case 'b':
        if (!option_number(value, 1, 65536, "--batch", &number, error)) return false;
        a->options.batch = (int64_t)number;
        return true;
    case 'n':
        if (!option_number(value, 0, 4096, "--threads", &number, error)) return false;
        a->options.threads = (int)number;
        return true;
    default:
        return false;
    }
}

static bool parse(Arguments *a, int argc, char **argv, Error *error) {
    static const struct option options[] = {{"task", required_argument, 0, 't'},
                                            {"data", required_argument, 0, 'd'},
                                            {"limit", required_argument, 0, 'l'},
                                            {"batch", required_argument, 0, 'b'},
                                            {"out", required_argument, 0, 'o'},
                                            {"log-samples", no_argument, 0, 's'},
                                            {"precision", required_argument, 0, 'p'},
                                            {"device", required_argument, 0, 'v'},
                                            {"threads", required_argument, 0, 'n'},
                                            {"json", no_argument, 0, 'j'},
                                            {0}};
    *a = (Arguments){.options = {.batch = 32}};
    a->options.tasks = a->tasks;
    for (int c; (c = option_next(argc, argv, options, "eval", error)) != -1;)
        if (c == '?' || !take_option(a, c, optarg, error)) return false;
    if (optind + 1 != argc)
        return error_set(error, ERROR_USAGE, optind < argc ? "one MODEL at a time" : "MODEL is missing");
    a->model = argv[optind];
    return a->options.task_count || error_set(error, ERROR_USAGE, "--task TASK,... is missing");
}

// Where results go: the run's own file, and --out.
static bool write_results(const Arguments *a, const char *folder, const json_t *results, Error *error) {
    bool ok = !a->out || results_write(a->out, results, error);
    if (!ok || !folder) return ok;
    Buffer path = {0};
    buffer_printf(&path, "%s/results.json", folder);
    ok = folder_create(folder, error) && results_write(path.data, results, error);
    buffer_free(&path);
    return ok;
}

static void print_results(const Arguments *a, const json_t *results) {
    if (a->json) {
        json_dumpf(results, stdout, JSON_INDENT(2));
        putchar('\n');
        return;
    }
    Buffer table = {0};
    results_table(results, &table);
    fputs(table.data, stdout);
    buffer_free(&table);
}

// What was found is kept, also where a later task failed (ok: none did); its error is the one that counts.
static bool keep_results(const Arguments *a, const char *folder, const json_t *results, bool ok, Error *error) {
    Error unwritten = {0};
    if (!results) return ok;
    bool written = write_results(a, folder, results, &unwritten);
    if (written)
        print_results(a, results);
    else if (ok)
        *error = unwritten;
    return ok && written;
}

// The folder of a run's results, or NULL for a checkpoint; owned.
static char *results_folder(const char *model) {
    Buffer path = {0};
    buffer_printf(&path, "%s/checkpoints", model);
    bool run = folder_exists(path.data);
    buffer_clear(&path);
    buffer_printf(&path, "%s/eval", model);
    if (run) return path.data;
    buffer_free(&path);
    return NULL;
}

// A misspelt task is told before a model is loaded.
static bool check_tasks(const Arguments *a, Error *error) {
    Arena *memory = arena_new(1 << 14);
    Task task;
    bool ok = true;
    for (int i = 0; ok && i < a->options.task_count; i++) ok = task_read(&task, a->tasks[i], memory, error);
    arena_free(memory);
    return ok;
}

static bool run(Arguments *a, Log *log, Error *error) {
    if (!check_tasks(a, error)) return false;
    DeviceOptions device = {.device = (Device)a->device, .threads = a->options.threads};
    Backend *backend = device_backend_new(&device, log, error);
    if (!backend) return false;
    LoadedModel model = {0};
    json_t *results = NULL;
    char *folder = results_folder(a->model);
    char *beside = strndup(a->out ? a->out : "", a->out ? (size_t)(path_base(a->out) - a->out) : 0);
    if (a->log_samples) a->options.samples = folder ? folder : *beside ? beside : ".";
    bool ok = model_load(&model, backend, a->model, a->precision ? BF16 : F32, log, error) &&
              evaluate(&model, backend, &a->options, &results, log, error);
    ok = keep_results(a, folder, results, ok, error);
    json_decref(results);
    model_unload(&model);
    backend_free(backend);
    free(folder);
    free(beside);
    return ok;
}

int eval_main(int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) return usage(stdout), 0;
    Arguments a;
    Error error = {0};
    Log *log = log_new(LOG_INFO, stderr);
    bool ok = parse(&a, argc, argv, &error) && run(&a, log, &error);
    if (!ok) log_error(log, "%s", error.message);
    log_free(log);
    return ok ? 0 : (int)error.kind;
}
