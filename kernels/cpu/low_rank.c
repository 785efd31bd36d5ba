/* Passes over a tall matrix X [M, C] against factors of low rank r, for lora_linear/passes.py: a matrix library reads X once
   for each of them, and once more for dropout, for widening, for rounding and for statistics.

       read      any of: the row of X; X in fp32; T = drop(X) R^T [M, r]; G = L^T drop(X) [r, C], and its row
       update    X += drop(L R), rounded to 16 bits if asked, and the row of the result

   with R [r, C] and L [M, r]. The M rows of X are those of E examples, one behind the other: G is the sum of a G_e of
   each, and |G_e|^2 is left where it is asked for. R and G may be made of several matrices, one below the other, each of them stored as it
   is or, `across`, transposed; those of R are multiplied by a factor each. A tile of sixteen rows is in the cache while
   everything is done to it. The loops are in low_rank/tiles.h, compiled for AVX-512, for AVX2 and for any chip, and
   chosen at run time. The order of additions depends on the chip and on where examples begin, as that of a matrix library
   on the shape, and neither on the number of threads nor on whether |G_e|^2 is asked for: a share is some whole examples
   or a part of one, and their parts of G are added in order. */

#include "common.h" /* first: it asks the system for more than C11 */

#include <string.h>

#include "dropout.h"
#include "statistics.h"
#include "threads.h"

#include "low_rank/job.h"
#include "low_rank/shares.h"

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
#include "low_rank/tiles.h"
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
#include "low_rank/tiles.h"
#undef LANES
#undef TARGET
#undef NAMED
#undef SQUARE

#define LANES 16
#define TARGET AVX512
#define NAMED(name) name##_avx512
#define SQUARE square_piece_avx512
#include "low_rank/tiles.h"
#endif

static void share(void *argument, int64_t number, void *space) {
    Job *job = argument;
    float *outer = job->sums ? job->sums + number * job->rank * job->cols : NULL;
    Partial p = {0};
    job->walk(job, job->spans + number, space, outer, &p);
    job->partials[number] = p;
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
    free_scratch(job->spans);
    free_scratch(job->owners);
}

/* Whether there was memory; without it nothing was written. */
static int compute(Job *job, int is_update, int n_threads, int *finite) {
    int64_t whole[2] = {0, job->rows}, values = job->rank * job->cols;
    int is_16_bit = job->dtype != FP32;
    if (!job->starts) job->starts = whole, job->n_examples = 1;
    if (!cut(job)) return 0;
    job->partials = new_scratch(sizeof(Partial) * (size_t)job->n_shares);
    if (job->n_rights) job->right = new_scratch(sizeof(float) * (size_t)values);
    if (job->n_outers) job->sums = new_scratch(sizeof(float) * (size_t)(values * (job->n_shares ? job->n_shares : 1)));
    if (!job->partials || (job->n_rights && !job->right) || (job->n_outers && !job->sums)) return 0;
    if (job->squares && !prepare_squares(job)) return 0;
    if (job->right) stack(job);
    if (!run_shares(share, job, job->n_shares, n_threads, is_update ? 0 : space_of(job))) return 0;
    if (job->sums) unstack(job), *finite = left_is_finite(job);
    Partial total = {0};
    for (int64_t s = 0; s < job->n_shares; s++) add_partial(&total, &job->partials[s]);
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

/* Matrices that R or G is made of, as Python has them: their factors, or None for 1, their rows or None, and of G the
   examples or None. */
typedef struct {
    PyObject *matrices, *factors, *rows, *examples;
    Py_ssize_t n;
    int across;
} Stack;

static int is_list_of(PyObject *object, Py_ssize_t n) {
    return (PyList_Check(object) || PyTuple_Check(object)) && (n < 0 || PySequence_Fast_GET_SIZE(object) == n);
}

static int read_stack(PyObject *object, Stack *stack) {
    if (!PyTuple_Check(object) || PyTuple_GET_SIZE(object) != 5 || !is_list_of(PyTuple_GET_ITEM(object, 0), -1)) {
        PyErr_SetString(PyExc_ValueError, "a stack is (matrices, across, factors, rows, examples)");
        return 0;
    }
    if (!PyArg_ParseTuple(object, "OpOOO", &stack->matrices, &stack->across, &stack->factors, &stack->rows,
                          &stack->examples))
        return 0;
    stack->n = PySequence_Fast_GET_SIZE(stack->matrices);
    if ((stack->factors == Py_None || is_list_of(stack->factors, stack->n)) &&
        (stack->rows == Py_None || is_list_of(stack->rows, stack->n)))
        return 1;
    PyErr_Format(PyExc_ValueError, "a stack of %zd matrices has another number of factors or rows", stack->n);
    return 0;
}

/* The row lives as long as the call, whose argument it is. */
static int take_row(PyObject *object, double **row) {
    Py_buffer view;
    *row = NULL;
    if (object == Py_None) return 1;
    if (PyObject_GetBuffer(object, &view, PyBUF_CONTIG | PyBUF_FORMAT)) return 0;
    if (view.len == N_FIELDS * sizeof(double) && !strcmp(view.format, "d")) *row = view.buf;
    PyBuffer_Release(&view);
    if (!*row) PyErr_Format(PyExc_ValueError, "a row is no float64 [%d]", N_FIELDS);
    return *row != NULL;
}

/* The matrices of a stack, and the sum of their ranks, which is `job->rank` if that is known. */
static int take_stack(Job *job, const Stack *stack, const char *name, Block *blocks) {
    int64_t rank = 0;
    Tensor matrix;
    job->across = stack->across;
    for (Py_ssize_t i = 0; i < stack->n; i++) {
        Block *block = blocks + i;
        PyObject *row = stack->rows == Py_None ? Py_None : PySequence_Fast_GET_ITEM(stack->rows, i);
        block->factor = 1;
        if (stack->factors != Py_None)
            block->factor = (float)PyFloat_AsDouble(PySequence_Fast_GET_ITEM(stack->factors, i));
        if (PyErr_Occurred() || !take_row(row, &block->row) ||
            !take(PySequence_Fast_GET_ITEM(stack->matrices, i), name, &matrix, FP32, 2,
                  SHAPE(job->across ? job->cols : ANY_SIZE, job->across ? ANY_SIZE : job->cols)))
            return 0;
        block->values = matrix.at, block->rank = matrix.sizes[job->across];
        rank += block->rank;
    }
    if (job->rank == ANY_SIZE) job->rank = rank;
    if (rank == job->rank) return 1;
    PyErr_Format(PyExc_ValueError, "%s has rank %lld, not %lld", name, (long long)rank, (long long)job->rank);
    return 0;
}

/* Room for the blocks of R and of G, in this order. */
static int new_blocks(Job *job, Py_ssize_t n_rights, Py_ssize_t n_outers) {
    job->n_rights = n_rights, job->n_outers = n_outers;
    job->blocks = new_scratch(sizeof(Block) * (size_t)(n_rights + n_outers));
    if (!job->blocks) return PyErr_NoMemory() != NULL;
    job->rights = job->blocks, job->outers = job->blocks + n_rights;
    return 1;
}

/* [M, r], rows dense. */
static int take_tall(const Job *job, PyObject *object, const char *name, float **at, int64_t *stride) {
    Tensor t;
    if (!take(object, name, &t, FP32, 1, SHAPE(job->rows, job->rank))) return 0;
    *at = t.at, *stride = t.strides[0];
    return 1;
}

/* (starts, squares, column): contiguous int64 [E + 1] from 0 to M; float64 [E, columns], rows dense, of which the matrices
   of G take those from `column` on, or None. Both live as long as the call. */
static int take_examples(Job *job, PyObject *object) {
    PyObject *starts, *squares;
    Py_ssize_t column;
    Py_buffer view;
    if (object == Py_None) return 1;
    if (!PyArg_Parse(object, "(OOn)", &starts, &squares, &column) ||
        PyObject_GetBuffer(starts, &view, PyBUF_CONTIG_RO | PyBUF_FORMAT))
        return 0;
    Py_ssize_t n = view.len / (Py_ssize_t)sizeof(int64_t);
    int ordered = view.itemsize == sizeof(int64_t) && strchr("lq", *view.format) && n >= 2;
    job->starts = view.buf, job->n_examples = n - 1;
    PyBuffer_Release(&view);
    ordered = ordered && !job->starts[0] && job->starts[n - 1] == job->rows;
    for (Py_ssize_t e = 1; ordered && e < n; e++) ordered = job->starts[e - 1] <= job->starts[e];
    if (!ordered) return PyErr_Format(PyExc_ValueError, "starts do not go from 0 to the rows of x") != NULL;
    if (squares == Py_None) return 1;
    if (PyObject_GetBuffer(squares, &view, PyBUF_STRIDES | PyBUF_FORMAT | PyBUF_WRITABLE)) return 0;
    int fits = view.ndim == 2 && !strcmp(view.format, "d") && view.shape[0] == n - 1 && column >= 0 &&
               column + job->n_outers <= view.shape[1] && view.strides[0] % (Py_ssize_t)sizeof(double) == 0 &&
               (view.strides[1] == sizeof(double) || view.shape[1] == 1);
    job->squares = (double *)view.buf + column, job->squares_stride = view.strides[0] / (Py_ssize_t)sizeof(double);
    PyBuffer_Release(&view);
    if (!fits) PyErr_Format(PyExc_ValueError, "squares are no float64 [%zd, columns]", n - 1);
    return fits;
}

/* read(x, projection, outer, wide, row, seed, p, n_threads): `projection` is (R, to) or None, `outer` (L, G) or None,
   with R and G stacks; `to` and L [M, r], rows dense; `wide` fp32 [M, C] or None. Returns whether L is finite. */
static PyObject *py_read(PyObject *self, PyObject *args) {
    (void)self;
    Job job = {.rank = ANY_SIZE};
    PyObject *x_object, *projection, *outer, *wide_object, *row, *R, *to, *G, *L;
    Stack right = {0}, into = {0};
    Tensor x, wide = {0};
    unsigned long long seed;
    double p;
    int n_threads, is_right = 0;
    if (!PyArg_ParseTuple(args, "OOOOOKdi", &x_object, &projection, &outer, &wide_object, &row, &seed, &p,
                          &n_threads) ||
        !take(x_object, "x", &x, ANY_DTYPE, 2, SHAPE(ANY_SIZE, ANY_SIZE)) || !take_row(row, &job.row) ||
        (wide_object != Py_None && !take(wide_object, "wide", &wide, FP32, 2, SHAPE(x.sizes[0], x.sizes[1]))) ||
        (projection != Py_None && !(PyArg_Parse(projection, "(OO)", &R, &to) && read_stack(R, &right))) ||
        (outer != Py_None && !(PyArg_Parse(outer, "(OO)", &L, &G) && read_stack(G, &into))))
        return NULL;
    if (right.n && into.n && right.across != into.across)
        return PyErr_Format(PyExc_ValueError, "R and G lie across each other");
    job.x = x.at, job.dtype = x.dtype, job.rows = x.sizes[0], job.cols = x.sizes[1], job.wide = wide.at;
    job.dropout = dropout_of(seed, p, job.cols);
    if (new_blocks(&job, right.n, into.n) && (!right.n || take_stack(&job, &right, "R", job.rights)) &&
        (!into.n || take_stack(&job, &into, "G", job.outers)) &&
        (!right.n || take_tall(&job, to, "to", &job.to, &job.to_stride)) &&
        (!into.n || take_tall(&job, L, "left", &job.left, &job.left_stride)) &&
        (!into.n || take_examples(&job, into.examples)))
        is_right = 1;
    if (job.rank == ANY_SIZE) job.rank = 0;
    if (is_right) return run(&job, 0, n_threads);
    free_job(&job);
    return NULL;
}

/* update(x, L, R, stored, row, seed, p, n_threads): x fp32 [M, C]; `stored` 16-bit [M, C], or None. */
static PyObject *py_update(PyObject *self, PyObject *args) {
    (void)self;
    Job job = {.rank = ANY_SIZE};
    PyObject *x_object, *L, *R, *stored_object, *row;
    Stack right;
    Tensor x, stored = {.dtype = FP32};
    unsigned long long seed;
    double p;
    int n_threads;
    if (!PyArg_ParseTuple(args, "OOOOOKdi", &x_object, &L, &R, &stored_object, &row, &seed, &p, &n_threads) ||
        !take(x_object, "x", &x, FP32, 2, SHAPE(ANY_SIZE, ANY_SIZE)) || !take_row(row, &job.row) ||
        (stored_object != Py_None && !take(stored_object, "stored", &stored, HALF, 2, SHAPE(x.sizes[0], x.sizes[1]))) ||
        !read_stack(R, &right))
        return NULL;
    job.x = x.at, job.rows = x.sizes[0], job.cols = x.sizes[1], job.stored = stored.at, job.dtype = stored.dtype;
    job.dropout = dropout_of(seed, p, job.cols);
    if (new_blocks(&job, right.n, 0) && take_stack(&job, &right, "R", job.rights) &&
        take_tall(&job, L, "left", &job.left, &job.left_stride))
        return run(&job, 1, n_threads);
    free_job(&job);
    return NULL;
}

static PyMethodDef methods[] = {
    {"read", py_read, METH_VARARGS, "See lora_linear/passes.py."},
    {"update", py_update, METH_VARARGS, "See lora_linear/passes.py."},
    {NULL, NULL, 0, NULL},
};

enum { BLOCK_BYTES = sizeof(Block), PARTIAL_BYTES = sizeof(Partial), SPAN_BYTES = sizeof(Span) };
static const Constant constants[] = {CONSTANT(TILE),        CONSTANT(MIN_ROWS),    CONSTANT(MAX_SHARES),
                                     CONSTANT(MIN_SHARES),  CONSTANT(OUTER_BYTES), CONSTANT(BLOCK_BYTES),
                                     CONSTANT(PARTIAL_BYTES), CONSTANT(SPAN_BYTES),  CONSTANT(MAX_THREADS), {NULL, 0}};

MODULE(low_rank, "Passes against factors of low rank.")
