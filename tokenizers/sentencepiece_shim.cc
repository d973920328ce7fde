// SentencePiece (Kudo and Richardson 2018) behind C. See sentencepiece_shim.h; this file only translates.
#include "tokenizers/sentencepiece_shim.h"
#include <cstdio>
#include <exception>
#include <memory>
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>
#include <string>
#include <unordered_map>
#include <vector>

using sentencepiece::SentenceIterator;
using sentencepiece::SentencePieceProcessor;
using sentencepiece::SentencePieceTrainer;
namespace util = sentencepiece::util;

struct SpModel {
    SentencePieceProcessor processor;
};

static bool fail(char *message, const char *text) {
    std::snprintf(message, SP_MESSAGE, "%s", text);
    return false;
}

static bool passed(char *message, const util::Status &status) {
    return status.ok() || fail(message, status.error_message());
}

SpModel *sp_load(const void *bytes, size_t size, char *message) {
    try {
        auto model = std::make_unique<SpModel>();
        absl::string_view view(static_cast<const char *>(bytes), size);
        if (!passed(message, model->processor.LoadFromSerializedProto(view))) return nullptr;
        return model.release();
    } catch (const std::exception &e) {
        fail(message, e.what());
        return nullptr;
    }
}

void sp_free(SpModel *model) { delete model; }
int  sp_vocabulary(const SpModel *model) { return model->processor.GetPieceSize(); }
int  sp_pad(const SpModel *model) { return model->processor.pad_id(); }
int  sp_unknown(const SpModel *model) { return model->processor.unk_id(); }
int  sp_begin(const SpModel *model) { return model->processor.bos_id(); }
int  sp_end(const SpModel *model) { return model->processor.eos_id(); }

int sp_byte(const SpModel *model, unsigned byte) {
    char piece[8];
    std::snprintf(piece, sizeof piece, "<0x%02X>", byte & 255u);
    int id = model->processor.PieceToId(piece);
    return model->processor.IsByte(id) ? id : -1;
}

bool sp_adds_prefix(const SpModel *model) {
    std::vector<std::string> pieces;
    if (!model->processor.Encode("a", &pieces).ok() || pieces.empty()) return false;
    return pieces[0].compare(0, 3, "\xe2\x96\x81") == 0; // U+2581, SentencePiece's mark of a space
}

bool sp_encode(const SpModel *model, const char *text, size_t size, void (*push)(void *, int32_t), void *context, char *message) {
    try {
        std::vector<int> ids;
        if (!passed(message, model->processor.Encode(absl::string_view(text, size), &ids))) return false;
        for (int id : ids) push(context, id);
        return true;
    } catch (const std::exception &e) { return fail(message, e.what()); }
}

bool sp_decode(const SpModel *model, const int32_t *ids, int count, SpBytes emit, void *context, char *message) {
    try {
        std::string text;
        if (!passed(message, model->processor.Decode(std::vector<int>(ids, ids + count), &text))) return false;
        emit(context, text.data(), text.size());
        return true;
    } catch (const std::exception &e) { return fail(message, e.what()); }
}

namespace {
class Texts : public SentenceIterator {
  public:
    Texts(SpNextText next, void *context) : next_(next), context_(context) { Next(); }
    bool done() const override { return done_; }
    void Next() override {
        size_t      size = 0;
        const char *text = next_(context_, &size);
        done_ = !text;
        if (text) value_.assign(text, size);
    }
    const std::string &value() const override { return value_; }
    util::Status       status() const override { return util::Status(); }

  private:
    SpNextText  next_;
    void       *context_;
    std::string value_;
    bool        done_ = false;
};
} // namespace

bool sp_train(const char *const (*options)[2], int count, uint32_t seed, SpNextText next, void *texts, SpBytes emit, void *context,
              char *message) {
    try {
        std::unordered_map<std::string, std::string> arguments;
        for (int i = 0; i < count; i++) arguments[options[i][0]] = options[i][1];
        sentencepiece::SetRandomGeneratorSeed(seed);
        Texts       iterator(next, texts);
        std::string model;
        if (!passed(message, SentencePieceTrainer::Train(arguments, &iterator, &model))) return false;
        emit(context, model.data(), model.size());
        return true;
    } catch (const std::exception &e) { return fail(message, e.what()); }
}
