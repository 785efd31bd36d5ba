/* One-pass tensor statistics on the CPU: what kernels/statistics/tensor_stats.py defines, in one read of memory.

   ATen needs a pass per statistic. Here a tensor is read once, in pieces, which statistics.h counts.

   The order of additions is fixed: 16 lanes per piece, pieces in order within a share of 2^15 values, shares in
   order. It depends neither on the number of threads nor on the instruction set, so the bits do not either.

   C11 with the vector types of GCC and Clang, for any chip. On x86-64 the hot function is compiled
   three times, also for AVX2 and F16C (which halves the time of fp16) and for AVX-512, and chosen at run time. */

#include "common.h" /* first: it asks the system for more than C11 */

#include "statistics.h"
#include "threads.h"

enum { SHARE = 1 << 15, N_EXPONENTS = 256 };

typedef struct Job {
    const void *x;
    void *stored; /* NULL: only count */
    int64_t n, n_shares;
    int dtype, count_small;
    void (*walk)(const struct Job *, int64_t, int64_t, Partial *);
    Partial *partials;
} Job;

static void share_portable(const Job *job, int64_t start, int64_t stop, Partial *p) {
    count_values(job->x, job->stored, start, stop, job->dtype, job->count_small, load_half, round_half,
                 square_piece, p);
}

#ifdef HAS_AVX2_VARIANT
AVX2 static void share_avx2(const Job *job, int64_t start, int64_t stop, Partial *p) {
    count_values(job->x, job->stored, start, stop, job->dtype, job->count_small, load_half_avx2, round_half_avx2,
                 square_piece, p);
}

AVX512 static void share_avx512(const Job *job, int64_t start, int64_t stop, Partial *p) {
    count_values(job->x, job->stored, start, stop, job->dtype, job->count_small, load_half_avx2, round_half_avx2,
                 square_piece_avx512, p);
}
#endif

static void share_of_job(void *argument, int64_t number, void *space) {
    (void)space;
    Job *job = argument;
    int64_t start = number * SHARE, stop = start + SHARE < job->n ? start + SHARE : job->n;
    Partial p = {0};
    job->walk(job, start, stop, &p);
    job->partials[number] = p;
}

/* stats(x, count_small, stored, row, n_threads). With `stored`, x is fp32 and is rounded to it; else, it being None, x
   is only counted. `row` is float64 [9]. All are dense, x and `stored` of any shape. */
static PyObject *py_stats(PyObject *self, PyObject *args) {
    (void)self;
    int n_threads;
    PyObject *x_object, *stored_object, *row_object;
    Tensor x, stored = {0}, row;
    Job job = {0};
    if (!PyArg_ParseTuple(args, "OpOOi", &x_object, &job.count_small, &stored_object, &row_object, &n_threads) ||
        !take_flat(x_object, "x", &x, stored_object == Py_None ? ANY_DTYPE : FP32, ANY_SIZE) ||
        (stored_object != Py_None && !take_flat(stored_object, "stored", &stored, HALF, values_of(&x))) ||
        !take(row_object, "row", &row, FP64, 1, SHAPE(N_FIELDS)))
        return NULL;
    job.x = x.at, job.stored = stored.at, job.n = values_of(&x);
    job.dtype = stored_object == Py_None ? x.dtype : stored.dtype;
    job.n_shares = (job.n + SHARE - 1) / SHARE;
    job.walk = AT_LEVEL(share);
    job.partials = new_scratch(sizeof(Partial) * (size_t)job.n_shares);
    if (!job.partials) return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS
    run_shares(share_of_job, &job, job.n_shares, n_threads, 0);
    Partial total = {0};
    for (int64_t i = 0; i < job.n_shares; i++) add_partial(&total, &job.partials[i]);
    write_row(&total, job.n, stored_object != Py_None, job.count_small, row.at);
    Py_END_ALLOW_THREADS
    free_scratch(job.partials);
    Py_RETURN_NONE;
}

static void count_exponents(const void *x, int64_t n, int dtype, int64_t *counts) {
    uint32_t bits[PIECE];
    /* Four tables: neighbours often share an exponent, and a counter cannot be raised twice at once. */
    int64_t tables[4][N_EXPONENTS] = {{0}};
    for (int64_t i = 0; i < n; i += PIECE) {
        int count = (int)(n - i < PIECE ? n - i : PIECE);
        load_piece(x, i, count, dtype, load_half, bits);
        for (int j = 0; j < count; j++) tables[j & 3][bits[j] >> 23]++;
    }
    for (int e = 0; e < N_EXPONENTS; e++) counts[e] = tables[0][e] + tables[1][e] + tables[2][e] + tables[3][e];
}

/* exponents(x, counts): int64 counts [256] of the fp32 exponent field of a dense x of any shape. */
static PyObject *py_exponents(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *x_object, *counts_object;
    Tensor x, counts;
    if (!PyArg_ParseTuple(args, "OO", &x_object, &counts_object) ||
        !take_flat(x_object, "x", &x, ANY_DTYPE, ANY_SIZE) ||
        !take(counts_object, "counts", &counts, INT64, 1, SHAPE(N_EXPONENTS)))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    count_exponents(x.at, values_of(&x), x.dtype, counts.at);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"stats", py_stats, METH_VARARGS, "One row of statistics; see tensor_stats.py."},
    {"exponents", py_exponents, METH_VARARGS, "Counts of binary exponents; see tensor_stats.py."},
    {NULL, NULL, 0, NULL},
};

enum { PARTIAL_BYTES = sizeof(Partial) };
static const Constant constants[] = {CONSTANT(SHARE), CONSTANT(PARTIAL_BYTES), {NULL, 0}};

MODULE(stats, "One-pass tensor statistics.")
