/* How low_rank.c cuts its work in shares, a function of the shape and of where examples begin alone, so that the bits do
   not depend on the threads; and how the shares' parts of G = sum over e of G_e [r, C] are added. */

#ifndef LORA_TRAIN_LOW_RANK_SHARES_H
#define LORA_TRAIN_LOW_RANK_SHARES_H

#include "job.h"

/* Shares of about `wanted` rows into `spans`, or only their number. An example of up to one and a half is not cut. */
static int64_t spread(const Job *job, int64_t wanted, Span *spans) {
    int64_t n = 0, open = 0; /* `open`: rows of the share that more examples may join */
    for (int64_t e = 0; e < job->n_examples; e++) {
        int64_t start = job->starts[e], stop = job->starts[e + 1], length = stop - start;
        int is_cut = job->n_examples == 1 ? length > wanted : 2 * length > 3 * wanted;
        if (!length) continue;
        if (is_cut)
            for (int64_t at = start; at < stop; at += wanted, n++) {
                if (!spans) continue;
                spans[n] = (Span){at, at + wanted < stop ? at + wanted : stop, e, e + 1, 1, at > start};
            }
        else if (open && 2 * open + length <= 2 * wanted) {
            open += length;
            if (spans) spans[n - 1].stop = stop, spans[n - 1].last_example = e + 1;
            continue;
        } else {
            if (spans) spans[n] = (Span){start, stop, e, e + 1, 0, 0};
            n++;
        }
        open = is_cut ? 0 : length;
    }
    return n;
}

/* Whether there was memory. */
static int cut(Job *job) {
    int64_t most = MAX_SHARES, bytes = job->n_outers ? 4 * job->rank * job->cols : 0;
    if (bytes && OUTER_BYTES / bytes < most) most = OUTER_BYTES / bytes > MIN_SHARES ? OUTER_BYTES / bytes : MIN_SHARES;
    int64_t wanted = (job->rows + most - 1) / most;
    wanted = (wanted + TILE - 1) / TILE * TILE;
    if (wanted < MIN_ROWS) wanted = MIN_ROWS;
    while (spread(job, wanted, NULL) > most) wanted += (wanted / 4 + TILE - 1) / TILE * TILE;
    job->n_shares = spread(job, wanted, NULL);
    job->spans = new_scratch(sizeof(Span) * (size_t)job->n_shares);
    if (!job->spans) return 0;
    spread(job, wanted, job->spans);
    return 1;
}

/* Where the squares go: 0 of an example without a row, and which matrix a row of G is of. */
static int prepare_squares(Job *job) {
    int64_t at = 0;
    job->owners = new_scratch(sizeof(int16_t) * (size_t)job->rank);
    if (!job->owners) return 0;
    for (Py_ssize_t b = 0; b < job->n_outers; b++)
        for (int64_t j = 0; j < job->outers[b].rank; j++) job->owners[at++] = (int16_t)b;
    for (int64_t e = 0; e < job->n_examples; e++)
        memset(job->squares + e * job->squares_stride, 0, sizeof(double) * (size_t)job->n_outers);
    return 1;
}

/* Bytes of a thread: a tile of X, and G_e where a share has several. */
static size_t space_of(const Job *job) {
    int is_joined = 0;
    for (int64_t s = 0; s < job->n_shares; s++) is_joined |= job->spans[s].last_example > job->spans[s].example + 1;
    return sizeof(float) * (size_t)(job->cols * (TILE + (is_joined && job->n_outers ? job->rank : 0)));
}

static double sum_of_squares(const Job *job, const float *values, int64_t n) {
    Partial p = {0};
    job->count_floats(values, n, &p);
    return p.n_nan ? NAN : p.n_inf ? INFINITY : p.sumsq;
}

/* |G_e|^2 of an example that was cut, whose G_e is at `from`. */
static void square_blocks(const Job *job, const float *from, double *squares) {
    for (const Block *b = job->outers; b < job->outers + job->n_outers; from += b->rank * job->cols, b++)
        squares[b - job->outers] = sum_of_squares(job, from, b->rank * job->cols);
}

/* Adds the shares' parts of G, those of one example first, and takes it apart. */
static void unstack(const Job *job) {
    int64_t cols = job->cols, n = job->rank * cols;
    float *from = job->sums;
    if (!job->n_shares) memset(from, 0, sizeof(float) * (size_t)n);
    for (int64_t s = 0, next; s < job->n_shares; s = next) {
        float *own = job->sums + s * n;
        for (next = s + 1; next < job->n_shares && job->spans[next].follows; next++)
            for (int64_t i = 0; i < n; i++) own[i] += job->sums[next * n + i];
        if (job->spans[s].is_part && job->squares)
            square_blocks(job, own, job->squares + job->spans[s].example * job->squares_stride);
        for (int64_t i = 0; s && i < n; i++) from[i] += own[i];
    }
    for (const Block *b = job->outers; b < job->outers + job->n_outers; from += b->rank * cols, b++) {
        for (int64_t j = 0; j < b->rank; j++)
            for (int64_t c = 0; c < cols; c++)
                b->values[job->across ? c * b->rank + j : j * cols + c] = from[j * cols + c];
        Partial p = {0};
        if (!b->row) continue;
        job->count_floats(b->values, b->rank * cols, &p);
        write_row(&p, b->rank * cols, 0, 0, b->row);
        b->row[4] = b->row[5] = 0; /* nobody rounded */
    }
}

#endif
