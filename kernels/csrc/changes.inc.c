/* Bias and penalties: which blocks they touch, and what the logits become (docs/spec/kernels-acceptance.md). */

static touched *touch(changes *c, int32_t id)
{
    int64_t block = id / BLOCK;
    if (c->place[block] < 0) {
        c->place[block] = c->num_blocks++;
        memset(&c->blocks[c->place[block]], 0, sizeof(touched));
    }
    return &c->blocks[c->place[block]];
}

static void see(changes *c, int32_t id, int generated)
{
    touched *block = touch(c, id);
    block->seen[id % BLOCK] = -1;
    block->count[id % BLOCK] += (float)generated;
}

static int has_changes(const ek_batch *batch, int64_t b)
{
    const ek_rule *rule = &batch->rules[b];
    int biased = batch->bias_starts && batch->bias_starts[b + 1] > batch->bias_starts[b];
    return biased || rule->repetition != 1 || rule->frequency != 0 || rule->presence != 0;
}

/* Bias and history of sequence b; false without memory. */
static int prepare_changes(const ek_batch *batch, int64_t b, int64_t num_drafts, changes *c)
{
    int64_t num_blocks = (batch->vocab + BLOCK - 1) / BLOCK, most = num_drafts;
    int64_t bias_from = 0, bias_to = 0, from = 0, to = 0;
    if (batch->bias_starts) {
        bias_from = batch->bias_starts[b];
        bias_to = batch->bias_starts[b + 1];
    }
    if (batch->history_starts) {
        from = batch->history_starts[b];
        to = batch->history_starts[b + 1];
    }
    most += bias_to - bias_from + to - from;
    most = most < num_blocks ? most : num_blocks;
    c->place = malloc((size_t)num_blocks * sizeof *c->place);
    c->blocks = malloc((size_t)(most + 1) * sizeof *c->blocks);
    if (!c->place || !c->blocks)
        return 0;
    memset(c->place, -1, (size_t)num_blocks * sizeof *c->place);
    for (int64_t i = bias_from; i < bias_to; i++)
        touch(c, batch->bias_ids[i])->bias[batch->bias_ids[i] % BLOCK] += batch->bias[i];
    for (int64_t i = from; i < to; i++)
        see(c, batch->history[i], i - from >= batch->num_prompt[b]);
    return 1;
}

/* The logits of all touched blocks of a row: bias, repetition, frequency, presence, each step a float32. */
static void change_row(const row_view *row, const ek_rule *rule, changes *c)
{
    float buffer[BLOCK];
    for (int64_t b = 0; b < row->num_blocks; b++) {
        if (c->place[b] < 0)
            continue;
        touched *block = &c->blocks[c->place[b]];
        const float *logits = plain_block(row, b, buffer);
        for (int i = 0; i < BLOCK; i++) {
            float l = logits[i] + block->bias[i];
            float penalised = l < 0 ? l * rule->repetition : l / rule->repetition;
            l = block->seen[i] ? penalised : l;
            l = l - rule->frequency * block->count[i];
            block->changed[i] = l - (block->count[i] > 0 ? rule->presence : 0);
        }
    }
}
