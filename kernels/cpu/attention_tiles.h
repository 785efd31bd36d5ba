/* The loops of attention.c, included once per instruction set; LANES, TARGET and NAMED as in low_rank/tiles.h. */

typedef float NAMED(Vector) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t NAMED(Bits) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define VECTOR NAMED(Vector)
#define BITS NAMED(Bits)
#define ROWS (LANES < 16 ? 4 : 8) /* rows of a product that the registers hold */

/* c[i, :] (+)= sum over k < depth of a[i, k] b[k, :], for ROWS rows and n_vectors (1 or 2) vectors; a is read with any
   strides. */
TARGET INLINE void NAMED(tile)(const float *a, int64_t a_row, int64_t a_col, const float *b, int64_t b_row,
                               int64_t depth, int n_vectors, int adds, float *c, int64_t c_row) {
    VECTOR sums[8][2] = {{{0}}};
    for (int64_t k = 0; k < depth; k++) {
        VECTOR values[2];
#pragma GCC unroll 2
        for (int v = 0; v < n_vectors; v++) values[v] = *(const VECTOR *)(b + k * b_row + v * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            float factor = a[i * a_row + k * a_col];
#pragma GCC unroll 2
            for (int v = 0; v < n_vectors; v++) sums[i][v] += values[v] * factor;
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 2
        for (int v = 0; v < n_vectors; v++) {
            VECTOR *to = (VECTOR *)(c + i * c_row + v * LANES);
            if (adds) sums[i][v] += *to;
            *to = sums[i][v];
        }
}

/* The same for n_rows rows and n_cols columns, multiples of ROWS and LANES. */
TARGET INLINE void NAMED(product)(const float *a, int64_t a_row, int64_t a_col, const float *b, int64_t b_row,
                                  int64_t n_rows, int64_t n_cols, int64_t depth, int adds, float *c, int64_t c_row) {
    for (int64_t j = 0; j < n_cols;) {
        int two = n_cols - j >= 2 * LANES;
        for (int64_t i = 0; i < n_rows; i += ROWS)
            if (two) NAMED(tile)(a + i * a_row, a_row, a_col, b + j, b_row, depth, 2, adds, c + i * c_row + j, c_row);
            else NAMED(tile)(a + i * a_row, a_row, a_col, b + j, b_row, depth, 1, adds, c + i * c_row + j, c_row);
        j += two ? 2 * LANES : LANES;
    }
}

/* e^y for y <= 0 by Cephes' polynomial; below -87 as at -87. A NaN stays one. */
TARGET INLINE VECTOR NAMED(exponential)(VECTOR y) {
    const VECTOR least = (VECTOR){0} - 87.0f;
    BITS known = (BITS)(y == y), small = (BITS)(y < least);
    VECTOR x = (VECTOR)(((BITS)least & small) | ((BITS)y & ~small));
    VECTOR shifted = x * 1.44269504088896341f + 12582912.0f, n = shifted - 12582912.0f;
    VECTOR f = x - n * 0.693359375f + n * 2.12194440e-4f;
    VECTOR p = f * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    VECTOR e = (p * f * f + f + 1.0f) * (VECTOR)(((BITS)shifted << 23) + (127 << 23));
    return (VECTOR)(((BITS)e & known) | ((BITS)y & ~known));
}

TARGET INLINE float NAMED(sum)(VECTOR v) {
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += v[lane];
    return sum;
}

/* The scores s of row number `row` become e^(scale s - shift), and 0 behind its own position; returns their sum. */
TARGET INLINE float NAMED(exponentials)(float *scores, int64_t row, int64_t padded, float scale, float shift) {
    VECTOR sums = {0};
    for (int64_t j = row + 1; j < padded; j++) scores[j] = -INFINITY;
    for (int64_t j = 0; j < padded; j += LANES) {
        VECTOR s = *(VECTOR *)(scores + j), e = NAMED(exponential)(s * scale - shift);
        e = (VECTOR)((BITS)e & (BITS)(s != -INFINITY)); /* what is infinite of its own counts as much */
        *(VECTOR *)(scores + j) = e;
        sums += e;
    }
    return NAMED(sum)(sums);
}

/* The largest of the first `count` values; those that complete the last vector are overwritten. */
TARGET INLINE float NAMED(largest)(float *scores, int64_t count) {
    VECTOR most = (VECTOR){0} - INFINITY;
    for (int64_t j = count; j % LANES; j++) scores[j] = -INFINITY;
    for (int64_t j = 0; j < count; j += LANES) {
        VECTOR s = *(VECTOR *)(scores + j);
        BITS larger = (BITS)(s > most);
        most = (VECTOR)(((BITS)s & larger) | ((BITS)most & ~larger));
    }
    float value = most[0];
    for (int lane = 1; lane < LANES; lane++) value = most[lane] > value ? most[lane] : value;
    return value;
}

TARGET INLINE float NAMED(dot)(const float *x, const float *y, int64_t count) {
    VECTOR sums = {0};
    for (int64_t c = 0; c < count; c += LANES) sums += *(const VECTOR *)(x + c) * *(const VECTOR *)(y + c);
    return NAMED(sum)(sums);
}

/* Rows of one head into dense fp32 [padded, D], with zeros behind the last; `across`, if given, gets the transposed. */
TARGET INLINE void NAMED(gather)(const Job *job, const Heads *heads, int64_t batch, int64_t head, int64_t start,
                                 int64_t count, int64_t padded, float *dense, float *across, int64_t across_row) {
    int64_t cols = job->cols;
    for (int64_t i = 0; i < count; i++) {
        int64_t from = batch * heads->strides[0] + head * heads->strides[1] + (start + i) * heads->strides[2];
        if (job->dtype == FP32) memcpy(dense + i * cols, (const float *)heads->values + from, sizeof(float) * cols);
        else if (job->dtype == FP16) LOAD((const uint16_t *)heads->values + from, (int)cols, dense + i * cols);
        else bfloats_to_floats((const uint16_t *)heads->values + from, (int)cols, dense + i * cols);
    }
    memset(dense + count * cols, 0, sizeof(float) * (size_t)((padded - count) * cols));
    for (int64_t i = 0; across && i < padded; i += LANES) /* a line of each row at a time, not a row of lines */
        for (int64_t c = 0; c < cols; c++)
            for (int lane = 0; lane < LANES; lane++) across[c * across_row + i + lane] = dense[(i + lane) * cols + c];
}

TARGET INLINE void NAMED(scatter)(const Job *job, const Heads *heads, int64_t batch, int64_t head, int64_t start,
                                  int64_t count, const float *dense) {
    int64_t cols = job->cols;
    for (int64_t i = 0; i < count; i++) {
        int64_t to = batch * heads->strides[0] + head * heads->strides[1] + (start + i) * heads->strides[2];
        if (job->dtype == FP32) memcpy((float *)heads->values + to, dense + i * cols, sizeof(float) * cols);
        else if (job->dtype == FP16) STORE(dense + i * cols, (int)cols, (uint16_t *)heads->values + to);
        else floats_to_bfloats(dense + i * cols, (int)cols, (uint16_t *)heads->values + to);
    }
}

/* One share: a row of the batch and a head of K and V, with every head of Q that reads it. */
TARGET static void NAMED(walk)(const Job *job, int64_t batch, int64_t kv_head, float *space) {
    int64_t rows = job->rows, cols = job->cols, group = job->n_heads / job->n_kv_heads;
    int64_t padded = padded_rows(job);
    float *k = space, *v = k + padded * cols, *k_across = v + padded * cols, *v_across = k_across + padded * cols;
    float *dk = v_across + padded * cols, *dv = dk + padded * cols; /* of a backward pass, as what follows p */
    float *q = dv + padded * cols, *out = q + BLOCK * cols, *p = out + BLOCK * cols;
    float *ds = p + BLOCK * padded, *dout = ds + BLOCK * padded, *dq = dout + BLOCK * cols;
    NAMED(gather)(job, &job->k, batch, kv_head, 0, rows, padded, k, k_across, padded);
    NAMED(gather)(job, &job->v, batch, kv_head, 0, rows, padded, v, job->is_backward ? v_across : NULL, padded);
    if (job->is_backward) memset(dk, 0, sizeof(float) * (size_t)(2 * padded * cols));
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++)
        for (int64_t start = 0; start < rows; start += BLOCK) {
            int64_t count = rows - start < BLOCK ? rows - start : BLOCK, keys = start + BLOCK;
            float *lse = job->lse + (batch * job->n_heads + head) * rows + start;
            NAMED(gather)(job, &job->q, batch, head, start, count, BLOCK, q, NULL, 0);
            NAMED(product)(q, cols, 1, k_across, padded, BLOCK, keys, cols, 0, p, padded);
            if (!job->is_backward) {
                float sums[BLOCK];
                for (int64_t i = 0; i < BLOCK; i++) {
                    float most = NAMED(largest)(p + i * padded, start + i + 1) * job->scale;
                    sums[i] = NAMED(exponentials)(p + i * padded, start + i, keys, job->scale, most);
                    if (i < count) lse[i] = most + logf(sums[i]);
                }
                NAMED(product)(p, padded, 1, v, cols, BLOCK, cols, keys, 0, out, cols);
                for (int64_t i = 0; i < count; i++) {
                    float factor = 1 / sums[i];
                    for (int64_t c = 0; c < cols; c++) out[i * cols + c] *= factor;
                }
                NAMED(scatter)(job, &job->out, batch, head, start, count, out);
                continue;
            }
            NAMED(gather)(job, &job->out, batch, head, start, count, BLOCK, out, NULL, 0);
            NAMED(gather)(job, &job->dout, batch, head, start, count, BLOCK, dout, NULL, 0);
            NAMED(product)(dout, cols, 1, v_across, padded, BLOCK, keys, cols, 0, ds, padded);
            for (int64_t i = 0; i < BLOCK; i++) {
                float *restrict p_row = p + i * padded, *restrict ds_row = ds + i * padded;
                float delta = NAMED(dot)(out + i * cols, dout + i * cols, cols);
                if (i < count) NAMED(exponentials)(p_row, start + i, keys, job->scale, lse[i]);
                else memset(p_row, 0, sizeof(float) * (size_t)keys);
                for (int64_t j = 0; j < keys; j++) ds_row[j] = p_row[j] * (ds_row[j] - delta) * job->scale;
            }
            NAMED(product)(ds, padded, 1, k, cols, BLOCK, cols, keys, 0, dq, cols);
            NAMED(scatter)(job, &job->dq, batch, head, start, count, dq);
            NAMED(product)(ds, 1, padded, q, cols, keys, cols, BLOCK, 1, dk, cols);
            NAMED(product)(p, 1, padded, dout, cols, keys, cols, BLOCK, 1, dv, cols);
        }
    if (job->is_backward) {
        NAMED(scatter)(job, &job->dk, batch, kv_head, 0, rows, dk);
        NAMED(scatter)(job, &job->dv, batch, kv_head, 0, rows, dv);
    }
}

#undef VECTOR
#undef BITS
#undef ROWS
