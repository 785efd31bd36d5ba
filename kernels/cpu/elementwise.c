/* The element-wise parts of a decoder on the CPU, forward and backward, one read and one write of memory each:
   kernels/rms_norm.py, rotary.py, gated.py and, for dropout, lora_linear_aten.py say what is computed.

   Everything is computed in fp32, in pieces or rows that stay in the first-level cache; a 16-bit tensor is widened
   when it is read and rounded once when it is written. The order of additions is fixed (16 lanes, lanes in order), no
   multiplication is fused with an addition, and so the bits depend neither on the number of threads nor on whether the
   chip has AVX2. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "halves.h"
#include "threads.h"

typedef float Float8 __attribute__((vector_size(32)));
typedef int32_t Int8 __attribute__((vector_size(32)));

enum { LANES = 16, MAX_ROW = 1 << 16 };
enum { ROWS_BYTES = 1 << 16 }; /* about what one share reads of one tensor */

INLINE void load_floats(const void *x, int64_t start, int count, int dtype, LoadHalf *load, float *values) {
    if (dtype == FP32) memcpy(values, (const float *)x + start, sizeof(float) * (size_t)count);
    else if (dtype == FP16) load((const uint16_t *)x + start, count, values);
    else bfloats_to_floats((const uint16_t *)x + start, count, values);
}

INLINE void store_floats(void *x, int64_t start, int count, int dtype, StoreHalf *store, const float *values) {
    if (dtype == FP32) memcpy((float *)x + start, values, sizeof(float) * (size_t)count);
    else if (dtype == FP16) store(values, count, (uint16_t *)x + start);
    else floats_to_bfloats(values, count, (uint16_t *)x + start);
}

/* e^x for |x| <= 87, with an error of at most 2 units in the last place: Cephes' polynomial. */
INLINE Float8 exp8(Float8 x) {
    const Float8 high = (Float8){0} + 87.0f, low = (Float8){0} - 87.0f;
    Int8 above = x > high, below = x < low;
    x = (Float8)(((Int8)high & above) | ((Int8)low & below) | ((Int8)x & ~(above | below)));
    Float8 n = x * 1.44269504088896341f + 12582912.0f - 12582912.0f;
    Float8 f = x - n * 0.693359375f + n * 2.12194440e-4f;
    Float8 p = f * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    Float8 e = p * f * f + f + 1.0f;
    Int8 exponent = (__builtin_convertvector(n, Int8) + 127) << 23;
    return e * (Float8)exponent;
}

INLINE Float8 sigmoid8(Float8 x) {
    /* a NaN is neither above nor below a bound, and stays one */
    return 1.0f / (1.0f + exp8(-x));
}

INLINE float sum_lanes(Float8 a, Float8 b) {
    float sum = 0;
    for (int lane = 0; lane < 8; lane++) sum += a[lane] + b[lane];
    return sum;
}

typedef struct Job {
    int kind, dtype, out_dtype;
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
    /* dropout */
    uint32_t keys[2], threshold;
    int64_t rows_per_share;
    void (*walk)(const struct Job *, int64_t, int64_t);
} Job;

enum { NORM, NORM_BACKWARD, GATE, GATE_BACKWARD, ROTATE, ROTATE_BACKWARD, DROP };

/* y = x / sqrt(mean(x^2) + eps) * w */
INLINE void norm_row(const Job *job, int64_t row, LoadHalf *load, StoreHalf *store, float *x) {
    int cols = job->cols, padded = (cols + LANES - 1) / LANES * LANES;
    load_floats(job->in[0], row * cols, cols, job->dtype, load, x);
    memset(x + cols, 0, sizeof(float) * (size_t)(padded - cols));
    Float8 a = {0}, b = {0};
    for (int i = 0; i < padded; i += LANES) {
        Float8 v[2];
        memcpy(v, x + i, sizeof v);
        a += v[0] * v[0];
        b += v[1] * v[1];
    }
    float rstd = 1.0f / sqrtf(sum_lanes(a, b) / (float)cols + job->eps);
    job->rstd[row] = rstd;
    for (int i = 0; i < cols; i++) x[i] = x[i] * rstd * job->weight[i];
    store_floats(job->out[0], row * cols, cols, job->out_dtype, store, x);
}

/* dx = rstd (w dy - x rstd^2 mean(w dy x)) */
INLINE void norm_row_backward(const Job *job, int64_t row, LoadHalf *load, StoreHalf *store, float *dy, float *x) {
    int cols = job->cols, padded = (cols + LANES - 1) / LANES * LANES;
    load_floats(job->in[0], row * cols, cols, job->out_dtype, load, dy);
    load_floats(job->in[1], row * cols, cols, job->dtype, load, x);
    for (int i = 0; i < cols; i++) dy[i] *= job->weight[i];
    memset(dy + cols, 0, sizeof(float) * (size_t)(padded - cols));
    memset(x + cols, 0, sizeof(float) * (size_t)(padded - cols));
    Float8 a = {0}, b = {0};
    for (int i = 0; i < padded; i += LANES) {
        Float8 d[2], v[2];
        memcpy(d, dy + i, sizeof d);
        memcpy(v, x + i, sizeof v);
        a += d[0] * v[0];
        b += d[1] * v[1];
    }
    float rstd = job->rstd[row];
    float factor = rstd * rstd * (sum_lanes(a, b) / (float)cols);
    for (int i = 0; i < cols; i++) dy[i] = rstd * (dy[i] - x[i] * factor);
    store_floats(job->out[0], row * cols, cols, job->dtype, store, dy);
}

/* y = silu(g) u */
INLINE void gate_piece(const Job *job, int64_t start, int count, LoadHalf *load, StoreHalf *store, float *g, float *u) {
    load_floats(job->in[0], start, count, job->dtype, load, g);
    load_floats(job->in[1], start, count, job->dtype, load, u);
    for (int i = 0; i < count; i += 8) {
        Float8 gate, up;
        memcpy(&gate, g + i, sizeof gate);
        memcpy(&up, u + i, sizeof up);
        gate = gate * sigmoid8(gate) * up;
        memcpy(g + i, &gate, sizeof gate);
    }
    store_floats(job->out[0], start, count, job->dtype, store, g);
}

/* du = dy silu(g), dg = dy u s (1 + g (1 - s)) with s = sigmoid(g) */
INLINE void gate_piece_backward(const Job *job, int64_t start, int count, LoadHalf *load, StoreHalf *store, float *g,
                                float *u, float *dy) {
    load_floats(job->in[0], start, count, job->dtype, load, g);
    load_floats(job->in[1], start, count, job->dtype, load, u);
    load_floats(job->in[2], start, count, job->dtype, load, dy);
    for (int i = 0; i < count; i += 8) {
        Float8 gate, up, grad;
        memcpy(&gate, g + i, sizeof gate);
        memcpy(&up, u + i, sizeof up);
        memcpy(&grad, dy + i, sizeof grad);
        Float8 s = sigmoid8(gate), silu = gate * s;
        Float8 d_gate = grad * up * (s + silu * (1.0f - s)), d_up = grad * silu;
        memcpy(g + i, &d_gate, sizeof d_gate);
        memcpy(u + i, &d_up, sizeof d_up);
    }
    store_floats(job->out[0], start, count, job->dtype, store, g);
    store_floats(job->out[1], start, count, job->dtype, store, u);
}

/* Turns the first `rotated` of `cols` values of every head; what is behind them stays. */
INLINE void rotate_position(const Job *job, int64_t number, LoadHalf *load, StoreHalf *store, float *x) {
    int half = job->rotated / 2, cols = job->cols;
    int64_t batch = number / job->n_positions, position = number % job->n_positions;
    const float *cos = job->cos + batch * job->angle_stride + position * job->rotated;
    const float *sin = job->sin + batch * job->angle_stride + position * job->rotated;
    for (int64_t head = 0; head < job->n_heads; head++) {
        int64_t from = batch * job->strides[0] + head * job->strides[1] + position * job->strides[2];
        load_floats(job->in[0], from, cols, job->dtype, load, x);
        if (job->kind == ROTATE)
            for (int i = 0; i < half; i++) {
                float a = x[i], b = x[i + half];
                x[i] = a * cos[i] - b * sin[i];
                x[i + half] = b * cos[i + half] + a * sin[i + half];
            }
        else
            for (int i = 0; i < half; i++) {
                float a = x[i], b = x[i + half];
                x[i] = a * cos[i] + b * sin[i + half];
                x[i + half] = b * cos[i + half] - a * sin[i];
            }
        store_floats(job->out[0], (number * job->n_heads + head) * cols, cols, job->dtype, store, x);
    }
}

typedef uint32_t Word8 __attribute__((vector_size(32)));

/* All ones where value number `index` and its seven neighbours are kept: a hash of number and seed is at least p 2^32.
   The multipliers are those of Wellons' lowbias32. */
INLINE Int8 kept8(const Job *job, int64_t index) {
    const Word8 lanes = {0, 1, 2, 3, 4, 5, 6, 7};
    Word8 h = lanes + (uint32_t)index + job->keys[0] + (uint32_t)(index >> 32) * 0x9E3779B9u;
    h ^= h >> 16;
    h = (h ^ job->keys[1]) * 0x21F0AAADu;
    h ^= h >> 15;
    h *= 0x735A2D97u;
    h ^= h >> 15;
    return (Int8)(h >= job->threshold);
}

/* y = kept ? x : 0, or y += kept ? x : 0; in fp32, from a multiple of 8 on. */
INLINE void drop_values(const Job *job, int64_t start, int64_t stop) {
    const float *x = job->in[0], *added_to = job->in[1];
    float *y = job->out[0];
    for (int64_t i = start; i < stop; i += 8) {
        Float8 value = {0}, sum = {0};
        size_t bytes = sizeof(float) * (size_t)(stop - i < 8 ? stop - i : 8);
        if (bytes == sizeof value) memcpy(&value, x + i, sizeof value);
        else memcpy(&value, x + i, bytes);
        value = (Float8)((Int8)value & kept8(job, i));
        if (added_to) {
            if (bytes == sizeof sum) memcpy(&sum, added_to + i, sizeof sum);
            else memcpy(&sum, added_to + i, bytes);
            value += sum;
        }
        if (bytes == sizeof value) memcpy(y + i, &value, sizeof value);
        else memcpy(y + i, &value, bytes);
    }
}

INLINE void walk(const Job *job, int64_t start, int64_t stop, LoadHalf *load, StoreHalf *store) {
    enum { PIECE = 512 };
    if (job->kind == DROP) {
        drop_values(job, start, stop);
        return;
    }
    if (job->kind == GATE || job->kind == GATE_BACKWARD) {
        float g[PIECE] = {0}, u[PIECE] = {0}, dy[PIECE] = {0};
        for (int64_t i = start; i < stop; i += PIECE) {
            int count = (int)(stop - i < PIECE ? stop - i : PIECE);
            if (job->kind == GATE) gate_piece(job, i, count, load, store, g, u);
            else gate_piece_backward(job, i, count, load, store, g, u, dy);
        }
        return;
    }
    float *x = malloc(sizeof(float) * 2 * (size_t)(job->cols + LANES)), *dy = x + job->cols + LANES;
    if (!x) abort(); /* a few kilobytes */
    for (int64_t row = start; row < stop; row++) {
        if (job->kind == NORM) norm_row(job, row, load, store, x);
        else if (job->kind == NORM_BACKWARD) norm_row_backward(job, row, load, store, dy, x);
        else rotate_position(job, row, load, store, x);
    }
    free(x);
}

static void walk_portable(const Job *job, int64_t start, int64_t stop) {
    walk(job, start, stop, halves_to_floats, floats_to_halves);
}

#ifdef HAS_AVX2_VARIANT
AVX2 static void walk_avx2(const Job *job, int64_t start, int64_t stop) {
    walk(job, start, stop, halves_to_floats_avx2, floats_to_halves_avx2);
}
#endif

static void share(void *argument, int64_t number) {
    const Job *job = argument;
    int64_t start = number * job->rows_per_share, stop = start + job->rows_per_share;
    job->walk(job, start, stop < job->n ? stop : job->n);
}

static PyObject *run(Job *job, int64_t values_per_row, int n_threads, int portable) {
    job->walk = walk_portable;
#ifdef HAS_AVX2_VARIANT
    if (!portable && has_avx2()) job->walk = walk_avx2;
#else
    (void)portable;
#endif
    int64_t rows = ROWS_BYTES / 4 / (values_per_row ? values_per_row : 1);
    job->rows_per_share = rows > 0 ? rows : 1;
    Py_BEGIN_ALLOW_THREADS
    run_shares(share, job, (job->n + job->rows_per_share - 1) / job->rows_per_share, n_threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

typedef unsigned long long Address;

static void *pointer(Address address) { return (void *)(uintptr_t)address; }

/* norm(x, weight, y, rstd, rows, cols, eps, dtype, out_dtype, n_threads, portable) */
static PyObject *py_norm(PyObject *self, PyObject *args) {
    (void)self;
    Job job = {.kind = NORM};
    Address x, weight, y, rstd;
    long long rows;
    int n_threads, portable;
    if (!PyArg_ParseTuple(args, "KKKKLifiiip", &x, &weight, &y, &rstd, &rows, &job.cols, &job.eps, &job.dtype,
                          &job.out_dtype, &n_threads, &portable))
        return NULL;
    job.in[0] = pointer(x), job.weight = pointer(weight), job.out[0] = pointer(y), job.rstd = pointer(rstd);
    job.n = rows;
    return run(&job, job.cols, n_threads, portable);
}

/* norm_backward(dy, x, weight, rstd, dx, rows, cols, dtype, out_dtype, n_threads, portable) */
static PyObject *py_norm_backward(PyObject *self, PyObject *args) {
    (void)self;
    Job job = {.kind = NORM_BACKWARD};
    Address dy, x, weight, rstd, dx;
    long long rows;
    int n_threads, portable;
    if (!PyArg_ParseTuple(args, "KKKKKLiiiip", &dy, &x, &weight, &rstd, &dx, &rows, &job.cols, &job.dtype,
                          &job.out_dtype, &n_threads, &portable))
        return NULL;
    job.in[0] = pointer(dy), job.in[1] = pointer(x), job.weight = pointer(weight), job.rstd = pointer(rstd);
    job.out[0] = pointer(dx);
    job.n = rows;
    return run(&job, job.cols, n_threads, portable);
}

/* gate(g, u, y, n, dtype, n_threads, portable) */
static PyObject *py_gate(PyObject *self, PyObject *args) {
    (void)self;
    Job job = {.kind = GATE};
    Address g, u, y;
    long long n;
    int n_threads, portable;
    if (!PyArg_ParseTuple(args, "KKKLiip", &g, &u, &y, &n, &job.dtype, &n_threads, &portable)) return NULL;
    job.in[0] = pointer(g), job.in[1] = pointer(u), job.out[0] = pointer(y);
    job.n = n;
    return run(&job, 1, n_threads, portable);
}

/* gate_backward(dy, g, u, dg, du, n, dtype, n_threads, portable) */
static PyObject *py_gate_backward(PyObject *self, PyObject *args) {
    (void)self;
    Job job = {.kind = GATE_BACKWARD};
    Address dy, g, u, dg, du;
    long long n;
    int n_threads, portable;
    if (!PyArg_ParseTuple(args, "KKKKKLiip", &dy, &g, &u, &dg, &du, &n, &job.dtype, &n_threads, &portable))
        return NULL;
    job.in[0] = pointer(g), job.in[1] = pointer(u), job.in[2] = pointer(dy);
    job.out[0] = pointer(dg), job.out[1] = pointer(du);
    job.n = n;
    return run(&job, 1, n_threads, portable);
}

/* rotate(x, cos, sin, y, (batch, heads, positions, cols), strides of the first three, rotated, stride of the angles
   from batch to batch, backward, dtype, n_threads, portable); y is [batch, positions, heads, cols]. */
static PyObject *py_rotate(PyObject *self, PyObject *args) {
    (void)self;
    Job job = {0};
    Address x, cos, sin, y;
    long long batch, heads, positions, strides[3], angle_stride;
    int backward, n_threads, portable;
    if (!PyArg_ParseTuple(args, "KKKK(LLLi)(LLL)iLpiip", &x, &cos, &sin, &y, &batch, &heads, &positions, &job.cols,
                          &strides[0], &strides[1], &strides[2], &job.rotated, &angle_stride, &backward, &job.dtype,
                          &n_threads, &portable))
        return NULL;
    job.kind = backward ? ROTATE_BACKWARD : ROTATE;
    job.in[0] = pointer(x), job.cos = pointer(cos), job.sin = pointer(sin), job.out[0] = pointer(y);
    job.n = batch * positions, job.n_positions = positions, job.n_heads = heads;
    for (int i = 0; i < 3; i++) job.strides[i] = strides[i];
    job.angle_stride = angle_stride;
    return run(&job, heads * job.cols, n_threads, portable);
}

/* drop(x, added_to or 0, y, n, seed, p, n_threads, portable); y may be x or added_to */
static PyObject *py_drop(PyObject *self, PyObject *args) {
    (void)self;
    Job job = {.kind = DROP};
    Address x, added_to, y;
    long long n;
    unsigned long long seed;
    double p;
    int n_threads, portable;
    if (!PyArg_ParseTuple(args, "KKKLKdip", &x, &added_to, &y, &n, &seed, &p, &n_threads, &portable)) return NULL;
    job.in[0] = pointer(x), job.in[1] = pointer(added_to), job.out[0] = pointer(y);
    job.n = n;
    seed = (seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9u; /* splitmix64: neighbouring seeds differ in every bit */
    seed = (seed ^ (seed >> 27)) * 0x94D049BB133111EBu;
    seed ^= seed >> 31;
    job.keys[0] = (uint32_t)seed, job.keys[1] = (uint32_t)(seed >> 32);
    job.threshold = (uint32_t)(p * 4294967296.0);
    return run(&job, 1, n_threads, portable);
}

static PyMethodDef methods[] = {
    {"norm", py_norm, METH_VARARGS, "See rms_norm.py."},
    {"norm_backward", py_norm_backward, METH_VARARGS, "See rms_norm.py."},
    {"gate", py_gate, METH_VARARGS, "See gated.py."},
    {"gate_backward", py_gate_backward, METH_VARARGS, "See gated.py."},
    {"rotate", py_rotate, METH_VARARGS, "See rotary.py."},
    {"drop", py_drop, METH_VARARGS, "See lora_linear_aten.py."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_elementwise", "Norm, gate and rotation.", -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__elementwise(void) { return PyModule_Create(&module); }
