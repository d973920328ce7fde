/* See evaluate.h. All tasks are read, and checked against the model, before the first runs. */
#include "eval/evaluate.h"
#include "base/clock.h"
#include "base/files.h"
#include "eval/evaluation.h"
#include <stdlib.h>

typedef struct Scorer {
    bool (*run)(Evaluation *, Score *, Error *);
    bool pictures;
    Objective needs; // perplexity: any part with text will do
} Scorer;

static const Scorer scorers[] = {
    [TASK_ZERO_SHOT] = {score_zero_shot, true, OBJECTIVE_CONTRASTIVE},
    [TASK_RETRIEVAL] = {score_retrieval, true, OBJECTIVE_CONTRASTIVE},
    [TASK_CAPTION] = {score_caption, true, OBJECTIVE_CAPTION},
    [TASK_VQA] = {score_vqa, true, OBJECTIVE_CAPTION},
    [TASK_PERPLEXITY] = {score_perplexity, false, OBJECTIVE_LM},
};

static bool check_task(const LoadedModel *model, const Task *task, const char *data, Error *error) {
    Objective needs = scorers[task->type].needs;
    if (!joint_has(model->joint, needs) && !(needs == OBJECTIVE_LM && joint_has(model->joint, OBJECTIVE_CAPTION)))
        return error_set(error, ERROR_USAGE, "task %s needs a model trained with the objective '%s'; this one was not",
                         task->name, objective_names[needs]);
    if (!*data) return error_set(error, ERROR_USAGE, "task %s: say where its data is (--data PATH)", task->name);
    return true;
}

static bool write_samples(const char *folder, const Task *task, const Buffer *lines, Error *error) {
    Buffer path = {0};
    buffer_printf(&path, "%s/samples_%s.jsonl", folder, task->name);
    bool ok = folder_create(folder, error) && file_write(path.data, lines->data ? lines->data : "", lines->size, error);
    buffer_free(&path);
    return ok;
}

static bool run_task(Evaluation *e, const EvaluateOptions *o, json_t *results, Error *error) {
    const Task *task = e->task;
    const Scorer *scorer = &scorers[task->type];
    const char *data = o->data ? o->data : task->data;
    double started = clock_seconds();
    Score score = {0};
    Buffer lines = {0};
    e->samples = o->samples ? &lines : NULL;
    e->examples = examples_open(data, o->limit, scorer->pictures ? task->image_field : NULL, error);
    Template *text = *task->text ? template_parse(task->text, error) : NULL;
    bool ok = e->examples && (text || !*task->text);
    e->text = text;
    e->text_variants = text ? template_variants(text) : 1;
    ok = ok && scorer->run(e, &score, error);
    if (ok) {
        score.original = examples_original(e->examples);
        results_add(results, task, &score, data, examples_root(e->examples));
        log_info(e->log, "%s: %lld samples in %.1f s", task->name, (long long)score.effective,
                 clock_seconds() - started);
    }
    ok = ok && (!o->samples || write_samples(o->samples, task, &lines, error));
    e->samples = NULL;
    template_free(text);
    examples_close(e->examples);
    buffer_free(&lines);
    return ok || error_prefix(error, "task %s", task->name);
}

bool evaluate(LoadedModel *model, Backend *backend, const EvaluateOptions *o, json_t **results, Log *log,
              Error *error) {
    *results = NULL;
    if (!model->tokenizer) return error_set(error, ERROR_FAILED, "%s: there is no tokenizer.model in it", model->path);
    if (!tokenizer_check_marks(model->tokenizer, error)) return error_prefix(error, "%s", model->path);
    Arena *strings = arena_new(1 << 16), *scratch = arena_new(1 << 20);
    Task *tasks = arena_array(strings, Task, o->task_count + 1);
    json_t *all = results_new(model->path, tokenizer_hash(model->tokenizer), model->step, o->batch);
    int done = 0;
    Evaluation e = {.model = model,
                    .tape = tape_new(backend, false),
                    .threads = threads_new(o->threads),
                    .log = log,
                    .batch = o->batch,
                    .memory = scratch};
    bool ok = true;
    for (int i = 0; ok && i < o->task_count; i++)
        ok = task_read(&tasks[i], o->tasks[i], strings, error) &&
             check_task(model, &tasks[i], o->data ? o->data : tasks[i].data, error);
    for (; ok && done < o->task_count; done += ok) {
        e.task = &tasks[done];
        ok = run_task(&e, o, all, error);
    }
    threads_free(e.threads);
    tape_free(e.tape);
    arena_free(scratch);
    arena_free(strings);
    if (done)
        *results = all;
    else
        json_decref(all);
    return ok;
}
