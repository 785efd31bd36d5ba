/* The loops of low_rank.c, written once and included once per instruction set: LANES fp32 values to a vector, TARGET
   the attribute of every function, NAMED(name) its name there. Vector types are lowered to the instructions of the
   function that they stand in, so they cannot be shared with functions for a lesser chip. */

typedef float NAMED(Vector) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t NAMED(Bits) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define VECTOR NAMED(Vector)
#define BITS NAMED(Bits)
#define WIDTH (2 * LANES) /* columns that are handled together: two vectors */

TARGET INLINE VECTOR NAMED(load)(const float *from) { return *(const VECTOR *)from; }

/* Sums of groups of every fourth lane. */
TARGET INLINE Four NAMED(fold)(VECTOR v) {
    Four parts[LANES / 4], sum;
    memcpy(parts, &v, sizeof parts);
    sum = parts[0];
    for (int part = 1; part < LANES / 4; part++) sum += parts[part];
    return sum;
}

/* to[i, j] = sum over c of x[i, c] onto[j, c], for n_rows x n_ranks of them; both are constants. */
TARGET INLINE void NAMED(project_tile)(const float *x, const float *onto, int64_t cols, int n_rows, int n_ranks,
                                       float *to, int64_t stride) {
    VECTOR sums[SIDE][SIDE] = {{{0}}};
    int64_t c = 0;
    for (; c + LANES <= cols; c += LANES) {
        VECTOR values[SIDE];
#pragma GCC unroll 4
        for (int i = 0; i < n_rows; i++) values[i] = NAMED(load)(x + i * cols + c);
#pragma GCC unroll 4
        for (int j = 0; j < n_ranks; j++) {
            VECTOR direction = NAMED(load)(onto + j * cols + c);
#pragma GCC unroll 4
            for (int i = 0; i < n_rows; i++) sums[i][j] += values[i] * direction;
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < n_rows; i++) {
        Four folded[SIDE] = {{0}};
#pragma GCC unroll 4
        for (int j = 0; j < n_ranks; j++) folded[j] = NAMED(fold)(sums[i][j]);
        Four each = sum_each(folded);
        memcpy(to + i * stride, &each, sizeof(float) * (size_t)n_ranks);
    }
    for (; c < cols; c++)
        for (int i = 0; i < n_rows; i++)
            for (int j = 0; j < n_ranks; j++) to[i * stride + j] += x[i * cols + c] * onto[j * cols + c];
}

TARGET INLINE void NAMED(project)(const float *x, const float *onto, int n_rows, int64_t cols, int64_t rank, float *to,
                                  int64_t stride) {
    for (int i = 0; i < n_rows;) {
        int four = n_rows - i >= SIDE;
        int64_t j = 0;
        for (; j + SIDE <= rank; j += SIDE)
            if (four) NAMED(project_tile)(x + i * cols, onto + j * cols, cols, SIDE, SIDE, to + i * stride + j, stride);
            else NAMED(project_tile)(x + i * cols, onto + j * cols, cols, 1, SIDE, to + i * stride + j, stride);
        for (; j < rank; j++)
            if (four) NAMED(project_tile)(x + i * cols, onto + j * cols, cols, SIDE, 1, to + i * stride + j, stride);
            else NAMED(project_tile)(x + i * cols, onto + j * cols, cols, 1, 1, to + i * stride + j, stride);
        i += four ? SIDE : 1;
    }
}

/* outer[j, c] += sum over i of left[i, j] x[i, c], for n_ranks rows and WIDTH columns; n_ranks is a constant. */
TARGET INLINE void NAMED(outer_tile)(const float *x, const float *left, int n_rows, int64_t cols, int64_t stride,
                                     int n_ranks, float *outer) {
    VECTOR sums[SIDE][2];
#pragma GCC unroll 4
    for (int j = 0; j < n_ranks; j++)
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) sums[j][v] = NAMED(load)(outer + j * cols + v * LANES);
    for (int i = 0; i < n_rows; i++) {
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) {
            VECTOR values = NAMED(load)(x + i * cols + v * LANES);
#pragma GCC unroll 4
            for (int j = 0; j < n_ranks; j++) sums[j][v] += values * left[i * stride + j];
        }
    }
#pragma GCC unroll 4
    for (int j = 0; j < n_ranks; j++)
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) *(VECTOR *)(outer + j * cols + v * LANES) = sums[j][v];
}

TARGET INLINE void NAMED(outer_ranks)(const float *x, const float *left, int n_rows, int64_t cols, int64_t stride,
                                      int n_ranks, float *outer) {
    int64_t c = 0;
    for (; c + WIDTH <= cols; c += WIDTH) NAMED(outer_tile)(x + c, left, n_rows, cols, stride, n_ranks, outer + c);
    for (; c < cols; c++)
        for (int j = 0; j < n_ranks; j++)
            for (int i = 0; i < n_rows; i++) outer[j * cols + c] += left[i * stride + j] * x[i * cols + c];
}

TARGET INLINE void NAMED(add_outer)(const float *x, const float *left, int n_rows, int64_t cols, int64_t stride,
                                    int64_t rank, float *outer) {
    int64_t j = 0;
    for (; j + SIDE <= rank; j += SIDE)
        NAMED(outer_ranks)(x, left + j, n_rows, cols, stride, SIDE, outer + j * cols);
    for (; j < rank; j++) NAMED(outer_ranks)(x, left + j, n_rows, cols, stride, 1, outer + j * cols);
}

/* Sets what dropout takes away of WIDTH values of a row to zero; the column is a multiple of WIDTH. */
TARGET INLINE void NAMED(drop_pair)(VECTOR values[2], const Dropout *dropout, int64_t row, int64_t col) {
    BITS lanes, h;
    for (int lane = 0; lane < LANES; lane++) lanes[lane] = (uint32_t)lane;
#pragma GCC unroll 2
    for (int v = 0; v < 2; v++, col += LANES) {
        if (v == 0 || LANES < 16) { /* two vectors of 16 have their hashes in common */
            h = lanes + hash_number(dropout, row, col);
            HASH(h, dropout);
        }
        int is_upper = LANES < 16 ? (col & 16) != 0 : v; /* constant where it can be */
        values[v] = (VECTOR)((BITS)values[v] & (BITS)((is_upper ? h : h << 16) >= dropout->threshold));
    }
}

/* `n_rows` rows of x with what dropout takes away set to zero. */
TARGET INLINE void NAMED(drop)(const float *x, int64_t row, int n_rows, int64_t cols, const Dropout *dropout,
                               float *to) {
    for (int64_t end = row + n_rows; row < end; row++, x += cols, to += cols) {
        int64_t c = 0;
        for (; c + WIDTH <= cols; c += WIDTH) {
            VECTOR values[2] = {NAMED(load)(x + c), NAMED(load)(x + c + LANES)};
            NAMED(drop_pair)(values, dropout, row, c);
            *(VECTOR *)(to + c) = values[0], *(VECTOR *)(to + c + LANES) = values[1];
        }
        for (; c < cols; c++) to[c] = kept_value(x[c], dropout, row, c);
    }
}

/* y[i, c] += sum over j of left[i, j] right[j, c], for n_rows rows and WIDTH columns; n_rows is a constant. */
TARGET INLINE void NAMED(update_tile)(const Job *job, const float *left, int n_rows, int64_t row, int64_t col) {
    VECTOR sums[SIDE][2] = {{{0}}};
    for (int64_t j = 0; j < job->rank; j++) {
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) {
            VECTOR direction = NAMED(load)(job->right + j * job->cols + col + v * LANES);
#pragma GCC unroll 4
            for (int i = 0; i < n_rows; i++) sums[i][v] += direction * left[i * job->left_stride + j];
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < n_rows; i++) {
        float *y = (float *)job->x + (row + i) * job->cols + col;
        if (job->dropout.threshold) NAMED(drop_pair)(sums[i], &job->dropout, row + i, col);
        *(VECTOR *)y += sums[i][0], *(VECTOR *)(y + LANES) += sums[i][1];
    }
}

TARGET INLINE void NAMED(update_rows)(const Job *job, int64_t row, int n_rows) {
    int64_t c = 0, cols = job->cols;
    const float *left = job->left + row * job->left_stride;
    for (; c + WIDTH <= cols; c += WIDTH) NAMED(update_tile)(job, left, n_rows, row, c);
    for (; c < cols; c++)
        for (int i = 0; i < n_rows; i++) {
            float sum = 0;
            for (int64_t j = 0; j < job->rank; j++) sum += left[i * job->left_stride + j] * job->right[j * cols + c];
            ((float *)job->x)[(row + i) * cols + c] += kept_value(sum, &job->dropout, row + i, c);
        }
}

TARGET INLINE void NAMED(count)(const Job *job, int64_t start, int64_t stop, Partial *p) {
    count_values(job->x, job->stored, start, stop, job->dtype, job->dtype != FP32, LOAD_BITS, ROUND, SQUARE, p);
}

TARGET static void NAMED(count_floats)(const float *values, int64_t n, Partial *p) {
    count_values(values, NULL, 0, n, FP32, 0, LOAD_BITS, ROUND, SQUARE, p);
}

/* One share of a read: rows from `start` to `stop`. `space` has room for a tile, `outer` is the share's own. */
TARGET static void NAMED(read_rows)(const Job *job, int64_t start, int64_t stop, float *space, float *outer,
                                    Partial *p) {
    int64_t cols = job->cols;
    for (int64_t row = start; row < stop; row += TILE) {
        int n_rows = (int)(stop - row < TILE ? stop - row : TILE);
        int64_t first = row * cols, count = n_rows * cols;
        if (job->row) NAMED(count)(job, first, first + count, p);
        const float *tile = (const float *)job->x + first;
        if (job->dtype != FP32) {
            float *wide = job->wide ? job->wide + first : space;
            if (job->dtype == FP16) LOAD((const uint16_t *)job->x + first, (int)count, wide);
            else bfloats_to_floats((const uint16_t *)job->x + first, (int)count, wide);
            tile = wide;
        }
        if (job->dropout.threshold && job->rank) {
            NAMED(drop)(tile, row, n_rows, cols, &job->dropout, space);
            tile = space;
        }
        const float *left = job->left + row * job->left_stride;
        float *to = job->to ? job->to + row * job->to_stride : NULL;
        if (to) NAMED(project)(tile, job->right, n_rows, cols, job->rank, to, job->to_stride);
        if (outer) NAMED(add_outer)(tile, left, n_rows, cols, job->left_stride, job->rank, outer);
    }
}

/* One share of an update. */
TARGET static void NAMED(update)(const Job *job, int64_t start, int64_t stop, float *space, float *outer, Partial *p) {
    (void)space, (void)outer;
    for (int64_t row = start; row < stop;) {
        int n_rows = stop - row >= SIDE ? SIDE : 1;
        if (n_rows == SIDE) NAMED(update_rows)(job, row, SIDE);
        else NAMED(update_rows)(job, row, 1);
        int64_t first = row * job->cols, end = first + n_rows * job->cols;
        const float *y = (const float *)job->x + first;
        uint16_t *stored = job->stored ? (uint16_t *)job->stored + first : NULL;
        if (job->row) NAMED(count)(job, first, end, p);
        else if (stored && job->dtype == FP16) STORE(y, (int)(end - first), stored);
        else if (stored) floats_to_bfloats(y, (int)(end - first), stored);
        row += n_rows;
    }
}

#undef VECTOR
#undef BITS
#undef WIDTH
