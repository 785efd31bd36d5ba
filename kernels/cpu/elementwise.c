/* The element-wise parts of a decoder on the CPU, forward and backward, one read and one write of memory each:
   kernels/elementwise/rms_norm.py, rotary.py and gated.py say what is computed.

   Everything is computed in fp32, in pieces or rows that stay in the first-level cache; a 16-bit tensor is widened
   when it is read and rounded once when it is written. The order of additions is fixed (16 lanes, lanes in order), no
   multiplication is fused with an addition, and so the bits depend neither on the number of threads nor on whether the
   chip has AVX2 or AVX-512. */

#include "common.h" /* first: it asks the system for more than C11 */

#include <math.h>
#include <string.h>

#include "halves.h"
#include "threads.h"

enum { LANES = 16, PIECE = 512 };
enum { ROWS_BYTES = 1 << 16 }; /* about what one share reads of one tensor */
enum { ROWS_HELD = 4 };        /* rows in fp32 that a thread has room for, but in a gate */

/* Loops below are plain: GCC splits vector types before it inlines a function into the AVX2 variant, but vectorises
   loops after that. */

/* `count` values from `start` on as fp32: where they are if they are fp32, else widened into `space`. */
INLINE const float *floats_of(const void *x, int64_t start, int count, int dtype, LoadHalf *load, float *space) {
    if (dtype == FP32) return (const float *)x + start;
    if (dtype == FP16) load((const uint16_t *)x + start, count, space);
    else bfloats_to_floats((const uint16_t *)x + start, count, space);
    return space;
}

/* Where results go: to their place if they are stored in fp32, else to `space`, for `store_floats` to round. */
INLINE float *place_for(void *x, int64_t start, int dtype, float *space) {
    return dtype == FP32 ? (float *)x + start : space;
}

INLINE void store_floats(void *x, int64_t start, int count, int dtype, StoreHalf *store, const float *values) {
    if (dtype == FP16) store(values, count, (uint16_t *)x + start);
    else if (dtype == BF16) floats_to_bfloats(values, count, (uint16_t *)x + start);
}

INLINE float bits_to_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* 1 / (1 + e^-x), of a NaN any number between 0 and 1: the caller multiplies by x. e^y by Cephes' polynomial, with an
   error of at most 2 units in the last place; |y| is cut to 87 as an integer, which vectorises everywhere. */
INLINE float sigmoid(float x) {
    uint32_t bits, limit = 0x42AE0000u;
    memcpy(&bits, &x, 4);
    uint32_t magnitude = bits & ABS_MASK;
    float y = bits_to_float((magnitude < limit ? magnitude : limit) | (~bits & ~ABS_MASK));
    float shifted = y * 1.44269504088896341f + 12582912.0f; /* rounds to an integer, which its last bits then hold */
    float n = shifted - 12582912.0f;
    float f = y - n * 0.693359375f + n * 2.12194440e-4f;
    float p = f * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    float e = p * f * f + f + 1.0f;
    memcpy(&bits, &shifted, 4);
    return 1.0f / (1.0f + e * bits_to_float((bits << 23) + (127u << 23)));
}

typedef struct Job {
    int kind, dtype;
    int64_t n; /* rows of a norm, values of a gate, (batch, position) pairs of a rotation */
    int cols;
    float eps;
    const void *in[3];
    const float *weight;
    float *rstd;
    void *out[2];
    /* a rotation */
    int64_t n_positions, n_heads, strides[3], angle_stride;
    int rotated;
    const float *cos, *sin;
    int64_t rows_per_share;
    void (*walk)(const struct Job *, int64_t, int64_t, float *);
} Job;

enum { NORM, NORM_BACKWARD, GATE, GATE_BACKWARD, ROTATE, ROTATE_BACKWARD };

static inline int is_gate(const Job *job) { return job->kind == GATE || job->kind == GATE_BACKWARD; }

/* Sum of x_i y_i in fixed lanes; what does not fill the lanes comes last. */
INLINE float dot(const float *x, const float *y, int count) {
    float sums[LANES] = {0};
    int i = 0;
    for (; i + LANES <= count; i += LANES) {
#pragma GCC unroll 16 /* else GCC vectorises the outer loop, which has to gather */
        for (int lane = 0; lane < LANES; lane++) sums[lane] += x[i + lane] * y[i + lane];
    }
    float sum = 0, rest = 0;
    for (int lane = 0; lane < LANES; lane++) sum += sums[lane];
    for (; i < count; i++) rest += x[i] * y[i];
    return sum + rest;
}

/* y = x / sqrt(mean(x^2) + eps) * w */
INLINE void norm_row(const Job *job, int64_t row, LoadHalf *load, StoreHalf *store, float *space) {
    int cols = job->cols;
    const float *restrict x = floats_of(job->in[0], row * cols, cols, job->dtype, load, space);
    const float *restrict weight = job->weight;
    float *restrict y = place_for(job->out[0], row * cols, job->dtype, space + cols);
    float rstd = 1.0f / sqrtf(dot(x, x, cols) / (float)cols + job->eps);
    job->rstd[row] = rstd;
    for (int i = 0; i < cols; i++) y[i] = x[i] * rstd * weight[i];
    store_floats(job->out[0], row * cols, cols, job->dtype, store, y);
}

/* dx = rstd (w dy - x rstd^2 mean(w dy x)) */
INLINE void norm_row_backward(const Job *job, int64_t row, LoadHalf *load, StoreHalf *store, float *space) {
    int cols = job->cols;
    float *restrict weighted = space;
    const float *restrict weight = job->weight;
    const float *restrict dy = floats_of(job->in[0], row * cols, cols, job->dtype, load, space + cols);
    const float *restrict x = floats_of(job->in[1], row * cols, cols, job->dtype, load, space + 2 * cols);
    float *restrict dx = place_for(job->out[0], row * cols, job->dtype, space + 3 * cols);
    for (int i = 0; i < cols; i++) weighted[i] = dy[i] * weight[i];
    float rstd = job->rstd[row], factor = rstd * rstd * (dot(weighted, x, cols) / (float)cols);
    for (int i = 0; i < cols; i++) dx[i] = rstd * (weighted[i] - x[i] * factor);
    store_floats(job->out[0], row * cols, cols, job->dtype, store, dx);
}

/* y = silu(g) u */
INLINE void gate_piece(const Job *job, int64_t start, int count, LoadHalf *load, StoreHalf *store, float *space) {
    const float *restrict g = floats_of(job->in[0], start, count, job->dtype, load, space);
    const float *restrict u = floats_of(job->in[1], start, count, job->dtype, load, space + PIECE);
    float *restrict y = place_for(job->out[0], start, job->dtype, space + 2 * PIECE);
    for (int i = 0; i < count; i++) y[i] = g[i] * sigmoid(g[i]) * u[i];
    store_floats(job->out[0], start, count, job->dtype, store, y);
}

/* du = dy silu(g), dg = dy u s (1 + g (1 - s)) with s = sigmoid(g) */
INLINE void gate_piece_backward(const Job *job, int64_t start, int count, LoadHalf *load, StoreHalf *store,
                                float *space) {
    const float *restrict g = floats_of(job->in[0], start, count, job->dtype, load, space);
    const float *restrict u = floats_of(job->in[1], start, count, job->dtype, load, space + PIECE);
    const float *restrict dy = floats_of(job->in[2], start, count, job->dtype, load, space + 2 * PIECE);
    float *restrict dg = place_for(job->out[0], start, job->dtype, space + 3 * PIECE);
    float *restrict du = place_for(job->out[1], start, job->dtype, space + 4 * PIECE);
    for (int i = 0; i < count; i++) {
        float s = sigmoid(g[i]), silu = g[i] * s;
        dg[i] = dy[i] * u[i] * (s + silu * (1.0f - s));
        du[i] = dy[i] * silu;
    }
    store_floats(job->out[0], start, count, job->dtype, store, dg);
    store_floats(job->out[1], start, count, job->dtype, store, du);
}

/* Turns the first `rotated` of `cols` values of every head; what is behind them stays. */
INLINE void rotate_position(const Job *job, int64_t number, LoadHalf *load, StoreHalf *store, float *space) {
    int half = job->rotated / 2, cols = job->cols;
    int64_t batch = number / job->n_positions, position = number % job->n_positions;
    const float *restrict cos = job->cos + batch * job->angle_stride + position * job->rotated;
    const float *restrict sin = job->sin + batch * job->angle_stride + position * job->rotated;
    for (int64_t head = 0; head < job->n_heads; head++) {
        int64_t from = batch * job->strides[0] + head * job->strides[1] + position * job->strides[2];
        int64_t to = (number * job->n_heads + head) * cols;
        const float *restrict x = floats_of(job->in[0], from, cols, job->dtype, load, space);
        float *restrict y = place_for(job->out[0], to, job->dtype, space + cols);
        const float *restrict high = x + half;
        float *restrict y_high = y + half;
        if (job->kind == ROTATE) {
            for (int i = 0; i < half; i++) y[i] = x[i] * cos[i] - high[i] * sin[i];
            for (int i = 0; i < half; i++) y_high[i] = high[i] * cos[i + half] + x[i] * sin[i + half];
        } else {
            for (int i = 0; i < half; i++) y[i] = x[i] * cos[i] + high[i] * sin[i + half];
            for (int i = 0; i < half; i++) y_high[i] = high[i] * cos[i + half] - x[i] * sin[i];
        }
        memcpy(y + 2 * half, x + 2 * half, sizeof(float) * (size_t)(cols - 2 * half));
        store_floats(job->out[0], to, cols, job->dtype, store, y);
    }
}

INLINE void walk(const Job *job, int64_t start, int64_t stop, LoadHalf *load, StoreHalf *store, float *space) {
    if (is_gate(job)) {
        float pieces[5 * PIECE];
        for (int64_t i = start; i < stop; i += PIECE) {
            int count = (int)(stop - i < PIECE ? stop - i : PIECE);
            if (job->kind == GATE) gate_piece(job, i, count, load, store, pieces);
            else gate_piece_backward(job, i, count, load, store, pieces);
        }
        return;
    }
    for (int64_t row = start; row < stop; row++) {
        if (job->kind == NORM) norm_row(job, row, load, store, space);
        else if (job->kind == NORM_BACKWARD) norm_row_backward(job, row, load, store, space);
        else rotate_position(job, row, load, store, space);
    }
}

static void walk_portable(const Job *job, int64_t start, int64_t stop, float *space) {
    walk(job, start, stop, halves_to_floats, floats_to_halves, space);
}

#ifdef HAS_AVX2_VARIANT
AVX2 static void walk_avx2(const Job *job, int64_t start, int64_t stop, float *space) {
    walk(job, start, stop, halves_to_floats_avx2, floats_to_halves_avx2, space);
}

AVX512 static void walk_avx512(const Job *job, int64_t start, int64_t stop, float *space) {
    walk(job, start, stop, halves_to_floats_avx2, floats_to_halves_avx2, space);
}
#endif

static void share(void *argument, int64_t number, void *space) {
    const Job *job = argument;
    int64_t start = number * job->rows_per_share, stop = start + job->rows_per_share;
    job->walk(job, start, stop < job->n ? stop : job->n, space);
}

static PyObject *run(Job *job, int64_t values_per_row, int n_threads) {
    job->walk = AT_LEVEL(walk);
    int64_t rows = ROWS_BYTES / 4 / (values_per_row ? values_per_row : 1);
    job->rows_per_share = rows > 0 ? rows : 1;
    int64_t n_shares = (job->n + job->rows_per_share - 1) / job->rows_per_share;
    size_t space_values = is_gate(job) ? 0 : ROWS_HELD * (size_t)job->cols;
    int done;
    Py_BEGIN_ALLOW_THREADS
    done = run_shares(share, job, n_shares, n_threads, sizeof(float) * space_values);
    Py_END_ALLOW_THREADS
    if (!done) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* norm(x, weight, y, rstd, eps, n_threads): x and y [M, K], weight fp32 [K], rstd fp32 [M], all dense. */
static PyObject *py_norm(PyObject *self, PyObject *args) {
    (void)self;
    Job job = {.kind = NORM};
    PyObject *objects[4];
    Tensor x, weight, y, rstd;
    int n_threads;
    if (!PyArg_ParseTuple(args, "OOOOfi", &objects[0], &objects[1], &objects[2], &objects[3], &job.eps, &n_threads) ||
        !take(objects[0], "x", &x, ANY_DTYPE, 2, SHAPE(ANY_SIZE, ANY_SIZE)) ||
        !take(objects[1], "weight", &weight, FP32, 1, SHAPE(x.sizes[1])) ||
        !take(objects[2], "y", &y, x.dtype, 2, SHAPE(x.sizes[0], x.sizes[1])) ||
        !take(objects[3], "rstd", &rstd, FP32, 1, SHAPE(x.sizes[0])))
        return NULL;
    job.in[0] = x.at, job.weight = weight.at, job.out[0] = y.at, job.rstd = rstd.at;
    job.n = x.sizes[0], job.cols = (int)x.sizes[1], job.dtype = x.dtype;
    return run(&job, job.cols, n_threads);
}

/* norm_backward(dy, x, weight, rstd, dx, n_threads), shapes as above */
static PyObject *py_norm_backward(PyObject *self, PyObject *args) {
    (void)self;
    Job job = {.kind = NORM_BACKWARD};
    PyObject *objects[5];
    Tensor dy, x, weight, rstd, dx;
    int n_threads;
    if (!PyArg_ParseTuple(args, "OOOOOi", &objects[0], &objects[1], &objects[2], &objects[3], &objects[4],
                          &n_threads) ||
        !take(objects[1], "x", &x, ANY_DTYPE, 2, SHAPE(ANY_SIZE, ANY_SIZE)) ||
        !take(objects[0], "dy", &dy, x.dtype, 2, SHAPE(x.sizes[0], x.sizes[1])) ||
        !take(objects[2], "weight", &weight, FP32, 1, SHAPE(x.sizes[1])) ||
        !take(objects[3], "rstd", &rstd, FP32, 1, SHAPE(x.sizes[0])) ||
        !take(objects[4], "dx", &dx, x.dtype, 2, SHAPE(x.sizes[0], x.sizes[1])))
        return NULL;
    job.in[0] = dy.at, job.in[1] = x.at, job.weight = weight.at, job.rstd = rstd.at, job.out[0] = dx.at;
    job.n = x.sizes[0], job.cols = (int)x.sizes[1], job.dtype = x.dtype;
    return run(&job, job.cols, n_threads);
}

/* gate(g, u, y, n_threads): dense, of one dtype and length */
static PyObject *py_gate(PyObject *self, PyObject *args) {
    (void)self;
    Job job = {.kind = GATE};
    PyObject *objects[3];
    Tensor g, u, y;
    int n_threads;
    if (!PyArg_ParseTuple(args, "OOOi", &objects[0], &objects[1], &objects[2], &n_threads) ||
        !take_flat(objects[0], "g", &g, ANY_DTYPE, ANY_SIZE) ||
        !take_flat(objects[1], "u", &u, g.dtype, values_of(&g)) ||
        !take_flat(objects[2], "y", &y, g.dtype, values_of(&g)))
        return NULL;
    job.in[0] = g.at, job.in[1] = u.at, job.out[0] = y.at;
    job.n = values_of(&g), job.dtype = g.dtype;
    return run(&job, 1, n_threads);
}

/* gate_backward(dy, g, u, dg, du, n_threads), likewise */
static PyObject *py_gate_backward(PyObject *self, PyObject *args) {
    (void)self;
    static const char *const names[] = {"dy", "g", "u", "dg", "du"};
    Job job = {.kind = GATE_BACKWARD};
    PyObject *objects[5];
    Tensor tensors[5];
    int n_threads;
    if (!PyArg_ParseTuple(args, "OOOOOi", &objects[0], &objects[1], &objects[2], &objects[3], &objects[4],
                          &n_threads))
        return NULL;
    for (int i = 0; i < 5; i++) {
        int dtype = i ? tensors[0].dtype : ANY_DTYPE;
        if (!take_flat(objects[i], names[i], &tensors[i], dtype, i ? values_of(&tensors[0]) : ANY_SIZE)) return NULL;
    }
    job.in[0] = tensors[1].at, job.in[1] = tensors[2].at, job.in[2] = tensors[0].at;
    job.out[0] = tensors[3].at, job.out[1] = tensors[4].at;
    job.n = values_of(&tensors[0]), job.dtype = tensors[0].dtype;
    return run(&job, 1, n_threads);
}

/* rotate(x, cos, sin, y, backward, n_threads): x [B, heads, S, D], dense in D; cos and sin fp32 [B or 1, S, R], dense;
   y dense [B, S, heads, D]. */
static PyObject *py_rotate(PyObject *self, PyObject *args) {
    (void)self;
    Job job = {0};
    PyObject *objects[4];
    Tensor x, cos, sin, y;
    int backward, n_threads;
    if (!PyArg_ParseTuple(args, "OOOOpi", &objects[0], &objects[1], &objects[2], &objects[3], &backward, &n_threads) ||
        !take(objects[0], "x", &x, ANY_DTYPE, 1, SHAPE(ANY_SIZE, ANY_SIZE, ANY_SIZE, ANY_SIZE)) ||
        !take(objects[1], "cos", &cos, FP32, 3, SHAPE(ANY_SIZE, x.sizes[2], ANY_SIZE)) ||
        !take(objects[2], "sin", &sin, FP32, 3, SHAPE(cos.sizes[0], x.sizes[2], cos.sizes[2])) ||
        !take(objects[3], "y", &y, x.dtype, 4, SHAPE(x.sizes[0], x.sizes[2], x.sizes[1], x.sizes[3])))
        return NULL;
    if ((cos.sizes[0] != 1 && cos.sizes[0] != x.sizes[0]) || cos.sizes[2] > x.sizes[3] || cos.sizes[2] % 2)
        return PyErr_Format(PyExc_ValueError, "cos [%lld, S, %lld] does not fit x [%lld, heads, S, %lld]",
                            (long long)cos.sizes[0], (long long)cos.sizes[2], (long long)x.sizes[0],
                            (long long)x.sizes[3]);
    job.kind = backward ? ROTATE_BACKWARD : ROTATE, job.dtype = x.dtype;
    job.in[0] = x.at, job.cos = cos.at, job.sin = sin.at, job.out[0] = y.at;
    job.n = x.sizes[0] * x.sizes[2], job.n_positions = x.sizes[2], job.n_heads = x.sizes[1];
    job.cols = (int)x.sizes[3], job.rotated = (int)cos.sizes[2];
    memcpy(job.strides, x.strides, sizeof job.strides);
    job.angle_stride = cos.sizes[0] > 1 ? x.sizes[2] * cos.sizes[2] : 0;
    return run(&job, x.sizes[1] * x.sizes[3], n_threads);
}

static PyMethodDef methods[] = {
    {"norm", py_norm, METH_VARARGS, "See rms_norm.py."},
    {"norm_backward", py_norm_backward, METH_VARARGS, "See rms_norm.py."},
    {"gate", py_gate, METH_VARARGS, "See gated.py."},
    {"gate_backward", py_gate_backward, METH_VARARGS, "See gated.py."},
    {"rotate", py_rotate, METH_VARARGS, "See rotary.py."},
    {NULL, NULL, 0, NULL},
};

static const Constant constants[] = {CONSTANT(ROWS_HELD), CONSTANT(ROWS_BYTES), CONSTANT(LINE),
                                     CONSTANT(MAX_THREADS), {NULL, 0}};

MODULE(elementwise, "Norm, gate and rotation.")
