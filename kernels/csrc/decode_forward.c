/* The forward pass of a decoder: one call for all layers and tokens, one team of threads for all of it.
   A single token is prepared by every thread for itself, which is cheaper than to wait for one that does it; of
   several tokens each thread prepares some. Rows of matrices and heads are divided among the threads. */
#include <math.h>
#include <string.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "decode.h"
#include "decode_batch.h"
#include "decode_workspace.h"

int64_t ek_workspace_bytes(const ek_model *model, const ek_cache *cache, int threads)
{
    memory at = {NULL, 0};
    pass p = {.room = BATCH};
    member own;
    carve_pass(model, &at, &p);
    for (int i = 0; i < threads; i++)
        carve_member(model, cache, &at, &own);
    return at.used;
}

int64_t ek_paged_workspace_bytes(const ek_model *model, int threads)
{
    memory at = {NULL, 0};
    pass p = {.room = PAGED_BATCH};
    paging paged;
    member own;
    carve_pass(model, &at, &p);
    carve_paging(PAGED_BATCH, &at, &paged);
    for (int i = 0; i < threads; i++)
        carve_member(model, NULL, &at, &own);
    return at.used;
}

/* The part of `count` things which is this thread's. */
static int64_t from_of(const member *own, int64_t count)
{
    return count * own->number / own->size;
}

static int64_t to_of(const member *own, int64_t count)
{
    return count * (own->number + 1) / own->size;
}

static int alone(const member *own)
{
    return own->all->tokens == 1;
}

/* Tokens which this thread prepares: the only one, or its part. */
static int64_t first_token(const member *own)
{
    return alone(own) ? 0 : from_of(own, own->all->tokens);
}

static int64_t end_token(const member *own)
{
    return alone(own) ? 1 : to_of(own, own->all->tokens);
}

static const buffers *buffers_of(const member *own)
{
    return alone(own) ? &own->own : &own->all->common;
}

/* Wait for what other threads prepared, if they did. */
static void prepared(const member *own)
{
    if (!alone(own))
        ek_meet(own->all->team);
}

/* Codes or sums of tokens from .. to - 1 of an input, for each group size among the matrices. */
static void prepare(const member *own, const ek_linear *const *matrices, int count, input *in, int64_t from, int64_t to)
{
    const ek_gemm *gemm = own->all->kernels->gemm;
    const buffers *b = buffers_of(own);
    int floats = own->all->model->floats;
    in->num_slots = 0;
    for (int i = 0; i < count; i++) {
        int64_t columns = matrices[i]->columns;
        int32_t group = matrices[i]->packed.group;
        int s = 0;
        while (s < in->num_slots && in->group[s] != group)
            s++;
        if (matrices[i]->values || s < in->num_slots)
            continue;
        ek_tokens *to_fill = &in->tokens[s];
        in->group[in->num_slots++] = group;
        *to_fill = (ek_tokens){b->codes[s], b->scale[s], b->sum[s]};
        for (int64_t t = from; t < to; t++) {
            const float *x = in->x + t * columns;
            int64_t at = t * (columns / group);
            if (floats)
                gemm->sum_groups(x, columns, group, to_fill->sum + at);
            else
                gemm->quantise(x, columns, group, to_fill->codes + t * columns, to_fill->scale + at, to_fill->sum + at);
        }
    }
}

static void add_bias(float *y, const float *bias, int64_t from, int64_t to)
{
    for (int64_t r = from; bias && r < to; r++)
        y[r] += bias[r];
}

/* This thread's rows of a matrix for all tokens of an input; `rows` gets their first and their end. */
static void multiply(const member *own, const ek_linear *by, const input *in, int64_t tokens, float *y, int64_t rows[2])
{
    const ek_kernels *kernels = own->all->kernels;
    int64_t blocks = (by->rows + EK_BLOCK - 1) / EK_BLOCK;
    int64_t from = from_of(own, blocks) * EK_BLOCK, to = to_of(own, blocks) * EK_BLOCK;
    to = to < by->rows ? to : by->rows;
    rows[0] = from;
    rows[1] = to;
    if (from >= to)
        return;
    if (by->values) {
        kernels->steps->multiply(by->values, by->columns, from, to, in->x, tokens, y, by->rows);
        for (int64_t t = 0; t < tokens; t++)
            add_bias(y + t * by->rows, by->bias, from, to);
        return;
    }
    int s = 0;
    while (in->group[s] != by->packed.group)
        s++;
    if (own->all->model->floats)
        kernels->gemm->floats(&by->packed, in->x, in->tokens[s].sum, tokens, from, to, by->bias, y, by->rows);
    else
        kernels->gemm->quantised(&by->packed, &in->tokens[s], tokens, from, to, by->bias, y, by->rows);
}

/* Norm the stream, after adding what the last matrix gave (if any), into the input of the next ones. */
static void norm_stream(const member *own, const float *y, const float *weight, const ek_linear *const *matrices,
                        int count, input *in)
{
    const ek_model *m = own->all->model;
    const ek_decode *steps = own->all->kernels->steps;
    const buffers *b = buffers_of(own);
    int64_t from = first_token(own), to = end_token(own);
    in->x = b->normed;
    for (int64_t t = from; t < to; t++) {
        if (y)
            steps->add(b->x + t * m->hidden, y + t * m->hidden, m->hidden);
        steps->norm(b->x + t * m->hidden, weight, m->hidden, m->epsilon, b->normed + t * m->hidden);
    }
    prepare(own, matrices, count, in, from, to);
    prepared(own);
}

static void turn(const member *own, const float *weight, float *head, int64_t token)
{
    const pass *p = own->all;
    const ek_model *m = p->model;
    if (weight)
        p->kernels->steps->norm(head, weight, m->head_dim, m->epsilon, head);
    p->kernels->steps->rotate(head, m->turning, p->cosine + token * m->turning, p->sine + token * m->turning);
}

static int64_t head_bytes(const ek_cache *cache, int64_t width)
{
    return cache->capacity * width * (cache->half ? 2 : 4);
}

static void *keys_of(const pass *p, int64_t layer, int64_t kv_head)
{
    return (char *)p->cache->keys + (layer * p->model->kv_heads + kv_head) * head_bytes(p->cache, p->model->head_dim);
}

static void *values_of(const pass *p, int64_t layer, int64_t kv_head)
{
    const ek_cache *cache = p->cache;
    return (char *)cache->values + (layer * p->model->kv_heads + kv_head) * head_bytes(cache, cache->padded_dim);
}

/* Norm and turn queries and keys, and keep keys and values. */
static void keep_heads(const member *own, const ek_layer *layer, int64_t number)
{
    const pass *p = own->all;
    const ek_model *m = p->model;
    int64_t queries = p->tokens * m->heads, d = m->head_dim;
    if (p->paging && own->number == 0)
        begin_layer(p->paging, number, p->query, p->mixed);
    for (int64_t i = from_of(own, queries); i < to_of(own, queries); i++)
        turn(own, layer->query_norm, p->query + i * d, i / m->heads);
    int64_t kept = p->tokens * m->kv_heads;
    for (int64_t i = from_of(own, kept); i < to_of(own, kept); i++) {
        int64_t token = i / m->kv_heads, head = i % m->kv_heads;
        turn(own, layer->key_norm, p->key + i * d, token);
        if (p->paging)
            store_paged(p->paging, number, head, token, p->key + i * d, p->value + i * d);
        else
            p->kernels->steps->store(p->cache, d, keys_of(p, number, head), values_of(p, number, head),
                                     p->past + token, p->key + i * d, p->value + i * d);
    }
}

/* Attention of this thread's queries; those of one head of keys and values follow each other. */
static void attend(const member *own, int64_t number)
{
    const pass *p = own->all;
    const ek_model *m = p->model;
    int64_t group = m->heads / m->kv_heads, per_head = group * p->tokens, d = m->head_dim;
    int64_t at = from_of(own, per_head * m->kv_heads), end = to_of(own, per_head * m->kv_heads);
    ek_attention what = {.scale = (float)(1 / sqrt((double)d)), .scores = own->scores, .sums = own->sums};
    while (at < end) {
        int64_t head = at / per_head, stop = (head + 1) * per_head;
        stop = stop < end ? stop : end;
        what.keys = keys_of(p, number, head);
        what.values = values_of(p, number, head);
        for (what.count = 0; at < stop && what.count < EK_QUERIES; at++, what.count++) {
            int64_t token = at % per_head / group;
            int64_t place = (token * m->heads + head * group + at % group) * d;
            what.query[what.count] = p->query + place;
            what.mixed[what.count] = p->mixed + place;
            what.visible[what.count] = p->past + token + 1;
        }
        p->kernels->steps->attend(p->cache, d, &what);
    }
}

static void run_attention(const member *own, const ek_layer *layer, int64_t number, const float *y)
{
    const pass *p = own->all;
    const ek_linear *first[] = {&layer->query, &layer->key, &layer->value}, *last[] = {&layer->output};
    int64_t rows[2];
    input in;
    norm_stream(own, y, layer->attention_norm, first, 3, &in);
    multiply(own, &layer->query, &in, p->tokens, p->query, rows);
    multiply(own, &layer->key, &in, p->tokens, p->key, rows);
    multiply(own, &layer->value, &in, p->tokens, p->value, rows);
    ek_meet(p->team);
    keep_heads(own, layer, number);
    ek_meet(p->team);
    if (p->paging)
        take_pieces(&p->paging->crew, own->number);
    else
        attend(own, number);
    ek_meet(p->team);
    in.x = p->mixed;
    prepare(own, last, 1, &in, first_token(own), end_token(own));
    prepared(own);
    multiply(own, &layer->output, &in, p->tokens, p->y, rows);
    ek_meet(p->team);
}

static void run_ffn(const member *own, const ek_layer *layer)
{
    const pass *p = own->all;
    const ek_linear *first[] = {&layer->gate, &layer->up}, *last[] = {&layer->down};
    int64_t rows[2], ffn = p->model->ffn;
    input in;
    norm_stream(own, p->y, layer->ffn_norm, first, 2, &in);
    multiply(own, &layer->gate, &in, p->tokens, p->gate, rows);
    multiply(own, &layer->up, &in, p->tokens, p->up, rows); /* the same rows */
    for (int64_t t = 0; t < p->tokens && rows[0] < rows[1]; t++)
        p->kernels->steps->gate(p->gate + t * ffn + rows[0], p->up + t * ffn + rows[0], rows[1] - rows[0]);
    ek_meet(p->team);
    in.x = p->gate;
    prepare(own, last, 1, &in, first_token(own), end_token(own));
    prepared(own);
    multiply(own, &layer->down, &in, p->tokens, p->y, rows);
    ek_meet(p->team);
}

/* Cosines and sines of this batch; the angle is a float32 product. */
static void angles(const member *own)
{
    const pass *p = own->all;
    int64_t turning = p->model->turning;
    for (int64_t i = from_of(own, p->tokens * turning); i < to_of(own, p->tokens * turning); i++) {
        int64_t position = p->paging ? p->paging->positions[i / turning] : p->past + i / turning;
        float angle = (float)position * p->model->frequencies[i % turning];
        p->cosine[i] = (float)cos((double)angle);
        p->sine[i] = (float)sin((double)angle);
    }
}

/* Logits of the batch's wanted tokens. */
static void run_head(const member *own, const float *y, float *logits)
{
    const pass *p = own->all;
    const ek_model *m = p->model;
    const ek_decode *steps = p->kernels->steps;
    const buffers *b = buffers_of(own);
    const ek_linear *head[] = {&m->head};
    int64_t from = alone(own) ? 0 : from_of(own, p->wanted), to = alone(own) ? 1 : to_of(own, p->wanted), rows[2];
    input in = {.x = b->normed};
    for (int64_t i = from; i < to; i++) {
        float *x = b->x + wanted_token(p, i) * m->hidden;
        steps->add(x, y + wanted_token(p, i) * m->hidden, m->hidden);
        steps->norm(x, m->norm, m->hidden, m->epsilon, b->normed + i * m->hidden);
    }
    prepare(own, head, 1, &in, from, to);
    prepared(own);
    multiply(own, &m->head, &in, p->wanted, logits, rows);
}

/* One batch, and its logits. */
static void run_batch(const member *own, const float *embedded, float *logits)
{
    const pass *p = own->all;
    const ek_model *m = p->model;
    const float *y = NULL;
    const buffers *b = buffers_of(own);
    for (int64_t t = first_token(own); t < end_token(own); t++)
        memcpy(b->x + t * m->hidden, embedded + t * m->hidden, (size_t)m->hidden * sizeof(float));
    angles(own);
    for (int64_t l = 0; l < m->num_layers; l++) {
        run_attention(own, &m->layers[l], l, y);
        run_ffn(own, &m->layers[l]);
        y = p->y;
    }
    if (p->wanted)
        run_head(own, y, logits);
}

/* What each thread of the team does. */
static void take_part(member *own, pass *p, const call *what)
{
    own->all = p;
    for (int64_t at = 0; at < what->count; at += p->room) {
        ek_meet(p->team); /* nobody needs the last batch any more */
        if (own->number == 0)
            begin_batch(p, what, at);
        ek_meet(p->team);
        if (p->failed)
            return;
        run_batch(own, what->embedded + at * p->model->hidden, what->logits + p->first * p->model->vocab);
    }
}

/* Run a team of so many threads; `at` is where their own memory begins. */
static void run_team(pass *p, const call *what, int threads, memory at)
{
    ek_team team = {.size = 1};
    p->team = &team;
#if defined(_OPENMP)
    if (threads > 1) {
#pragma omp parallel num_threads(threads)
        {
            memory own_at = at;
            member own;
            for (int i = 0; i <= omp_get_thread_num(); i++)
                carve_member(p->model, p->cache, &own_at, &own);
#pragma omp single
            team.size = (unsigned)omp_get_num_threads(); /* maybe fewer than we asked for */
            own.number = omp_get_thread_num();
            own.size = (int)team.size;
            take_part(&own, p, what);
        }
        return;
    }
#endif
    (void)threads;
    member own = {.number = 0, .size = 1};
    carve_member(p->model, p->cache, &at, &own);
    take_part(&own, p, what);
}

void ek_forward(const ek_kernels *kernels, const ek_model *model, const ek_cache *cache, int64_t past,
                const float *embedded, int64_t count, int64_t num_logits, float *logits, int threads, void *workspace)
{
    memory at = {workspace, 0};
    call what = {embedded, count, num_logits, logits, past};
    pass p = {.kernels = kernels, .model = model, .cache = cache, .room = BATCH};
    carve_pass(model, &at, &p);
    run_team(&p, &what, threads, at);
}

int ek_forward_paged(const ek_kernels *kernels, const ek_model *model, const ek_pages *pages, const ek_spans *spans,
                     const float *embedded, int64_t count, float *logits, int threads, void *workspace)
{
    memory at = {workspace, 0};
    call what = {embedded, count, spans->num_rows, logits, 0};
    paging paged = {.pages = pages, .spans = spans};
    pass p = {.kernels = kernels, .model = model, .paging = &paged, .room = PAGED_BATCH};
    carve_pass(model, &at, &p);
    carve_paging(PAGED_BATCH, &at, &paged);
    begin_paging(&paged, kernels, model);
    run_team(&p, &what, threads, at);
    end_paging(&paged);
    return p.failed;
}
