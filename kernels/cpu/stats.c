/* One-pass tensor statistics on the CPU: what kernels/tensor_stats.py defines, in one read of memory.

   ATen needs a pass per statistic. Here a tensor is read once, in pieces of 512 values that stay in the first-level
   cache: widened to the bits of |x| as fp32, counted with integer loops that every compiler vectorises, and squared
   and summed in double. A double holds the square of any fp32 exactly, so huge and tiny values need no scaling.

   Infinities and NaN are rare. A piece whose largest magnitude is below infinity has none, and only the others are
   looked at a second time.

   The order of additions is fixed: 16 lanes per piece, pieces in order within a share of 2^15 values, shares in
   order. It depends neither on the number of threads nor on the instruction set, so the bits do not either.

   C11 with the vector types of GCC and Clang, for any chip. On x86-64 the hot function is compiled twice, once for AVX2 and F16C (which halves the time of fp16),
   and chosen at run time; AVX-512 was no faster. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "halves.h"
#include "threads.h"

enum { PIECE = 512, LANES = 16, SHARE = 1 << 15, N_FIELDS = 9, N_EXPONENTS = 256 };

static const uint32_t FP32_MIN_NORMAL = 0x00800000u;

typedef struct {
    double sumsq;
    uint32_t max_bits;
    int64_t n_nan, n_inf, n_overflow, n_underflow, n_tiny, n_zero; /* tiny: zero or subnormal */
} Partial;

typedef void LoadBits(const uint16_t *source, int count, uint32_t *bits);
typedef void RoundHalf(const uint32_t *acc, int count, uint16_t *stored, uint32_t *bits);

static void load_half(const uint16_t *source, int count, uint32_t *bits) {
    for (int i = 0; i < count; i++) bits[i] = half_to_bits(source[i]);
}

static void round_half(const uint32_t *acc, int count, uint16_t *stored, uint32_t *bits) {
    for (int i = 0; i < count; i++) {
        uint16_t half = bits_to_half(acc[i] & ABS_MASK);
        bits[i] = half_to_bits(half);
        stored[i] = (uint16_t)(half | (acc[i] >> 31 << 15));
    }
}

#ifdef HAS_AVX2_VARIANT
AVX2 static void load_half_avx2(const uint16_t *source, int count, uint32_t *bits) {
    const __m256i abs_mask = _mm256_set1_epi32(0x7FFFFFFF);
    int i = 0;
    for (; i + 8 <= count; i += 8) {
        __m256 values = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(source + i)));
        _mm256_storeu_si256((__m256i *)(bits + i), _mm256_and_si256(_mm256_castps_si256(values), abs_mask));
    }
    load_half(source + i, count - i, bits + i);
}

AVX2 static void round_half_avx2(const uint32_t *acc, int count, uint16_t *stored, uint32_t *bits) {
    const __m256i abs_mask = _mm256_set1_epi32(0x7FFFFFFF);
    int i = 0;
    for (; i + 8 <= count; i += 8) {
        __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps((const float *)(acc + i)), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128((__m128i *)(stored + i), half);
        __m256i values = _mm256_castps_si256(_mm256_cvtph_ps(half));
        _mm256_storeu_si256((__m256i *)(bits + i), _mm256_and_si256(values, abs_mask));
    }
    round_half(acc + i, count - i, stored + i, bits + i);
}
#endif

/* Widens `count` stored values to the bits of their magnitude as fp32. */
INLINE void load_piece(const void *x, int64_t start, int count, int dtype, LoadBits *load, uint32_t *bits) {
    if (dtype == FP32) {
        const uint32_t *source = (const uint32_t *)x + start;
        for (int i = 0; i < count; i++) bits[i] = source[i] & ABS_MASK;
    } else if (dtype == FP16) {
        load((const uint16_t *)x + start, count, bits);
    } else {
        const uint16_t *source = (const uint16_t *)x + start;
        for (int i = 0; i < count; i++) bits[i] = (uint32_t)(source[i] & 0x7FFFu) << 16;
    }
}

/* Rounds `count` accumulators to the stored dtype, writes them, and counts what reached zero or infinity. */
INLINE void round_piece(const uint32_t *acc, int count, int dtype, RoundHalf *round, uint16_t *stored, uint32_t *bits,
                        Partial *p) {
    int32_t n_overflow = 0, n_underflow = 0;
    if (dtype == FP16)
        round(acc, count, stored, bits);
    else
        for (int i = 0; i < count; i++) {
            uint16_t bfloat = bits_to_bfloat(acc[i] & ABS_MASK);
            bits[i] = (uint32_t)bfloat << 16;
            stored[i] = (uint16_t)(bfloat | (acc[i] >> 31 << 15));
        }
    for (int i = 0; i < count; i++) {
        uint32_t a = acc[i] & ABS_MASK;
        n_overflow += (bits[i] == INF_BITS) & (a < INF_BITS);
        n_underflow += (bits[i] == 0) & (a != 0);
    }
    p->n_overflow += n_overflow;
    p->n_underflow += n_underflow;
}

typedef int32_t Int8 __attribute__((vector_size(32)));
typedef double Double4 __attribute__((vector_size(32)));

/* Sum of squares, largest magnitude and, if asked, small values of `count` magnitudes, a multiple of LANES. */
INLINE double square_piece(const uint32_t *bits, int count, uint32_t min_normal, int count_small, uint32_t *max_bits,
                           Partial *p) {
    const Int8 limit = (Int8){0} + (int32_t)min_normal;
    Int8 max = {0}, tiny = {0}, zero = {0};
    Double4 sums[4] = {{0}, {0}, {0}, {0}};
    for (int i = 0; i < count; i += LANES) {
        for (int half = 0; half < 2; half++) {
            Int8 b;
            memcpy(&b, bits + i + 8 * half, sizeof b);
            Int8 larger = b > max;
            max = (b & larger) | (max & ~larger);
            if (count_small) {
                tiny -= b < limit; /* a true comparison is -1 */
                zero -= b == 0;
            }
        }
        for (int quarter = 0; quarter < 4; quarter++) {
            float narrow[4];
            memcpy(narrow, bits + i + 4 * quarter, sizeof narrow);
            Double4 value = {narrow[0], narrow[1], narrow[2], narrow[3]}; /* GCC 12: a third faster than a cast */
            sums[quarter] += value * value;
        }
    }
    *max_bits = 0;
    for (int lane = 0; lane < 8; lane++) {
        *max_bits = (uint32_t)max[lane] > *max_bits ? (uint32_t)max[lane] : *max_bits;
        p->n_tiny += tiny[lane];
        p->n_zero += zero[lane];
    }
    Double4 sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* Adds one piece. `bits` has PIECE entries; those past `count` and the non-finite ones are overwritten. */
INLINE void count_piece(uint32_t *bits, int count, uint32_t min_normal, int count_small, Partial *p) {
    int padding = (LANES - count % LANES) % LANES; /* zeros complete the last group */
    memset(bits + count, 0, sizeof(uint32_t) * (size_t)padding);
    if (count_small) {
        p->n_tiny -= padding;
        p->n_zero -= padding;
    }
    uint32_t max_bits;
    double sumsq = square_piece(bits, count + padding, min_normal, count_small, &max_bits, p);
    if (max_bits >= INF_BITS) {
        for (int i = 0; i < count; i++) {
            p->n_nan += bits[i] > INF_BITS;
            p->n_inf += bits[i] == INF_BITS;
            bits[i] = bits[i] >= INF_BITS ? 0 : bits[i];
        }
        sumsq = square_piece(bits, count + padding, min_normal, 0, &max_bits, p);
    }
    p->sumsq += sumsq;
    p->max_bits = max_bits > p->max_bits ? max_bits : p->max_bits;
}

typedef struct Job {
    const void *x;
    void *stored; /* NULL: only count */
    int64_t n, n_shares;
    int dtype, count_small;
    void (*walk)(const struct Job *, int64_t, int64_t, Partial *);
    Partial *partials;
} Job;

INLINE void walk(const Job *job, int64_t start, int64_t stop, int dtype, int count_small, int rounded, LoadBits *load,
                 RoundHalf *round, Partial *p) {
    uint32_t bits[PIECE];
    uint32_t min_normal = dtype == FP16 ? FP16_MIN_NORMAL : FP32_MIN_NORMAL;
    for (int64_t i = start; i < stop; i += PIECE) {
        int count = (int)(stop - i < PIECE ? stop - i : PIECE);
        if (rounded)
            round_piece((const uint32_t *)job->x + i, count, dtype, round, (uint16_t *)job->stored + i, bits, p);
        else
            load_piece(job->x, i, count, dtype, load, bits);
        count_piece(bits, count, min_normal, count_small, p);
    }
}

/* One share. Every branch gets a copy of the loop with its constants folded in. */
INLINE void share(const Job *job, int64_t start, int64_t stop, LoadBits *load, RoundHalf *round, Partial *p) {
    if (job->stored && job->dtype == FP16) walk(job, start, stop, FP16, 1, 1, load, round, p);
    else if (job->stored) walk(job, start, stop, BF16, 1, 1, load, round, p);
    else if (job->dtype == FP16) walk(job, start, stop, FP16, 1, 0, load, round, p);
    else if (job->dtype == BF16) walk(job, start, stop, BF16, 1, 0, load, round, p);
    else if (job->count_small) walk(job, start, stop, FP32, 1, 0, load, round, p);
    else walk(job, start, stop, FP32, 0, 0, load, round, p);
}

static void share_portable(const Job *job, int64_t start, int64_t stop, Partial *p) {
    share(job, start, stop, load_half, round_half, p);
}

#ifdef HAS_AVX2_VARIANT
AVX2 static void share_avx2(const Job *job, int64_t start, int64_t stop, Partial *p) {
    share(job, start, stop, load_half_avx2, round_half_avx2, p);
}
#endif

static void share_of_job(void *argument, int64_t number) {
    Job *job = argument;
    int64_t start = number * SHARE, stop = start + SHARE < job->n ? start + SHARE : job->n;
    Partial p = {0};
    job->walk(job, start, stop, &p);
    job->partials[number] = p;
}

static void write_row(const Job *job, double *row) {
    Partial total = {0};
    for (int64_t s = 0; s < job->n_shares; s++) {
        const Partial *p = &job->partials[s];
        total.sumsq += p->sumsq;
        total.max_bits = p->max_bits > total.max_bits ? p->max_bits : total.max_bits;
        total.n_nan += p->n_nan;
        total.n_inf += p->n_inf;
        total.n_overflow += p->n_overflow;
        total.n_underflow += p->n_underflow;
        total.n_tiny += p->n_tiny;
        total.n_zero += p->n_zero;
    }
    float absmax;
    memcpy(&absmax, &total.max_bits, 4);
    row[0] = total.sumsq;
    row[1] = absmax;
    row[2] = (double)total.n_nan;
    row[3] = (double)total.n_inf;
    row[4] = job->stored ? (double)total.n_overflow : NAN;
    row[5] = job->stored ? (double)total.n_underflow : NAN;
    row[6] = job->count_small ? (double)(total.n_tiny - total.n_zero) : NAN;
    row[7] = job->count_small ? (double)total.n_zero : NAN;
    row[8] = (double)job->n;
}

/* stats(x, n, dtype, count_small, stored, row, n_threads, portable): addresses as int. With `stored`, x is fp32 and is
   rounded to it; else x has the dtype and is only counted. `portable` keeps to the variant every chip can run. */
static PyObject *py_stats(PyObject *self, PyObject *args) {
    (void)self;
    long long n;
    unsigned long long x, stored, row;
    int n_threads, portable;
    Job job;
    if (!PyArg_ParseTuple(args, "KLiiKKip", &x, &n, &job.dtype, &job.count_small, &stored, &row, &n_threads, &portable))
        return NULL;
    job.x = (const void *)(uintptr_t)x;
    job.stored = (void *)(uintptr_t)stored;
    job.n = n;
    job.n_shares = (n + SHARE - 1) / SHARE;
    job.walk = share_portable;
#ifdef HAS_AVX2_VARIANT
    if (!portable && has_avx2()) job.walk = share_avx2;
#endif
    job.partials = malloc(sizeof(Partial) * (size_t)(job.n_shares ? job.n_shares : 1));
    if (!job.partials) return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS
    run_shares(share_of_job, &job, job.n_shares, n_threads);
    write_row(&job, (double *)(uintptr_t)row);
    Py_END_ALLOW_THREADS
    free(job.partials);
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

/* exponents(x, n, dtype, counts): int64 counts [256] of the fp32 exponent field. */
static PyObject *py_exponents(PyObject *self, PyObject *args) {
    (void)self;
    long long n;
    unsigned long long x, counts;
    int dtype;
    if (!PyArg_ParseTuple(args, "KLiK", &x, &n, &dtype, &counts)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    count_exponents((const void *)(uintptr_t)x, n, dtype, (int64_t *)(uintptr_t)counts);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"stats", py_stats, METH_VARARGS, "One row of statistics; see tensor_stats.py."},
    {"exponents", py_exponents, METH_VARARGS, "Counts of binary exponents; see tensor_stats.py."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_stats", "One-pass tensor statistics.", -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__stats(void) { return PyModule_Create(&module); }
