/* The counting of kernels/statistics/tensor_stats.py for one piece of a tensor that is in the first-level cache: magnitudes as the
   bits of an fp32, counted with integer loops that every compiler vectorises, and squared and summed in double. A
   double holds the square of any fp32 exactly, so huge and tiny values need no scaling.

   Infinities and NaN are rare. A piece whose largest magnitude is below infinity has none, and only the others are
   looked at a second time. */

#ifndef LORA_TRAIN_STATISTICS_H
#define LORA_TRAIN_STATISTICS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "halves.h"

enum { PIECE = 512, COUNTED = 16, N_FIELDS = 9 };

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

typedef double SquarePiece(const uint32_t *bits, int count, uint32_t min_normal, int count_small, uint32_t *max_bits,
                           Partial *p);

/* Sum of squares, largest magnitude and, if asked, small values of `count` floats, a multiple of COUNTED. */
INLINE double square_piece(const uint32_t *bits, int count, uint32_t min_normal, int count_small, uint32_t *max_bits,
                           Partial *p) {
    const Int8 limit = (Int8){0} + (int32_t)min_normal;
    Int8 max = {0}, tiny = {0}, zero = {0};
    Double4 sums[4] = {{0}, {0}, {0}, {0}};
    for (int i = 0; i < count; i += COUNTED) {
        for (int half = 0; half < 2; half++) {
            Int8 b;
            memcpy(&b, bits + i + 8 * half, sizeof b);
            b &= (int32_t)ABS_MASK;
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

#ifdef HAS_AVX2_VARIANT
/* The same, with the same sixteen sums, added in the same order. */
AVX512 static double square_piece_avx512(const uint32_t *bits, int count, uint32_t min_normal, int count_small,
                                         uint32_t *max_bits, Partial *p) {
    const __m512i limit = _mm512_set1_epi32((int)min_normal), abs_mask = _mm512_set1_epi32((int)ABS_MASK);
    __m512i max = _mm512_setzero_si512();
    __m512d sums[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()};
    int n_tiny = 0, n_zero = 0;
    for (int i = 0; i < count; i += COUNTED) {
        __m512i b = _mm512_and_si512(_mm512_loadu_si512(bits + i), abs_mask);
        max = _mm512_max_epu32(max, b);
        if (count_small) {
            n_tiny += __builtin_popcount(_mm512_cmplt_epu32_mask(b, limit));
            n_zero += __builtin_popcount(_mm512_testn_epi32_mask(b, b));
        }
        for (int half = 0; half < 2; half++) {
            __m512d value = _mm512_cvtps_pd(_mm256_loadu_ps((const float *)bits + i + 8 * half));
            sums[half] = _mm512_fmadd_pd(value, value, sums[half]); /* the square is exact, fused or not */
        }
    }
    *max_bits = _mm512_reduce_max_epu32(max);
    p->n_tiny += n_tiny;
    p->n_zero += n_zero;
    double lanes[COUNTED], four[4];
    memcpy(lanes, sums, sizeof lanes);
    for (int lane = 0; lane < 4; lane++)
        four[lane] = (lanes[lane] + lanes[lane + 4]) + (lanes[lane + 8] + lanes[lane + 12]);
    return (four[0] + four[1]) + (four[2] + four[3]);
}
#endif

/* Adds one piece. `bits` has PIECE entries; those past `count` and the non-finite ones are overwritten. */
INLINE void count_piece(uint32_t *bits, int count, uint32_t min_normal, int count_small, SquarePiece *square,
                        Partial *p) {
    int padding = (COUNTED - count % COUNTED) % COUNTED; /* zeros complete the last group */
    memset(bits + count, 0, sizeof(uint32_t) * (size_t)padding);
    if (count_small) {
        p->n_tiny -= padding;
        p->n_zero -= padding;
    }
    uint32_t max_bits;
    double sumsq = square(bits, count + padding, min_normal, count_small, &max_bits, p);
    if (max_bits >= INF_BITS) {
        for (int i = 0; i < count; i++) {
            p->n_nan += bits[i] > INF_BITS;
            p->n_inf += bits[i] == INF_BITS;
            bits[i] = bits[i] >= INF_BITS ? 0 : bits[i];
        }
        sumsq = square(bits, count + padding, min_normal, 0, &max_bits, p);
    }
    p->sumsq += sumsq;
    p->max_bits = max_bits > p->max_bits ? max_bits : p->max_bits;
}

INLINE void count_as(const void *x, void *stored, int64_t start, int64_t stop, int dtype, int count_small, int rounded,
                     LoadBits *load, RoundHalf *round, SquarePiece *square, Partial *p) {
    uint32_t bits[PIECE];
    uint32_t min_normal = dtype == FP16 ? FP16_MIN_NORMAL : FP32_MIN_NORMAL;
    for (int64_t i = start; i < stop; i += PIECE) {
        int count = (int)(stop - i < PIECE ? stop - i : PIECE);
        if (dtype == FP32 && !count_small && count % COUNTED == 0) { /* where they are, unless one is not finite */
            uint32_t max_bits;
            double sumsq = square((const uint32_t *)x + i, count, 0, 0, &max_bits, p);
            if (max_bits < INF_BITS) {
                p->sumsq += sumsq;
                p->max_bits = max_bits > p->max_bits ? max_bits : p->max_bits;
                continue;
            }
        }
        if (rounded) round_piece((const uint32_t *)x + i, count, dtype, round, (uint16_t *)stored + i, bits, p);
        else load_piece(x, i, count, dtype, load, bits);
        count_piece(bits, count, min_normal, count_small, square, p);
    }
}

/* Counts the values from `start` to `stop`. With `stored`, x is fp32 and is rounded to it, which has the dtype; else x
   has it. Every branch gets a copy of the loop with its constants folded in. */
INLINE void count_values(const void *x, void *stored, int64_t start, int64_t stop, int dtype, int count_small,
                         LoadBits *load, RoundHalf *round, SquarePiece *square, Partial *p) {
    if (stored && dtype == FP16) count_as(x, stored, start, stop, FP16, 1, 1, load, round, square, p);
    else if (stored) count_as(x, stored, start, stop, BF16, 1, 1, load, round, square, p);
    else if (dtype == FP16) count_as(x, NULL, start, stop, FP16, 1, 0, load, round, square, p);
    else if (dtype == BF16) count_as(x, NULL, start, stop, BF16, 1, 0, load, round, square, p);
    else if (count_small) count_as(x, NULL, start, stop, FP32, 1, 0, load, round, square, p);
    else count_as(x, NULL, start, stop, FP32, 0, 0, load, round, square, p);
}

INLINE void add_partial(Partial *total, const Partial *p) {
    total->sumsq += p->sumsq;
    total->max_bits = p->max_bits > total->max_bits ? p->max_bits : total->max_bits;
    total->n_nan += p->n_nan;
    total->n_inf += p->n_inf;
    total->n_overflow += p->n_overflow;
    total->n_underflow += p->n_underflow;
    total->n_tiny += p->n_tiny;
    total->n_zero += p->n_zero;
}

/* The row of `n` values; `rounded`: overflow and underflow are known. */
static inline void write_row(const Partial *total, int64_t n, int rounded, int count_small, double *row) {
    float absmax;
    memcpy(&absmax, &total->max_bits, 4);
    row[0] = total->sumsq;
    row[1] = absmax;
    row[2] = (double)total->n_nan;
    row[3] = (double)total->n_inf;
    row[4] = rounded ? (double)total->n_overflow : NAN;
    row[5] = rounded ? (double)total->n_underflow : NAN;
    row[6] = count_small ? (double)(total->n_tiny - total->n_zero) : NAN;
    row[7] = count_small ? (double)total->n_zero : NAN;
    row[8] = (double)n;
}

#endif
