/* Passes over a tall matrix X [M, C] against factors of low rank r, for lora_linear/passes.py: a matrix library reads X once
   for each of them, and once more for dropout, for widening, for rounding and for statistics.

       read      any of: the row of X; X in fp32; T = drop(X) R^T [M, r]; G = L^T drop(X) [r, C], and its row
       update    X += drop(L R), rounded to 16 bits if asked, and the row of the result

   with R [r, C] and L [M, r]. R and G may be made of several matrices, one below the other, each of them stored as it
   is or, `across`, transposed; those of R are multiplied by a factor each. A tile of sixteen rows is in the cache while
   everything is done to it. The loops are in low_rank_tiles.h, compiled for AVX-512, for AVX2 and for any chip, and
   chosen at run time. The order of additions depends on the chip, as that of a matrix library does, and not on the
   number of threads: shares are rows, and their parts of L^T X are added in order. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "dropout.h"
#include "statistics.h"
#include "threads.h"

enum { TILE = 16, SIDE = 4 }; /* rows read together; rows or ranks that the registers hold at once */
enum { MIN_ROWS = 64, MAX_SHARES = 32, MIN_SHARES = 4, OUTER_BYTES = 1 << 26 };

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
    int64_t rows, cols, rank, rows_per_share;
    Block *blocks, *rights, *outers; /* all, those of R and of G */
    Py_ssize_t n_rights, n_outers;
    const float *left;
    int64_t left_stride, to_stride;
    float *to, *wide;
    double *row;
    Dropout dropout;
    void (*walk)(const struct Job *, int64_t, int64_t, float *, float *, Partial *);
    void (*count_floats)(const float *, int64_t, Partial *);
    float *right, *sums; /* R, and of every share its part of G */
    Partial *partials;
} Job;

typedef float Four __attribute__((vector_size(16)));
typedef int32_t Lanes __attribute__((vector_size(16)));

#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (Lanes){__VA_ARGS__})
#endif

/* The sums of the lanes of four vectors. */
INLINE Four sum_each(const Four v[4]) {
    Four a = PICK(v[0], v[1], 0, 4, 1, 5) + PICK(v[0], v[1], 2, 6, 3, 7);
    Four b = PICK(v[2], v[3], 0, 4, 1, 5) + PICK(v[2], v[3], 2, 6, 3, 7);
    return PICK(a, b, 0, 1, 4, 5) + PICK(a, b, 2, 3, 6, 7);
}

#define LANES 4
#define TARGET
#define NAMED(name) name##_portable
#define LOAD halves_to_floats
#define STORE floats_to_halves
#define LOAD_BITS load_half
#define ROUND round_half
#define SQUARE square_piece
#include "low_rank_tiles.h"
#undef LANES
#undef TARGET
#undef NAMED
#undef LOAD
#undef STORE
#undef LOAD_BITS
#undef ROUND
#undef SQUARE

#ifdef HAS_AVX2_VARIANT
#define LOAD halves_to_floats_avx2
#define STORE floats_to_halves_avx2
#define LOAD_BITS load_half_avx2
#define ROUND round_half_avx2

#define LANES 8
#define TARGET AVX2
#define NAMED(name) name##_avx2
#define SQUARE square_piece
#include "low_rank_tiles.h"
#undef LANES
#undef TARGET
#undef NAMED
#undef SQUARE

#define LANES 16
#define TARGET AVX512
#define NAMED(name) name##_avx512
#define SQUARE square_piece_avx512
#include "low_rank_tiles.h"
#endif

static void share(void *argument, int64_t number, void *space) {
    Job *job = argument;
    int64_t start = number * job->rows_per_share, stop = start + job->rows_per_share;
    float *outer = job->sums ? job->sums + number * job->rank * job->cols : NULL;
    if (outer) memset(outer, 0, sizeof(float) * (size_t)(job->rank * job->cols));
    Partial p = {0};
    job->walk(job, start, stop < job->rows ? stop : job->rows, space, outer, &p);
    job->partials[number] = p;
}

/* How many shares: a function of the shape alone, so that the bits do not depend on the threads. */
static int64_t cut(Job *job) {
    int64_t most = MAX_SHARES, bytes = job->n_outers ? 4 * job->rank * job->cols : 0;
    if (bytes && OUTER_BYTES / bytes < most) most = OUTER_BYTES / bytes > MIN_SHARES ? OUTER_BYTES / bytes : MIN_SHARES;
    int64_t rows = (job->rows + most - 1) / most;
    rows = (rows + TILE - 1) / TILE * TILE;
    job->rows_per_share = rows > MIN_ROWS ? rows : MIN_ROWS;
    return (job->rows + job->rows_per_share - 1) / job->rows_per_share;
}

/* Puts R together. */
static void stack(const Job *job) {
    int64_t cols = job->cols;
    float *to = job->right;
    for (const Block *b = job->rights; b < job->rights + job->n_rights; to += b->rank * cols, b++)
        for (int64_t j = 0; j < b->rank; j++)
            for (int64_t c = 0; c < cols; c++)
                to[j * cols + c] = b->factor * b->values[job->across ? c * b->rank + j : j * cols + c];
}

/* Adds the shares' parts of G and takes it apart. */
static void unstack(const Job *job, int64_t n_shares) {
    int64_t cols = job->cols, n = job->rank * cols;
    float *from = job->sums;
    if (!n_shares) memset(from, 0, sizeof(float) * (size_t)n);
    for (int64_t s = 1; s < n_shares; s++)
        for (int64_t i = 0; i < n; i++) from[i] += job->sums[s * n + i];
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

static int left_is_finite(const Job *job) {
    uint32_t found = 0, bits;
    for (int64_t i = 0; job->left && i < job->rows; i++)
        for (int64_t j = 0; j < job->rank; j++) {
            memcpy(&bits, job->left + i * job->left_stride + j, 4);
            found |= (bits & INF_BITS) == INF_BITS;
        }
    return !found;
}

static void free_job(Job *job) {
    free_scratch(job->partials);
    free_scratch(job->right);
    free_scratch(job->sums);
    free_scratch(job->blocks);
}

/* Whether there was memory; without it nothing was written. */
static int compute(Job *job, int is_update, int n_threads, int *finite) {
    int64_t n_shares = cut(job), values = job->rank * job->cols;
    int is_16_bit = job->dtype != FP32;
    job->partials = new_scratch(sizeof(Partial) * (size_t)n_shares);
    if (job->n_rights) job->right = new_scratch(sizeof(float) * (size_t)values);
    if (job->n_outers) job->sums = new_scratch(sizeof(float) * (size_t)(values * (n_shares ? n_shares : 1)));
    if (!job->partials || (job->n_rights && !job->right) || (job->n_outers && !job->sums)) return 0;
    if (job->right) stack(job);
    if (!run_shares(share, job, n_shares, n_threads, is_update ? 0 : sizeof(float) * TILE * (size_t)job->cols))
        return 0;
    if (job->sums) unstack(job, n_shares), *finite = left_is_finite(job);
    Partial total = {0};
    for (int64_t s = 0; s < n_shares; s++) add_partial(&total, &job->partials[s]);
    if (job->row) write_row(&total, job->rows * job->cols, is_update && is_16_bit, is_16_bit, job->row);
    return 1;
}

/* Whether L is finite, or NULL after an error. */
static PyObject *run(Job *job, int is_update, int n_threads) {
    job->walk = is_update ? AT_LEVEL(update) : AT_LEVEL(read_rows);
    job->count_floats = AT_LEVEL(count_floats);
    int finite = 1, enough;
    Py_BEGIN_ALLOW_THREADS
    enough = compute(job, is_update, n_threads, &finite);
    Py_END_ALLOW_THREADS
    free_job(job);
    return enough ? PyBool_FromLong(finite) : PyErr_NoMemory();
}

typedef unsigned long long Address;

static void *pointer(Address address) { return (void *)(uintptr_t)address; }

/* The blocks of a tuple of (address, rank, factor, address of the row or 0), and the sum of their ranks. */
static int parse_blocks(PyObject *tuple, Block *blocks, int64_t *rank) {
    Py_ssize_t n = PyTuple_GET_SIZE(tuple);
    if (n) *rank = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        Address values, row;
        long long own;
        Block *block = blocks + i;
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(tuple, i), "KLfK", &values, &own, &block->factor, &row)) return 0;
        block->values = pointer(values), block->row = pointer(row), block->rank = own;
        *rank += own;
    }
    return 1;
}

/* Those of R and of G, in this order. */
static int parse_both(Job *job, PyObject *rights, PyObject *outers) {
    job->n_rights = PyTuple_GET_SIZE(rights), job->n_outers = outers ? PyTuple_GET_SIZE(outers) : 0;
    job->blocks = new_scratch(sizeof(Block) * (size_t)(job->n_rights + job->n_outers));
    if (!job->blocks) return PyErr_NoMemory() != NULL;
    job->rights = job->blocks, job->outers = job->blocks + job->n_rights;
    if (parse_blocks(rights, job->rights, &job->rank) &&
        (!outers || parse_blocks(outers, job->outers, &job->rank)))
        return 1;
    free_job(job);
    return 0;
}

/* read(x, dtype, (rows, cols), across, R, L, its stride, T, its stride, G, wide, row, seed, p, n_threads):
   addresses as int, 0 for what is not there; R and G tuples of blocks. Returns whether L is finite. */
static PyObject *py_read(PyObject *self, PyObject *args) {
    (void)self;
    Job job = {0};
    Address x, left, to, wide, row;
    PyObject *rights, *outers;
    long long rows, cols, left_stride, to_stride;
    unsigned long long seed;
    double p;
    int n_threads;
    if (!PyArg_ParseTuple(args, "Ki(LL)pO!KLKLO!KKKdi", &x, &job.dtype, &rows, &cols, &job.across, &PyTuple_Type,
                          &rights, &left, &left_stride, &to, &to_stride, &PyTuple_Type, &outers, &wide, &row, &seed, &p,
                          &n_threads))
        return NULL;
    if (!parse_both(&job, rights, outers)) return NULL;
    job.x = pointer(x), job.left = pointer(left), job.to = pointer(to), job.wide = pointer(wide);
    job.row = pointer(row);
    job.rows = rows, job.cols = cols, job.left_stride = left_stride, job.to_stride = to_stride;
    job.dropout = dropout_of(seed, p, cols);
    return run(&job, 0, n_threads);
}

/* update(x, (rows, cols), across, L, its stride, R, stored, its dtype, row, seed, p, n_threads) */
static PyObject *py_update(PyObject *self, PyObject *args) {
    (void)self;
    Job job = {0};
    Address x, left, stored, row;
    PyObject *rights;
    long long rows, cols, left_stride;
    unsigned long long seed;
    double p;
    int n_threads;
    if (!PyArg_ParseTuple(args, "K(LL)pKLO!KiKKdi", &x, &rows, &cols, &job.across, &left, &left_stride, &PyTuple_Type,
                          &rights, &stored, &job.dtype, &row, &seed, &p, &n_threads))
        return NULL;
    if (!parse_both(&job, rights, NULL)) return NULL;
    job.x = pointer(x), job.left = pointer(left), job.stored = pointer(stored), job.row = pointer(row);
    job.rows = rows, job.cols = cols, job.left_stride = left_stride;
    job.dropout = dropout_of(seed, p, cols);
    return run(&job, 1, n_threads);
}

static PyMethodDef methods[] = {
    {"read", py_read, METH_VARARGS, "See lora_linear/passes.py."},
    {"update", py_update, METH_VARARGS, "See lora_linear/passes.py."},
    {NULL, NULL, 0, NULL},
};

enum { BLOCK_BYTES = sizeof(Block), PARTIAL_BYTES = sizeof(Partial) };
static const Constant constants[] = {CONSTANT(TILE),        CONSTANT(MIN_ROWS),    CONSTANT(MAX_SHARES),
                                     CONSTANT(MIN_SHARES),  CONSTANT(OUTER_BYTES), CONSTANT(BLOCK_BYTES),
                                     CONSTANT(PARTIAL_BYTES), CONSTANT(MAX_THREADS), {NULL, 0}};

MODULE(low_rank, "Passes against factors of low rank.")
