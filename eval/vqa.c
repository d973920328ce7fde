/* Questions about pictures, answered by generating (greedy), scored by exact match. */
#include "data/template.h"
#include "eval/answers.h"
#include <stdlib.h>
#include <string.h>

typedef struct Questions {
    Template *question, *answer;
    TokenIds *asked; // (capacity of the batch)
    Wanted *wanted;  // (capacity)
} Questions;

// The question's ids, and the answer's text. A sample that cannot be asked has no wanted answer.
static bool ask_one(const Evaluation *e, const Example *sample, const Questions *q, TokenIds *asked, Wanted *wanted,
                    Error *error) {
    const JointConfig *config = &e->model->config;
    Buffer question = {0}, answer = {0};
    bool ok = template_expand(q->question, 0, sample->fields, 0, &question, error) &&
              template_expand(q->answer, 0, sample->fields, 0, &answer, error) &&
              tokenizer_encode(e->model->tokenizer, question.data, question.size, asked, error);
    long long length = joint_image_tokens(config) + 1 + (long long)asked->count; // <s> counted
    if (ok && length > config->text.context)
        ok = error_set(error, ERROR_FAILED, "picture and question take %lld positions, the model's context is %lld",
                       length, (long long)config->text.context);
    buffer_free(&question);
    if (ok)
        *wanted = (Wanted){{answer.data}, 1}; // taken over
    else
        buffer_free(&answer);
    return ok || error_prefix(error, "%s", sample->name);
}

static void ask(Evaluation *e, SampleBatch *b, const Questions *q) {
    for (int i = 0; i < b->count; i++) {
        Error missing = {0};
        wanted_clear(&q->wanted[i]);
        q->asked[i].count = 0;
        if (!ask_one(e, &b->samples[i], q, &q->asked[i], &q->wanted[i], &missing))
            sample_left_out(e, b, missing.message);
    }
}

bool score_vqa(Evaluation *e, Score *score, Error *error) {
    Questions q = {0};
    Answers answers = {0};
    SampleBatch batch = {.capacity = (int)e->batch * ANSWER_BATCHES};
    q.asked = calloc((size_t)batch.capacity, sizeof *q.asked);
    q.wanted = calloc((size_t)batch.capacity, sizeof *q.wanted);
    check(q.asked && q.wanted);
    bool ok = (q.question = template_parse(e->task->question, error)) != NULL &&
              (q.answer = template_parse(e->task->answer, error)) != NULL;
    while ((ok = ok && sample_batch_next(e, &batch, true, error)) && batch.count) {
        ask(e, &batch, &q);
        ok = answers_generate(e, &batch, q.asked, q.wanted, &answers, error);
    }
    if (ok && !answers.count) ok = error_set(error, ERROR_FAILED, "no sample has a picture, a question and an answer");
    if (ok) score_add(score, answers_metric(&answers));
    score->effective = answers.count;
    for (int i = 0; i < batch.capacity; i++) {
        token_ids_free(&q.asked[i]);
        wanted_clear(&q.wanted[i]);
    }
    free(q.asked);
    free(q.wanted);
    template_free(q.question);
    template_free(q.answer);
    sample_batch_free(&batch);
    answers_free(&answers);
    return ok;
}
