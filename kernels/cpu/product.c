/* Products of a tall matrix with a frozen 16-bit one, on chips that multiply bf16 in tiles (AMX):

       OUT = X W^T + bias, X W, or OUT + X W      X [M, C], W [N, C] or [C, N], OUT [M, N] in fp32

   A value is cut into planes, bf16 numbers whose sum it is: itself if it is bf16, two for an fp16 (of eight bits and
   three), and of an fp32 X the upper sixteen bits. Products of two lower planes are left out, some 2^-18 of a term and
   2^-16 at most: a hundredth of what rounding the sum to fp16 loses. Everything is added up in fp32. What is below
   2^-126 counts as 0, and a W that is not finite gives NaN.

   X is cut first, for all; shares are blocks of columns of OUT, and each cuts its part of W, in its cache. The order of
   additions does not depend on the number of threads. A tile's sixteen rows hold 32 bf16 each: of X as they lie, of W
   as pairs that are multiplied and added at once. */

#include "common.h" /* first: it asks the system for more than C11 */

#include <string.h>

#include "planes.h"
#include "threads.h"

#ifdef HAS_TILES
enum { MAX_ROWS = 1024, MAX_DEPTH = 1024, MAX_PAIRS = 4 };
enum { X_PLANES = MAX_ROWS * MAX_DEPTH * MAX_PLANES };         /* values: four megabytes */
enum { W_PLANES = MAX_PAIRS * PAIR * MAX_DEPTH * MAX_PLANES }; /* of one share: half a megabyte, a part of its L2 */

typedef struct Job {
    Matrix x, w; /* the blocks at hand */
    float *out;
    const float *bias;
    int64_t out_stride, cols; /* of OUT */
    int transposed, add, n_planes, n_threads;
    int64_t pairs_per_share;
    uint16_t *x_planes, *w_planes;
    atomic_llong next;
    atomic_int too_large;
} Job;

/* Tiles 0 to 3 are sums, 4 is of X and 5 of W. A tile that is written takes a register until it is done, and while both
   threads of a core multiply few are left beside a thread's own: with six tiles in use instead of eight more products
   are under way at once, for all that each has a factor to load. */
#define LOAD_X(i, plane) _tile_loadd(4, x + (2 * (plane) + (i)) * TILE, 2 * DEPTH)
#define LOAD_W(j, plane) _tile_loadd(5, w + (2 * (plane) + (j)) * TILE, 2 * DEPTH)
#define MULTIPLY(sum) _tile_dpbf16ps(sum, 4, 5)

/* The four products of two planes. W's first tile is there before NEXT_OF_X, and X's second before NEXT_OF_W; both are
   there after either. */
#define NEXT_OF_X(p, q)          \
    LOAD_X(0, p);                \
    MULTIPLY(0);                 \
    LOAD_W(1, q);                \
    MULTIPLY(1);                 \
    LOAD_X(1, p);                \
    MULTIPLY(3);                 \
    LOAD_W(0, q);                \
    MULTIPLY(2)
#define NEXT_OF_W(p, q)          \
    LOAD_W(1, q);                \
    MULTIPLY(3);                 \
    LOAD_X(0, p);                \
    MULTIPLY(1);                 \
    LOAD_W(0, q);                \
    MULTIPLY(0);                 \
    LOAD_X(1, p);                \
    MULTIPLY(2)

/* sums[2 i + j] = rows i of X by columns j of W. */
INLINE TILES void multiply(const uint16_t *x, const uint16_t *w, int64_t depth, float *sums, int n_planes) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < depth; k += DEPTH, x += n_planes * 2 * TILE, w += n_planes * 2 * TILE) {
        LOAD_W(0, 0);
        if (n_planes == 2) {
            NEXT_OF_X(1, 0);
        }
        NEXT_OF_X(0, 0);
        if (n_planes == 2) {
            NEXT_OF_W(0, 1);
        }
    }
    _tile_stored(0, sums, 4 * SIDE);
    _tile_stored(1, sums + SIDE * SIDE, 4 * SIDE);
    _tile_stored(2, sums + 2 * SIDE * SIDE, 4 * SIDE);
    _tile_stored(3, sums + 3 * SIDE * SIDE, 4 * SIDE);
    __asm__ volatile("" ::: "memory");
}

INLINE TILES void store(const Job *job, const float *sums, int64_t row, int64_t col) {
    for (int64_t i = 0; i < 2; i++)
        for (int64_t j = 0; j < 2; j++, sums += SIDE * SIDE) {
            int64_t at_row = row + i * SIDE, at_col = col + j * SIDE;
            __mmask16 mask = first(job->cols - at_col);
            __m512 bias = job->bias ? _mm512_maskz_loadu_ps(mask, job->bias + at_col) : _mm512_setzero_ps();
            for (int64_t r = 0; r < SIDE && at_row + r < job->x.rows; r++) {
                float *out = job->out + (at_row + r) * job->out_stride + at_col;
                __m512 before = job->add ? _mm512_maskz_loadu_ps(mask, out) : bias;
                _mm512_mask_storeu_ps(out, mask, _mm512_add_ps(before, _mm512_loadu_ps(sums + r * SIDE)));
            }
        }
}

TILES static void set_tiles(void) {
    struct __attribute__((packed)) {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int t = 0; t < 6; t++) config.row_bytes[t] = 2 * DEPTH, config.rows[t] = SIDE;
    __asm__ volatile("" ::"r"(&config) : "memory");
    _tile_loadconfig(&config);
}

TILES static void multiply_as(const Job *job, const uint16_t *x, const uint16_t *w, float *sums) {
    FOR_PLANES(multiply, job->n_planes, x, w, job->x.cols, sums);
}

TILES static void cut_x_share(void *argument, int64_t number, void *space) {
    (void)space;
    Job *job = argument;
    uint16_t *to = job->x_planes + number * pair_size(job->x.cols, job->n_planes);
    cut_rows_as(&job->x, number * PAIR, to, job->n_planes);
}

TILES static void look_share(void *argument, int64_t number, void *space) {
    (void)space;
    Job *job = argument;
    if (holds_too_large_as(&job->x, number * PAIR)) atomic_store(&job->too_large, 1);
}

/* One for each thread: takes blocks of columns until none is left. */
TILES static void multiply_share(void *argument, int64_t number, void *space) {
    (void)space;
    Job *job = argument;
    uint16_t *w = job->w_planes + number * W_PLANES;
    int64_t size = pair_size(job->x.cols, job->n_planes), n_pairs = tiles(job->cols, PAIR);
    float sums[4 * SIDE * SIDE] __attribute__((aligned(64)));
    set_tiles();
    for (;;) {
        int64_t start = (int64_t)atomic_fetch_add(&job->next, job->pairs_per_share);
        if (start >= n_pairs) break;
        int64_t stop = start + job->pairs_per_share < n_pairs ? start + job->pairs_per_share : n_pairs;
        cut_columns_as(&job->w, start, stop, w, job->transposed, job->n_planes);
        for (int64_t row = 0; row < job->x.rows; row += PAIR)
            for (int64_t pair = start; pair < stop; pair++) {
                multiply_as(job, job->x_planes + row / PAIR * size, w + (pair - start) * size, sums);
                store(job, sums, row, pair * PAIR);
            }
    }
    _tile_release();
}

/* The length of blocks that cut `n` evenly, in whole sides, none longer than `limit`. */
static int64_t block_length(int64_t n, int64_t limit, int64_t side) {
    int64_t blocks = tiles(n, limit);
    return tiles(tiles(n, blocks), side) * side;
}

static void multiply_blocks(const Job *whole, uint16_t *space) {
    int64_t n_pairs = tiles(whole->cols, PAIR), rounds = tiles(n_pairs, whole->n_threads * MAX_PAIRS);
    int64_t block_rows = block_length(whole->x.rows, MAX_ROWS, PAIR);
    int64_t block_depth = block_length(whole->x.cols, MAX_DEPTH, DEPTH);
    for (int64_t row = 0; row < whole->x.rows; row += block_rows)
        for (int64_t k = 0; k < whole->x.cols; k += block_depth) {
            Job job = *whole;
            job.x = block_of(&whole->x, row, k, block_rows, block_depth);
            job.w = whole->transposed ? block_of(&whole->w, 0, k, whole->cols, block_depth)
                                      : block_of(&whole->w, k, 0, block_depth, whole->cols);
            job.out += row * job.out_stride;
            job.add |= k > 0;
            job.pairs_per_share = tiles(n_pairs, rounds * job.n_threads); /* as many for each thread */
            job.w_planes = space;
            job.x_planes = space + job.n_threads * W_PLANES;
            run_shares(cut_x_share, &job, tiles(job.x.rows, PAIR), job.n_threads, 0);
            run_shares(multiply_share, &job, job.n_threads, job.n_threads, 0);
        }
}

/* Memory for planes that stays with the process: a fresh block would be faulted in at every product. Two products at
   once have no room for both: the second takes a block of its own. */
static struct {
    atomic_flag taken;
    size_t bytes;
    uint16_t *at;
} room = {.taken = ATOMIC_FLAG_INIT};

enum { DONE, TOO_LARGE_VALUES, NO_MEMORY };

static int product(Job *job) {
    if (job->n_threads > MAX_THREADS) job->n_threads = MAX_THREADS;
    if (job->n_planes > 1) run_shares(look_share, job, tiles(job->x.rows, PAIR), job->n_threads, 0);
    if (atomic_load(&job->too_large)) return TOO_LARGE_VALUES;
    size_t bytes = sizeof(uint16_t) * ((size_t)job->n_threads * W_PLANES + X_PLANES);
    int kept = !atomic_flag_test_and_set(&room.taken);
    if (kept && room.bytes < bytes) {
        free_scratch(room.at);
        room.at = new_scratch(bytes);
        room.bytes = room.at ? bytes : 0;
    }
    uint16_t *space = kept ? room.at : new_scratch(bytes);
    if (space) multiply_blocks(job, space);
    if (kept) atomic_flag_clear(&room.taken);
    else free_scratch(space);
    return space ? DONE : NO_MEMORY;
}
#endif

/* product(x, w, transposed, bias, out, add, n_threads): x [M, C], w fp16 or bf16 [N, C] if `transposed`, else [C, N],
   bias fp32 [N] or None, out fp32 [M, N], rows dense. False, and OUT as it was, if X has values that cannot be cut. */
static PyObject *py_product(PyObject *self, PyObject *args) {
    (void)self;
#ifdef HAS_TILES
    Job job = {0};
    PyObject *objects[4];
    Tensor x, w, bias = {0}, out;
    if (!PyArg_ParseTuple(args, "OOpOOpi", &objects[0], &objects[1], &job.transposed, &objects[2], &objects[3],
                          &job.add, &job.n_threads) ||
        !take(objects[0], "x", &x, ANY_DTYPE, 1, SHAPE(ANY_SIZE, ANY_SIZE)) ||
        !take(objects[1], "weight", &w, HALF, 1, SHAPE(ANY_SIZE, ANY_SIZE)))
        return NULL;
    int64_t cols = w.sizes[!job.transposed];
    if (w.sizes[job.transposed] != x.sizes[1] || !values_of(&w))
        return PyErr_Format(PyExc_ValueError, "weight [%lld, %lld] does not fit x [%lld, %lld]",
                            (long long)w.sizes[0], (long long)w.sizes[1], (long long)x.sizes[0],
                            (long long)x.sizes[1]);
    if ((objects[2] != Py_None && !take(objects[2], "bias", &bias, FP32, 1, SHAPE(cols))) ||
        !take(objects[3], "out", &out, FP32, 1, SHAPE(x.sizes[0], cols)))
        return NULL;
    if (level < LEVEL_AMX) return PyErr_Format(PyExc_ValueError, "these loops run at level %d only", LEVEL_AMX);
    job.x = (Matrix){x.at, x.strides[0], x.sizes[0], x.sizes[1], x.dtype};
    job.w = (Matrix){w.at, w.strides[0], w.sizes[0], w.sizes[1], w.dtype};
    job.bias = bias.at, job.out = out.at, job.out_stride = out.strides[0], job.cols = cols;
    job.n_planes = x.dtype == BF16 && w.dtype == BF16 ? 1 : MAX_PLANES;
    int outcome;
    Py_BEGIN_ALLOW_THREADS
    outcome = product(&job);
    Py_END_ALLOW_THREADS
    return outcome == NO_MEMORY ? PyErr_NoMemory() : PyBool_FromLong(outcome == DONE);
#else
    (void)args;
    Py_RETURN_FALSE;
#endif
}

static PyMethodDef methods[] = {
    {"product", py_product, METH_VARARGS, "See product.c."},
    {NULL, NULL, 0, NULL},
};

static const Constant constants[] = {
#ifdef HAS_TILES
    CONSTANT(MAX_THREADS), CONSTANT(X_PLANES), CONSTANT(W_PLANES),
#endif
    {NULL, 0}};

MODULE(product, "Products in tiles.")
