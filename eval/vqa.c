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

// The question's ids and the answer's text of each sample in the batch.
static bool ask(Evaluation *e, SampleBatch *b, Questions *q, Error *error) {
    Buffer question = {0};
    bool ok = true;
    for (int i = 0; ok && i < b->count; i++) {
        Buffer answer = {0};
        Error missing = {0};
        buffer_clear(&question);
        wanted_clear(&q->wanted[i]);
        q->asked[i].count = 0;
        if (!template_expand(q->question, 0, b->samples[i].fields, 0, &question, &missing) ||
            !template_expand(q->answer, 0, b->samples[i].fields, 0, &answer, &missing)) {
            error_prefix(&missing, "%s", b->samples[i].name);
            sample_left_out(e, b, missing.message);
            continue; // a template that failed left no text
        }
        q->wanted[i] = (Wanted){{answer.data}, 1}; // taken over
        ok = tokenizer_encode(e->model->tokenizer, question.data, question.size, &q->asked[i], error);
    }
    buffer_free(&question);
    return ok;
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
    while ((ok = ok && sample_batch_next(e, &batch, true, error)) && batch.count)
        ok = ask(e, &batch, &q, error) && answers_generate(e, &batch, q.asked, q.wanted, &answers, error);
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
