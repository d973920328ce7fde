/* bifocal export: a trained model as one folder of whole files, whatever number of ranks wrote it. */
#include "base/files.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "fusion/model_files.h"
#include "kernels/cpu/cpu.h"
#include <stdio.h>

static const char USAGE[] =
    "usage: bifocal export MODEL --out DIR\n\n"
    "  MODEL                  a run (its newest checkpoint) or a checkpoint folder, of any number of processes\n"
    "  --out DIR              a new folder: model.safetensors (f32, one file), model.json, tokenizer.model\n\n"
    "What training alone needs (moments, state) stays behind; eval, generate and export read the folder as a MODEL.\n";

typedef struct Request {
    const char *model, *out;
    bool help;
} Request;

static bool parse(int argc, char **argv, Request *r, Error *error) {
    static const struct option options[] = {{"out", required_argument, 0, 'o'}, {"help", no_argument, 0, 'h'}, {0}};
    for (int c; (c = option_next(argc, argv, options, "export", error)) != -1;) {
        if ((r->help = c == 'h')) return true;
        if (c == '?') return false;
        r->out = optarg;
    }
    if (argc - optind != 1) return error_set(error, ERROR_USAGE, "one MODEL is wanted; see `bifocal export --help`");
    if (!r->out) return error_set(error, ERROR_USAGE, "--out DIR is missing; see `bifocal export --help`");
    r->model = argv[optind];
    if (!file_exists(r->out) && !folder_exists(r->out)) return true;
    return error_set(error, ERROR_USAGE, "%s exists already; name a folder that does not, or remove it", r->out);
}

// Aside, then into its place: the folder is whole or not there.
static bool write_model(const LoadedModel *m, const char *out, Error *error) {
    Buffer aside = {0};
    Error ignored;
    buffer_printf(&aside, "%s.tmp", out);
    bool ok = folder_remove(aside.data, error) && folder_create(aside.data, error) &&
              model_save(aside.data, m->joint, m->tokenizer, error) && folder_sync(aside.data, error) &&
              path_rename(aside.data, out, error);
    if (!ok) folder_remove(aside.data, &ignored);
    buffer_free(&aside);
    return ok;
}

static bool export_model(const Request *r, Log *log, Error *error) {
    LoadedModel m = {0};
    Backend *backend = cpu_backend_new(0, NULL, log);
    bool ok = model_load(&m, backend, r->model, F32, log, error);
    if (ok) ok = write_model(&m, r->out, error);
    if (ok) log_info(log, "%s of step %lld", m.path, (long long)m.step);
    model_unload(&m);
    backend_free(backend);
    return ok;
}

int export_main(int argc, char **argv) {
    Request r = {0};
    Error error = {0};
    Log *log = log_new(LOG_INFO, stderr);
    bool ok = parse(argc, argv, &r, &error);
    if (ok && r.help)
        fputs(USAGE, stdout);
    else if (ok && (ok = export_model(&r, log, &error)))
        printf("%s\n", r.out);
    if (!ok) log_error(log, "%s", error.message);
    log_free(log);
    return ok ? 0 : (int)error.kind;
}
