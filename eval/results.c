/* See results.h. Keys are those of lm-evaluation-harness ("acc,none", "acc_stderr,none"), so that its readers work;
 * what it does not know ("acc_chance,none") stands beside them. */
#include "eval/results.h"
#include "base/clock.h"
#include "base/files.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

static const char FILTER[] = "none"; // answers are scored as they are

void score_add(Score *s, Metric m) {
    check(s->count < MOST_METRICS);
    s->metrics[s->count++] = m;
}

static json_t *number_or(double value, json_t *otherwise) {
    if (!isfinite(value)) return otherwise;
    json_decref(otherwise);
    return json_real(value);
}

static json_t *section(json_t *object, const char *key) {
    json_t *value = json_object_get(object, key);
    if (!json_is_object(value)) {
        value = json_object();
        json_object_set_new(object, key, value);
    }
    return value;
}

json_t *results_new(const char *model, uint64_t tokenizer, int64_t step, int64_t batch) {
    char hash[20], date[32];
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)tokenizer);
    clock_date(date);
    return json_pack("{s:{}, s:{}, s:{}, s:{}, s:{}, s:{}, s:{s:s, s:s, s:I, s:s, s:I, s:s}, s:s}", "results",
                     "configs", "versions", "n-shot", "higher_is_better", "n-samples", "config", "model", "bifocal",
                     "model_args", model, "step", (json_int_t)step, "tokenizer_hash", hash, "batch_size",
                     (json_int_t)batch, "bifocal_version", BIFOCAL_VERSION, "date", date);
}

static json_t *task_json(const Task *t, const char *data, const char *root) {
    static const char *const types[] = {"zero_shot", "retrieval", "caption", "vqa", "perplexity"};
    json_t *o = json_pack("{s:s, s:s, s:s, s:s}", "task", t->name, "type", types[t->type], "description",
                          t->description, "data", data);
    if (root) json_object_set_new(o, "dataset_root", json_string(root));
    if (*t->text) json_object_set_new(o, "text", json_string(t->text));
    if (t->type == TASK_ZERO_SHOT) {
        json_t *templates = json_array();
        for (int i = 0; i < t->templates.count; i++)
            json_array_append_new(templates, json_string(t->templates.items[i]));
        json_object_set_new(o, "class_field", json_string(t->class_field));
        json_object_set_new(o, "classes", json_string(t->classes));
        json_object_set_new(o, "templates", templates);
    }
    if (t->type == TASK_VQA) {
        json_object_set_new(o, "question", json_string(t->question));
        json_object_set_new(o, "answer", json_string(t->answer));
    }
    if (t->type == TASK_VQA || t->type == TASK_CAPTION)
        json_object_set_new(o, "generation_kwargs",
                            json_pack("{s:b, s:I}", "do_sample", 0, "max_gen_toks", (json_int_t)t->max_tokens));
    return o;
}

void results_add(json_t *results, const Task *t, const Score *s, const char *data, const char *root) {
    json_t *result = json_pack("{s:s}", "alias", t->name), *higher = json_object();
    for (int i = 0; i < s->count; i++) {
        const Metric *m = &s->metrics[i];
        char key[80];
        snprintf(key, sizeof key, "%s,%s", m->name, FILTER);
        json_object_set_new(result, key, number_or(m->value, json_null()));
        snprintf(key, sizeof key, "%s_stderr,%s", m->name, FILTER);
        json_object_set_new(result, key, number_or(m->error, json_string("N/A")));
        snprintf(key, sizeof key, "%s_chance,%s", m->name, FILTER);
        if (isfinite(m->chance)) json_object_set_new(result, key, json_real(m->chance));
        json_object_set_new(higher, m->name, json_boolean(m->higher_is_better));
    }
    json_object_set_new(section(results, "results"), t->name, result);
    json_object_set_new(section(results, "higher_is_better"), t->name, higher);
    json_object_set_new(section(results, "configs"), t->name, task_json(t, data, root));
    json_object_set_new(section(results, "versions"), t->name, json_integer(t->version));
    json_object_set_new(section(results, "n-shot"), t->name, json_integer(0));
    json_object_set_new(
        section(results, "n-samples"), t->name,
        json_pack("{s:I, s:I}", "original", (json_int_t)s->original, "effective", (json_int_t)s->effective));
}

// Puts `from` into `into`, task by task, key by key: what `from` has replaces what was there.
static void merge(json_t *into, const json_t *from) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)from, key, value) {
        json_t *there = json_object_get(into, key);
        if (json_is_object(value) && json_is_object(there) && strcmp(key, "config") != 0)
            json_object_update(there, value); // a task's entry is replaced whole
        else
            json_object_set_new(into, key, json_deep_copy(value));
    }
}

bool results_write(const char *path, const json_t *results, Error *error) {
    json_t *all = file_exists(path) ? json_read_file(path, error) : json_object();
    if (!all) return false;
    bool ok = !json_object_size(all) || json_is_object(json_object_get(all, "results"));
    if (!ok) error_set(error, ERROR_USAGE, "%s: not a results file; move it away or choose another with --out", path);
    if (ok) merge(all, results);
    ok = ok && json_write_file(path, all, error);
    json_decref(all);
    return ok;
}

static void cell(Buffer *out, const json_t *value) {
    if (json_is_number(value))
        buffer_printf(out, "|%8.4f", json_number_value(value));
    else
        buffer_text(out, value ? "|     N/A" : "|        ");
}

static void metric_row(Buffer *out, const char *label, int64_t version, const json_t *result, const json_t *higher,
                       const char *key) {
    const char *comma = strchr(key, ',');
    int size = (int)(comma - key);
    char other[96];
    snprintf(other, sizeof other, "%.*s", size, key);
    bool up = !json_is_false(json_object_get(higher, other));
    buffer_printf(out, "|%-18s|%7lld|%-6s|%6d|%-22.*s|%s", label, (long long)version, comma + 1, 0, size, key,
                  up ? "↑" : "↓");
    cell(out, json_object_get(result, key));
    snprintf(other, sizeof other, "%.*s_stderr%s", size, key, comma);
    buffer_text(out, "|±");
    cell(out, json_object_get(result, other));
    snprintf(other, sizeof other, "%.*s_chance%s", size, key, comma);
    cell(out, json_object_get(result, other));
    buffer_text(out, "|\n");
}

void results_table(const json_t *results, Buffer *out) {
    buffer_text(out,
                "|Tasks             |Version|Filter|n-shot|Metric                | |   Value| |  Stderr|  Chance|\n"
                "|------------------|------:|------|-----:|----------------------|-|-------:|-|-------:|-------:|\n");
    const char *task, *key;
    json_t *result, *value;
    json_object_foreach(json_object_get(results, "results"), task, result) {
        const json_t *higher = json_object_get(json_object_get(results, "higher_is_better"), task);
        int64_t version = json_get_int(json_object_get(results, "versions"), task, 1);
        const char *label = task;
        json_object_foreach(result, key, value) {
            const char *comma = strchr(key, ',');
            if (!comma || strstr(key, "_stderr,") || strstr(key, "_chance,")) continue;
            metric_row(out, label, version, result, higher, key);
            label = "";
        }
    }
}
