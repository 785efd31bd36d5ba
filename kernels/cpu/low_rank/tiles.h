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

/* to[j, c] = from[j, c] + add[j, c] + sum over i of left[i, j] x[i, c], where `from` is what there is of the same example
   and `add` what there is of those before, either of them NULL for 0. */
typedef struct {
    const float *from, *add;
    float *to;
} NAMED(Outer);

/* The sums of squares of each of four pairs of vectors. A double holds the square of any fp32; squares in fp32 are
   summed up where all are well within its range. */
TARGET INLINE void NAMED(add_squares)(VECTOR sums[SIDE][2], int n_ranks, double *squares) {
    Four folded[SIDE] = {{0}}, each;
#pragma GCC unroll 4
    for (int j = 0; j < n_ranks; j++) folded[j] = NAMED(fold)(sums[j][0] * sums[j][0] + sums[j][1] * sums[j][1]);
    each = sum_each(folded);
    for (int j = 0; j < n_ranks; j++) {
        double square = each[j];
        if (!(each[j] < 1e30f && each[j] > 1e-25f)) {
            square = 0;
            for (int v = 0; v < 2; v++)
                for (int lane = 0; lane < LANES; lane++) square += (double)sums[j][v][lane] * sums[j][v][lane];
        }
        squares[j] += square;
    }
}

/* The same for n_ranks rows and WIDTH columns, and squares[j] += sum over c of (from + the sum)^2, or NULL; n_ranks is a
   constant. */
TARGET INLINE void NAMED(outer_tile)(const float *x, const float *left, int n_rows, int64_t cols, int64_t stride,
                                     int n_ranks, NAMED(Outer) outer, double *squares) {
    VECTOR sums[SIDE][2] = {{{0}}};
    if (outer.from)
#pragma GCC unroll 4
        for (int j = 0; j < n_ranks; j++)
#pragma GCC unroll 2
            for (int v = 0; v < 2; v++) sums[j][v] = NAMED(load)(outer.from + j * cols + v * LANES);
    for (int i = 0; i < n_rows; i++) {
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) {
            VECTOR values = NAMED(load)(x + i * cols + v * LANES);
#pragma GCC unroll 4
            for (int j = 0; j < n_ranks; j++) sums[j][v] += values * left[i * stride + j];
        }
    }
    if (squares) NAMED(add_squares)(sums, n_ranks, squares);
#pragma GCC unroll 4
    for (int j = 0; j < n_ranks; j++)
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) {
            if (outer.add) sums[j][v] += NAMED(load)(outer.add + j * cols + v * LANES);
            *(VECTOR *)(outer.to + j * cols + v * LANES) = sums[j][v];
        }
}

TARGET INLINE void NAMED(outer_ranks)(const float *x, const float *left, int n_rows, int64_t cols, int64_t stride,
                                      int n_ranks, NAMED(Outer) outer, double *squares) {
    int64_t c = 0;
    for (; c + WIDTH <= cols; c += WIDTH) {
        NAMED(Outer) own = {outer.from ? outer.from + c : NULL, outer.add ? outer.add + c : NULL, outer.to + c};
        NAMED(outer_tile)(x + c, left, n_rows, cols, stride, n_ranks, own, squares);
    }
    for (; c < cols; c++)
        for (int j = 0; j < n_ranks; j++) {
            int64_t at = j * cols + c;
            float sum = outer.from ? outer.from[at] : 0;
            for (int i = 0; i < n_rows; i++) sum += left[i * stride + j] * x[i * cols + c];
            if (squares) squares[j] += (double)sum * sum;
            outer.to[at] = outer.add ? outer.add[at] + sum : sum;
        }
}

/* All of it; `squares` are those of an example that ends here, or NULL. */
TARGET INLINE void NAMED(add_outer)(const Job *job, const float *x, const float *left, int n_rows, NAMED(Outer) outer,
                                    double *squares) {
    int64_t cols = job->cols, n_ranks;
    for (int64_t j = 0; j < job->rank; j += n_ranks) {
        double found[SIDE] = {0};
        n_ranks = job->rank - j >= SIDE ? SIDE : 1;
        if (n_ranks == SIDE)
            NAMED(outer_ranks)(x, left + j, n_rows, cols, job->left_stride, SIDE, outer, squares ? found : NULL);
        else NAMED(outer_ranks)(x, left + j, n_rows, cols, job->left_stride, 1, outer, squares ? found : NULL);
        for (int64_t k = 0; squares && k < n_ranks; k++) squares[job->owners[j + k]] += found[k];
        if (outer.from) outer.from += n_ranks * cols;
        if (outer.add) outer.add += n_ranks * cols;
        outer.to += n_ranks * cols;
    }
}

/* Adds a tile's rows to G, example by example. `piece` has room for a G_e, which is only used where the share has
   several; the sum of the share is in `outer`. */
TARGET static void NAMED(add_examples)(const Job *job, const Span *span, const float *x, int64_t row, int n_rows,
                                       int64_t *example, float *piece, float *outer) {
    for (int64_t at = row, end = row + n_rows, next; at < end; at = next) {
        while (!span->is_part && job->starts[*example + 1] <= at) ++*example;
        int64_t first = span->is_part ? span->start : job->starts[*example];
        int64_t stop = span->is_part ? span->stop : job->starts[*example + 1];
        int is_joined = span->last_example > span->example + 1;
        next = stop < end ? stop : end;
        int ends = next == stop;
        NAMED(Outer) how = {at == first ? NULL : outer, NULL, outer};
        if (is_joined) {
            how.from = at == first ? NULL : piece;
            how.add = ends && first > span->start ? outer : NULL;
            how.to = ends ? outer : piece;
        }
        double *squares = NULL;
        if (job->squares && ends && !span->is_part) squares = job->squares + *example * job->squares_stride;
        NAMED(add_outer)(job, x + (at - row) * job->cols, job->left + at * job->left_stride, (int)(next - at), how, squares);
    }
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

/* One share of a read. `space` has room for a tile and, where it has several examples, for a G_e; `outer` is the
   share's own. */
TARGET static void NAMED(read_rows)(const Job *job, const Span *span, float *space, float *outer, Partial *p) {
    int64_t cols = job->cols, example = span->example;
    for (int64_t row = span->start; row < span->stop; row += TILE) {
        int n_rows = (int)(span->stop - row < TILE ? span->stop - row : TILE);
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
        float *to = job->to ? job->to + row * job->to_stride : NULL;
        if (to) NAMED(project)(tile, job->right, n_rows, cols, job->rank, to, job->to_stride);
        if (outer) NAMED(add_examples)(job, span, tile, row, n_rows, &example, space + TILE * cols, outer);
    }
}

/* One share of an update. */
TARGET static void NAMED(update)(const Job *job, const Span *span, float *space, float *outer, Partial *p) {
    (void)space, (void)outer;
    for (int64_t row = span->start, stop = span->stop; row < stop;) {
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
