/* SentencePiece behind C: the one place where C++ is called. Nothing here knows Bifocal's types, so that both languages
 * can include it; messages are written into the caller's `message` (SP_MESSAGE bytes). No exception leaves it. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { SP_MESSAGE = 512 };
typedef struct SpModel SpModel;
typedef void (*SpBytes)(void *context, const char *bytes, size_t size);
typedef const char *(*SpNextText)(void *context, size_t *size); // NULL at the end

SpModel *sp_load(const void *bytes, size_t size, char *message); // NULL where refused
void sp_free(SpModel *);
int sp_vocabulary(const SpModel *);
int sp_pad(const SpModel *), sp_unknown(const SpModel *), sp_begin(const SpModel *), sp_end(const SpModel *); // or -1
int sp_byte(const SpModel *, unsigned byte); // id of the piece that stands for one byte, or -1
bool sp_adds_prefix(const SpModel *);        // a space is put in front of every text
bool sp_encode(const SpModel *, const char *text, size_t size, void (*push)(void *, int32_t), void *context,
               char *message);
bool sp_decode(const SpModel *, const int32_t *ids, int count, SpBytes, void *context, char *message);
// options: pairs of SentencePiece's trainer option and value. The model goes to `model` in one call.
bool sp_train(const char *const (*options)[2], int count, uint32_t seed, SpNextText, void *texts, SpBytes model,
              void *context, char *message);

#ifdef __cplusplus
}
#endif
