/* Passes over a tall matrix X [M, C] against factors of low rank r, for lora_linear_aten.py: a matrix library reads X
   once for each of them, and once more for dropout, for widening, for rounding and for statistics.

       read      any of: the row of X; X in fp32; T = drop(X) R^T [M, r]; L^T drop(X) [r, C]
       update    X += drop(L R), rounded to 16 bits if asked, and the row of the result

   with R [r, C] and L [M, r]. A tile of sixteen rows is in the cache while everything is done to it. The loops are in
   low_rank_tiles.h, compiled for AVX-512, for AVX2 and for any chip, and chosen at run time. The order of additions
   depends on the chip, as that of a matrix library does, and not on the number of threads: shares are rows, and their
   parts of L^T X are added in order. */

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

typedef struct Job {
    const void *x; /* update: fp32, and written */
    void *stored;
    int dtype; /* of x, or of `stored` */
    int64_t rows, cols, rank, rows_per_share;
    const float *right, *left;
    int64_t left_stride, to_stride;
    float *to, *wide, *outer;
    double *row;
    Dropout dropout;
    void (*walk)(const struct Job *, int64_t, int64_t, float *, float *, Partial *);
    float *outers;
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

static void choose(Job *job, int is_update, int portable) {
    job->walk = is_update ? update_portable : read_rows_portable;
#ifdef HAS_AVX2_VARIANT
    if (portable) return;
    if (has_avx512()) job->walk = is_update ? update_avx512 : read_rows_avx512;
    else if (has_avx2()) job->walk = is_update ? update_avx2 : read_rows_avx2;
#else
    (void)portable;
#endif
}

static void share(void *argument, int64_t number) {
    Job *job = argument;
    int64_t start = number * job->rows_per_share, stop = start + job->rows_per_share;
    float *outer = job->outers ? job->outers + number * job->rank * job->cols : NULL;
    float *space = malloc(sizeof(float) * TILE * (size_t)job->cols);
    if (!space) abort(); /* some hundred kilobytes */
    if (outer) memset(outer, 0, sizeof(float) * (size_t)(job->rank * job->cols));
    Partial p = {0};
    job->walk(job, start, stop < job->rows ? stop : job->rows, space, outer, &p);
    job->partials[number] = p;
    free(space);
}

/* How many shares: a function of the shape alone, so that the bits do not depend on the threads. */
static int64_t cut(Job *job) {
    int64_t most = MAX_SHARES, bytes = job->outer ? 4 * job->rank * job->cols : 0;
    if (bytes && OUTER_BYTES / bytes < most) most = OUTER_BYTES / bytes > MIN_SHARES ? OUTER_BYTES / bytes : MIN_SHARES;
    int64_t rows = (job->rows + most - 1) / most;
    rows = (rows + TILE - 1) / TILE * TILE;
    job->rows_per_share = rows > MIN_ROWS ? rows : MIN_ROWS;
    return (job->rows + job->rows_per_share - 1) / job->rows_per_share;
}

static PyObject *run(Job *job, int is_update, int n_threads, int portable) {
    choose(job, is_update, portable);
    int64_t n_shares = cut(job), n_outer = job->rank * job->cols;
    job->partials = malloc(sizeof(Partial) * (size_t)(n_shares ? n_shares : 1));
    int64_t n_outers = n_shares * n_outer;
    job->outers = job->outer ? malloc(sizeof(float) * (size_t)(n_outers > 0 ? n_outers : 1)) : NULL;
    if (!job->partials || (job->outer && !job->outers)) {
        free(job->partials);
        free(job->outers);
        return PyErr_NoMemory();
    }
    Py_BEGIN_ALLOW_THREADS
    run_shares(share, job, n_shares, n_threads);
    if (job->outer) memset(job->outer, 0, sizeof(float) * (size_t)n_outer);
    Partial total = {0};
    for (int64_t s = 0; s < n_shares; s++) {
        add_partial(&total, &job->partials[s]);
        for (int64_t i = 0; job->outer && i < n_outer; i++) job->outer[i] += job->outers[s * n_outer + i];
    }
    int is_16_bit = job->dtype != FP32;
    if (job->row) write_row(&total, job->rows * job->cols, is_update && is_16_bit, is_16_bit, job->row);
    Py_END_ALLOW_THREADS
    free(job->partials);
    free(job->outers);
    Py_RETURN_NONE;
}

typedef unsigned long long Address;

static void *pointer(Address address) { return (void *)(uintptr_t)address; }

/* read(x, dtype, (rows, cols, rank), right, left, left's stride, to, to's stride, outer, wide, row, seed, p, n_threads,
   portable): addresses as int, 0 for what is not there. */
static PyObject *py_read(PyObject *self, PyObject *args) {
    (void)self;
    Job job = {0};
    Address x, right, left, to, outer, wide, row;
    long long rows, cols, rank, left_stride, to_stride;
    unsigned long long seed;
    double p;
    int n_threads, portable;
    if (!PyArg_ParseTuple(args, "Ki(LLL)KKLKLKKKKdip", &x, &job.dtype, &rows, &cols, &rank, &right, &left, &left_stride,
                          &to, &to_stride, &outer, &wide, &row, &seed, &p, &n_threads, &portable))
        return NULL;
    job.x = pointer(x), job.right = pointer(right), job.left = pointer(left), job.to = pointer(to);
    job.outer = pointer(outer), job.wide = pointer(wide), job.row = pointer(row);
    job.rows = rows, job.cols = cols, job.rank = rank, job.left_stride = left_stride, job.to_stride = to_stride;
    job.dropout = dropout_of(seed, p, cols);
    return run(&job, 0, n_threads, portable);
}

/* update(x, (rows, cols, rank), left, left's stride, right, stored, its dtype, row, seed, p, n_threads, portable) */
static PyObject *py_update(PyObject *self, PyObject *args) {
    (void)self;
    Job job = {0};
    Address x, left, right, stored, row;
    long long rows, cols, rank, left_stride;
    unsigned long long seed;
    double p;
    int n_threads, portable;
    if (!PyArg_ParseTuple(args, "K(LLL)KLKKiKKdip", &x, &rows, &cols, &rank, &left, &left_stride, &right, &stored,
                          &job.dtype, &row, &seed, &p, &n_threads, &portable))
        return NULL;
    job.x = pointer(x), job.left = pointer(left), job.right = pointer(right), job.stored = pointer(stored);
    job.row = pointer(row);
    job.rows = rows, job.cols = cols, job.rank = rank, job.left_stride = left_stride;
    job.dropout = dropout_of(seed, p, cols);
    return run(&job, 1, n_threads, portable);
}

static PyMethodDef methods[] = {
    {"read", py_read, METH_VARARGS, "See lora_linear_aten.py."},
    {"update", py_update, METH_VARARGS, "See lora_linear_aten.py."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_low_rank", "Passes against factors of low rank.", -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__low_rank(void) { return PyModule_Create(&module); }
