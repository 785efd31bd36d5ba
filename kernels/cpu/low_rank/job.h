/* What one call of low_rank.c has to do. Included after common.h, dropout.h and statistics.h. */

#ifndef LORA_TRAIN_LOW_RANK_JOB_H
#define LORA_TRAIN_LOW_RANK_JOB_H

enum { TILE = 16, SIDE = 4 }; /* rows read together; rows or ranks that the registers hold at once */
enum { MIN_ROWS = 64, MAX_SHARES = 32, MIN_SHARES = 4, OUTER_BYTES = 1 << 26 };

/* Rows of X that one share reads: all of those of the examples from `example` on, or a part of one of them, of which
   `follows` says that another part of it is in the share before. */
typedef struct {
    int64_t start, stop, example, last_example;
    int is_part, follows;
} Span;

/* One of the matrices that R or G is made of: its values, their row or NULL, its rank, its factor. */
typedef struct {
    float *values;
    double *row;
    int64_t rank;
    float factor;
} Block;

typedef struct Job {
    const void *x; /* update: fp32, and written */
    void *stored;
    int dtype; /* of x, or of `stored` */
    int across;
    int64_t rows, cols, rank, n_shares;
    Span *spans;
    const int64_t *starts; /* of the examples, and M; two of them where nobody says */
    int64_t n_examples, squares_stride;
    double *squares; /* |G_e|^2 of every example and matrix, or NULL */
    int16_t *owners; /* of every row of G the matrix it belongs to */
    Block *blocks, *rights, *outers; /* all, those of R and of G */
    Py_ssize_t n_rights, n_outers;
    int64_t left_stride, to_stride;
    float *left, *to, *wide; /* `left` is only read */
    double *row;
    Dropout dropout;
    void (*walk)(const struct Job *, const Span *, float *, float *, Partial *);
    void (*count_floats)(const float *, int64_t, Partial *);
    float *right, *sums; /* R, and of every share its part of G */
    Partial *partials;
} Job;

#endif
