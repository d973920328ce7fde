/* What a training step of one process calls of files that need a library, in a build without them: there is no
 * pipeline, no tokenizer and no file of weights. */
#include "base/error.h"
#include "tokenizers/tokenizer.h"
#include "train/pipeline.h"
#include <stdlib.h>

bool pipeline_run(Pipeline *p, PipelineMode mode, const PipelineMicrobatch *microbatches, PipelineResult *results,
                  const int64_t *first_pairs, float *images, float *texts, Error *error) {
    (void)p, (void)mode, (void)microbatches, (void)results, (void)first_pairs, (void)images, (void)texts;
    return error_set(error, ERROR_FAILED, "this build has no pipeline");
}
void pipeline_leave_losses(Pipeline *p, PipelineLeave *leave, void *context) { (void)p, (void)leave, (void)context; }
bool pipeline_has_last(const Pipeline *p) { return (void)p, false; }
void pipeline_check_finite(Pipeline *p, bool on) { (void)p, (void)on; }
const char *pipeline_not_finite(const Pipeline *p) { return (void)p, NULL; }
int32_t tokenizer_pad(const Tokenizer *t) { return (void)t, 0; }
int32_t tokenizer_begin(const Tokenizer *t) { return (void)t, 1; }
int32_t tokenizer_end(const Tokenizer *t) { return (void)t, 2; }

void token_ids_push(TokenIds *list, int32_t id) {
    if (list->count == list->capacity) {
        list->capacity = 2 * list->capacity + 64;
        list->ids = realloc(list->ids, sizeof *list->ids * (size_t)list->capacity);
        check(list->ids);
    }
    list->ids[list->count++] = id;
}
void token_ids_free(TokenIds *list) { free(list->ids); }
