/* See sequence.h. A target stands at the position before its token, so a writer sets it when the token arrives; a
 * token that no longer fits is still the target of the last position. */
#include "data/sequence.h"

SequenceIds sequence_ids(const Tokenizer *t) {
    return (SequenceIds){tokenizer_pad(t), tokenizer_begin(t), tokenizer_end(t)};
}

Segment segment_image(int image) { return (Segment){.image = image}; }
Segment segment_text(const TokenIds *text) { return (Segment){-1, text->ids, text->count, false}; }
Segment segment_scored(const TokenIds *text) { return (Segment){-1, text->ids, text->count, true}; }

void sequences_new(Sequences *s, Arena *arena, int rows, int length, SequenceIds ids) {
    size_t count = (size_t)rows * (size_t)length;
    *s = (Sequences){.rows = rows, .length = length};
    if (!rows) return;
    s->tokens = arena_allocate(arena, count * sizeof(int32_t));
    s->targets = arena_allocate(arena, count * sizeof(int32_t));
    s->image_rows = arena_allocate(arena, count * sizeof(int32_t));
    s->positions = arena_array(arena, int32_t, count);
    s->range = arena_array(arena, int32_t, count * 2);
    s->ends = arena_array(arena, int32_t, rows);
    for (size_t i = 0; i < count; i++) {
        s->tokens[i] = ids.pad;
        s->targets[i] = TOKEN_NONE;
        s->image_rows[i] = -1;
    }
}

typedef struct Writer {
    Sequences *s;
    int row, at; // the next position; == length: full, only one more target is taken
} Writer;

static size_t index_of(const Writer *w, int at) { return (size_t)w->row * (size_t)w->s->length + (size_t)at; }

static void set_target(Writer *w, int at, int32_t id) {
    w->s->targets[index_of(w, at)] = id;
    if (id != TOKEN_NONE) w->s->target_count++;
}

static void set_position(Writer *w, int position, int first, int end) {
    size_t i = index_of(w, w->at);
    w->s->positions[i] = position;
    w->s->range[2 * i] = first;
    w->s->range[2 * i + 1] = end;
}

// False once nothing more can be written.
static bool write_token(Writer *w, int32_t id, bool scored) {
    if (scored && w->at > 0) set_target(w, w->at - 1, id);
    if (w->at == w->s->length) return false;
    w->s->tokens[index_of(w, w->at)] = id;
    w->s->token_count++;
    set_position(w, w->at, 0, w->at + 1);
    w->s->ends[w->row] = w->at++;
    return true;
}

// Slots of images that follow each other, up to the run's end at position `end`.
static void write_slots(Writer *w, int image, int image_tokens, int end) {
    for (int k = 0; k < image_tokens; k++) {
        size_t i = index_of(w, w->at);
        w->s->tokens[i] = TOKEN_NONE;
        w->s->image_rows[i] = image * image_tokens + k;
        set_position(w, w->at, 0, end);
        w->at++;
    }
}

// What of the text must go so that the row fits, after its unscored text was cut from the front: `dropped` (count).
static void cut_fronts(const Segment *segments, int count, int over, int *dropped) {
    for (int i = 0; i < count; i++) {
        bool cuttable = segments[i].image < 0 && !segments[i].scored && over > 0;
        dropped[i] = !cuttable ? 0 : over < segments[i].count ? over : segments[i].count;
        over -= dropped[i];
    }
}

static int images_from(const Segment *segments, int count, int first) {
    int images = 0;
    while (first + images < count && segments[first + images].image >= 0) images++;
    return images;
}

static int text_length(const Segment *segments, int count) {
    int length = 0;
    for (int i = 0; i < count; i++)
        if (segments[i].image < 0) length += segments[i].count;
    return length;
}

bool sequence_put(Sequences *s, int row, const Segment *segments, int count, int image_tokens, SequenceIds ids,
                  SequenceEnd end, Error *error) {
    enum { MOST_SEGMENTS = 256 };
    int dropped[MOST_SEGMENTS], slots = 0, run_end = 0;
    bool begun = false, any_scored = false, room = true;
    Writer w = {s, row, 0};
    check(count <= MOST_SEGMENTS && row < s->rows);
    for (int i = 0; i < count; i++) slots += segments[i].image >= 0 ? image_tokens : 0;
    if (slots + (end == SEQUENCE_OPEN ? 1 : 2) > s->length)
        return error_set(error, ERROR_FAILED,
                         "%d image slots and text do not fit into a row of %d positions; make it longer", slots,
                         s->length);
    int length = slots + 1 + text_length(segments, count) + (end == SEQUENCE_CLOSED);
    cut_fronts(segments, count, length - s->length, dropped);
    for (int i = 0; i < count && room; i++) {
        const Segment *segment = &segments[i];
        if (segment->image >= 0) {
            if (w.at >= run_end) run_end = w.at + images_from(segments, count, i) * image_tokens;
            if (run_end > s->length) break; // behind a text that was cut
            write_slots(&w, segment->image, image_tokens, run_end);
            continue;
        }
        if (!begun) room = write_token(&w, ids.begin, false);
        begun = true;
        for (int t = dropped[i]; t < segment->count && room; t++)
            room = write_token(&w, segment->ids[t], segment->scored);
        any_scored |= segment->scored;
    }
    if (!begun && room) room = write_token(&w, ids.begin, false);
    if (end == SEQUENCE_CLOSED && room) write_token(&w, ids.end, any_scored);
    return true;
}

void sequence_put_contrastive(Sequences *s, int row, const int32_t *ids, int count, SequenceIds special) {
    Writer w = {s, row, 0};
    check(s->length >= 2);
    write_token(&w, special.begin, false);
    for (int t = 0; t < count && w.at < s->length - 1; t++) write_token(&w, ids[t], false);
    write_token(&w, special.end, false);
}

void sequence_put_piece(Sequences *s, int row, int at, const int32_t *ids, int count, int32_t next) {
    Writer w = {s, row, at};
    check(at + count <= s->length);
    for (int t = 0; t < count; t++, w.at++) {
        s->tokens[index_of(&w, w.at)] = ids[t];
        set_target(&w, w.at, t + 1 < count ? ids[t + 1] : next);
        set_position(&w, t, at, w.at + 1);
    }
    s->token_count += count;
    if (count) s->ends[row] = w.at - 1;
}
