/* FLOP of a step, from shapes alone, by two conventions (joint.h): what the model does, and what is commonly counted by
 * the number of its parameters. */
#include "fusion/joint_parts.h"
#include <string.h>

static double pairs_of(const Sequences *s) {
    double pairs = 0;
    for (int64_t i = 0; i < (int64_t)s->rows * s->length; i++) pairs += s->range[2 * i + 1] - s->range[2 * i];
    return pairs;
}

static double positions_of(const Sequences *s) { return (double)s->rows * s->length; }

// Pictures that captions and pairs look at.
static double images_of(const JointConfig *c, const Batch *b) {
    return b->parts > 1 ? (double)b->seen : joint_holds(c, b, NULL, NULL).seen;
}

static double all_pairs(const Batch *b) {
    return b->parts > 1 ? (double)b->all_rows[OBJECTIVE_CONTRASTIVE] : b->contrastive.rows;
}

// Rows that are read, of the objectives that are on; `scored`: of those with targets alone.
static int rows_read(const JointConfig *c, const Batch *b, bool scored, const Sequences *rows[OBJECTIVES]) {
    int count = 0;
    if (c->weight[OBJECTIVE_LM] > 0) rows[count++] = &b->lm;
    if (c->weight[OBJECTIVE_CAPTION] > 0) rows[count++] = &b->caption;
    if (c->weight[OBJECTIVE_CONTRASTIVE] > 0 && !scored) rows[count++] = &b->contrastive;
    return count;
}

// ---- what the model does ----

static double connector_flop(const JointConfig *c, double images) {
    double from = (double)c->vision.width, to = (double)c->text.width, tokens = images * joint_image_tokens(c);
    return 2 * tokens * (from * to + (c->connector == CONNECTOR_MLP ? to * to : 0));
}

// Of `pairs` of the batch, which meet all pairs of the step.
static double contrastive_flop(const JointConfig *c, double pairs, double all) {
    double shared = (double)c->embedding;
    return 2 * pairs * shared * ((double)c->vision.width + (double)c->text.width + all);
}

static double mae_trunk_flop(const JointConfig *c, double images) {
    return vit_flop(&c->vision, images, mae_kept(&c->mae, &c->vision) + c->vision.class_token);
}

JointFlop joint_flop_parts(const JointConfig *c, const Batch *b) {
    const Sequences *rows[OBJECTIVES];
    JointFlop f = {0};
    double images = images_of(c, b), painted = c->weight[OBJECTIVE_MAE] > 0 ? b->mae_images : 0;
    for (int i = 0, n = rows_read(c, b, false, rows); i < n; i++)
        if (rows[i]->rows) f.text += text_flop(&c->text, positions_of(rows[i]), pairs_of(rows[i]));
    for (int i = 0, n = rows_read(c, b, true, rows); i < n; i++)
        f.heads += 2 * (double)rows[i]->target_count * (double)c->text.width * (double)c->text.vocabulary;
    if (c->weight[OBJECTIVE_CAPTION] > 0) f.heads += connector_flop(c, images);
    if (c->weight[OBJECTIVE_CONTRASTIVE] > 0) f.heads += contrastive_flop(c, b->contrastive.rows, all_pairs(b));
    if (c->has_vision) f.vision += vit_flop(&c->vision, images, vit_tokens(&c->vision));
    if (painted > 0) {
        double trunk = mae_trunk_flop(c, painted);
        f.vision += trunk;
        f.heads += mae_flop(&c->mae, &c->vision, painted) - trunk;
    }
    return (JointFlop){3 * f.vision, 3 * f.text, 3 * f.heads};
}

double joint_flop(const JointConfig *c, const Batch *batch) {
    JointFlop f = joint_flop_parts(c, batch);
    return joint_flop_sum(&f);
}

// ---- what is counted by parameters ----

static bool under(const char *name, const char *part) {
    size_t length = strlen(part);
    return !strncmp(name, part, length) && (!name[length] || name[length] == '.');
}

static double whole_size(const Parameter *p) {
    double size = 1;
    for (int d = 0; d < p->tensor.rank; d++) size *= (double)p->global_shape[d];
    return size;
}

JointCount joint_count(const Joint *j) {
    JointCount n = {0};
    Parameters *parameters = joint_parameters(j);
    bool tied = joint_config(j)->text.tied;
    for (int i = 0; i < parameters_count(parameters); i++) {
        const Parameter *p = parameters_at(parameters, i);
        const char *name = p->tensor.name;
        double size = whole_size(p);
        if (p->is_replica) continue;
        n.all += size;
        if (under(name, tied ? "text.tokens" : "text.head")) n.words += size;
        if (under(name, "text.tokens") || under(name, "text.head") || under(name, "text.positions") ||
            under(name, "vision.positions") || under(name, "mae.positions"))
            continue;
        double *part = under(name, "vision")      ? &n.vision
                       : under(name, "text")      ? &n.text
                       : under(name, "connector") ? &n.connector
                       : under(name, "mae")       ? &n.mae
                                                  : &n.pairs;
        *part += size;
    }
    return n;
}

// Of `rows` rows of `length` positions through a stack: 6 N + 12 L C T each.
static double stack_flop(double count, double layers, double width, double rows, double length) {
    return rows * length * (6 * count + 12 * layers * width * length);
}

JointFlop joint_flop_by_count(const JointConfig *c, const JointCount *n, const Batch *b) {
    const Sequences *rows[OBJECTIVES];
    const VitConfig *v = &c->vision;
    JointFlop f = {0};
    double images = images_of(c, b), pairs = b->contrastive.rows;
    for (int i = 0, k = rows_read(c, b, false, rows); i < k; i++)
        f.text += stack_flop(n->text, (double)c->text.layers, (double)c->text.width, rows[i]->rows, rows[i]->length);
    for (int i = 0, k = rows_read(c, b, true, rows); i < k; i++) f.heads += 6 * n->words * positions_of(rows[i]);
    if (c->weight[OBJECTIVE_CAPTION] > 0) f.heads += 6 * n->connector * images * joint_image_tokens(c);
    if (c->weight[OBJECTIVE_CONTRASTIVE] > 0) f.heads += 6 * pairs * (n->pairs + (double)c->embedding * all_pairs(b));
    if (c->has_vision)
        f.vision += stack_flop(n->vision, (double)v->layers, (double)v->width, images, (double)vit_tokens(v));
    if (c->weight[OBJECTIVE_MAE] > 0) {
        double kept = (double)(mae_kept(&c->mae, v) + v->class_token), painted = b->mae_images;
        f.vision += stack_flop(n->vision, (double)v->layers, (double)v->width, painted, kept);
        f.heads += stack_flop(n->mae, (double)c->mae.decoder_layers, (double)c->mae.decoder_width, painted,
                              (double)vit_tokens(v));
    }
    return f;
}
