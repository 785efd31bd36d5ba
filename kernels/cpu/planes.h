/* Matrices cut into planes of bf16, as tiles for product.c. */

#ifndef LORA_TRAIN_PLANES_H
#define LORA_TRAIN_PLANES_H

#include "halves.h"

#ifdef HAS_TILES
#define TILES __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,amx-tile,amx-bf16")))

enum { SIDE = 16, DEPTH = 32, PAIR = 2 * SIDE, TILE = SIDE * DEPTH }; /* a tile: sixteen rows of 32 bf16, 1 KiB */
enum { MAX_PLANES = 2 };

static const uint32_t TOO_LARGE = 0x7F000000u; /* from 2^127 the first plane may round to infinity */

typedef struct {
    const char *at;
    int64_t stride, rows, cols; /* in values; a row is dense */
    int dtype;
} Matrix;

INLINE int64_t bytes_of(int dtype) { return dtype == FP32 ? 4 : 2; }

static inline Matrix block_of(const Matrix *m, int64_t row, int64_t col, int64_t rows, int64_t cols) {
    Matrix block = *m;
    block.at += bytes_of(m->dtype) * (row * m->stride + col);
    block.rows = m->rows - row < rows ? m->rows - row : rows;
    block.cols = m->cols - col < cols ? m->cols - col : cols;
    return block;
}

INLINE int64_t tiles(int64_t n, int64_t side) { return (n + side - 1) / side; }

/* Values in the planes of 32 rows or columns. */
INLINE int64_t pair_size(int64_t depth, int n_planes) { return tiles(depth, DEPTH) * n_planes * 2 * TILE; }

/* Sixteen values as fp32, zeros where `mask` is. */
INLINE TILES __m512 load(const char *at, int dtype, __mmask16 mask) {
    if (dtype == FP32) return _mm512_maskz_loadu_ps(mask, at);
    __m256i half = _mm256_maskz_loadu_epi16(mask, at);
    if (dtype == FP16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* Planes of 32 values, each the nearest bf16 to what those before it leave, and the last exact. Sixteen pairs: value i
   lies beside value i + 16. */
INLINE TILES void cut(__m512 a, __m512 b, int n_planes, __m512i planes[MAX_PLANES]) {
    const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32((int)0xFFFF0000u);
    for (int p = 0;; p++) {
        __m512i ia = _mm512_castps_si512(a), ib = _mm512_castps_si512(b);
        if (p + 1 < n_planes) ia = _mm512_add_epi32(ia, half), ib = _mm512_add_epi32(ib, half);
        planes[p] = _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(ia, 16), ib);
        if (p + 1 == n_planes) break;
        a = _mm512_sub_ps(a, _mm512_castsi512_ps(_mm512_and_epi32(ia, upper)));
        b = _mm512_sub_ps(b, _mm512_castsi512_ps(_mm512_and_epi32(ib, upper)));
    }
}

INLINE __mmask16 first(int64_t n) { return n >= SIDE ? 0xFFFF : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }

/* 32 rows as they lie: tiles [depth][plane][2]. */
INLINE TILES void cut_rows(const Matrix *x, int64_t row, uint16_t *to, int dtype, int n_planes) {
    int64_t size = bytes_of(dtype);
    for (int64_t r = 0; r < PAIR; r++) {
        const char *from = x->at + size * (row + r) * x->stride;
        uint16_t *at = to + r / SIDE * TILE + r % SIDE * DEPTH;
        int64_t n = row + r < x->rows ? x->cols : 0;
        for (int64_t k = 0; k < x->cols; k += DEPTH, at += n_planes * 2 * TILE) {
            __m512i planes[MAX_PLANES];
            __m512 a = load(from + size * k, dtype, first(n - k));
            __m512 b = load(from + size * (k + SIDE), dtype, first(n - k - SIDE));
            cut(a, b, n_planes, planes);
            for (int p = 0; p < n_planes; p++) _mm512_storeu_si512(at + p * 2 * TILE, planes[p]);
        }
    }
}

/* Whether 32 rows hold values whose planes do not add up to them: infinities, NaN, and what rounds to infinity. */
INLINE TILES int holds_too_large(const Matrix *x, int64_t row, int dtype) {
    int64_t stop = row + PAIR < x->rows ? row + PAIR : x->rows;
    __m512i most = _mm512_setzero_si512(), mask = _mm512_set1_epi32((int)ABS_MASK);
    for (; row < stop; row++)
        for (int64_t k = 0; k < x->cols; k += SIDE) {
            const char *from = x->at + bytes_of(dtype) * (row * x->stride + k);
            __m512i bits = _mm512_castps_si512(load(from, dtype, first(x->cols - k)));
            most = _mm512_max_epu32(most, _mm512_and_epi32(bits, mask));
        }
    return _mm512_cmpge_epu32_mask(most, _mm512_set1_epi32((int)TOO_LARGE)) != 0;
}

/* Transposes sixteen vectors of sixteen pairs of bf16. */
INLINE TILES void transpose(const __m512i in[SIDE], uint16_t *to) {
    __m512i a[SIDE], b[SIDE];
    for (int i = 0; i < SIDE; i += 2) {
        a[i] = _mm512_unpacklo_epi32(in[i], in[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(in[i], in[i + 1]);
    }
    for (int i = 0; i < SIDE; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm512_unpacklo_epi64(a[i + j], a[i + j + 2]);
            b[i + 2 * j + 1] = _mm512_unpackhi_epi64(a[i + j], a[i + j + 2]);
        }
    for (int i = 0; i < 4; i++) {
        __m512i low = _mm512_shuffle_i32x4(b[i], b[i + 4], 0x88);
        __m512i high = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0x88);
        __m512i low2 = _mm512_shuffle_i32x4(b[i], b[i + 4], 0xDD);
        __m512i high2 = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0xDD);
        _mm512_storeu_si512(to + DEPTH * i, _mm512_shuffle_i32x4(low, high, 0x88));
        _mm512_storeu_si512(to + DEPTH * (i + 8), _mm512_shuffle_i32x4(low, high, 0xDD));
        _mm512_storeu_si512(to + DEPTH * (i + 4), _mm512_shuffle_i32x4(low2, high2, 0x88));
        _mm512_storeu_si512(to + DEPTH * (i + 12), _mm512_shuffle_i32x4(low2, high2, 0xDD));
    }
}

/* 32 terms of the sum for two tiles of columns, which are rows of W if `transposed`: tiles [plane][2]. */
INLINE TILES void cut_w(const Matrix *w, int64_t col, int64_t k, uint16_t *to, int transposed, int dtype,
                        int n_planes) {
    int64_t size = bytes_of(dtype), beside = transposed ? size * SIDE : size * SIDE * w->stride;
    for (int64_t t = 0; t < 2; t++, col += SIDE) {
        __m512i planes[MAX_PLANES][SIDE];
        for (int64_t i = 0; i < SIDE; i++) {
            __m512i parts[MAX_PLANES];
            int64_t row = transposed ? col + i : k + i, start = transposed ? k : col;
            const char *from = w->at + size * (row * w->stride + start);
            __mmask16 mask = first(row < w->rows ? w->cols - start : 0), next = first(w->cols - start);
            if (transposed) next = first(row < w->rows ? w->cols - start - SIDE : 0);
            else if (row + SIDE >= w->rows) next = 0;
            cut(load(from, dtype, mask), load(from + beside, dtype, next), n_planes, parts);
            for (int p = 0; p < n_planes; p++) {
                if (transposed) planes[p][i] = parts[p];
                else _mm512_storeu_si512(to + (2 * p + t) * TILE + DEPTH * i, parts[p]);
            }
        }
        for (int p = 0; p < n_planes && transposed; p++) transpose(planes[p], to + (2 * p + t) * TILE);
    }
}

/* The columns of a share: tiles [pair of columns][depth][plane][2], made in the order of rows of W that lies. */
INLINE TILES void cut_columns(const Matrix *w, int64_t start, int64_t stop, uint16_t *to, int transposed, int dtype,
                              int n_planes) {
    int64_t depth = transposed ? w->cols : w->rows, size = pair_size(depth, n_planes);
    for (int64_t k = 0; k < depth; k += DEPTH, to += n_planes * 2 * TILE)
        for (int64_t pair = start; pair < stop; pair++)
            cut_w(w, pair * PAIR, k, to + (pair - start) * size, transposed, dtype, n_planes);
}

/* Calls `f` with its last argument known to the compiler. */
#define FOR_PLANES(f, n_planes, ...) (n_planes) == 1 ? f(__VA_ARGS__, 1) : f(__VA_ARGS__, 2)

TILES static void cut_rows_as(const Matrix *x, int64_t row, uint16_t *to, int n_planes) {
    if (x->dtype == FP32) cut_rows(x, row, to, FP32, 2);
    else if (x->dtype == FP16) cut_rows(x, row, to, FP16, 2);
    else FOR_PLANES(cut_rows, n_planes, x, row, to, BF16);
}

TILES static int holds_too_large_as(const Matrix *x, int64_t row) {
    if (x->dtype == FP32) return holds_too_large(x, row, FP32);
    return x->dtype == FP16 ? holds_too_large(x, row, FP16) : holds_too_large(x, row, BF16);
}

TILES static void cut_columns_as(const Matrix *w, int64_t start, int64_t stop, uint16_t *to, int transposed,
                                 int n_planes) {
    if (w->dtype == FP16 && transposed) cut_columns(w, start, stop, to, 1, FP16, 2);
    else if (w->dtype == FP16) cut_columns(w, start, stop, to, 0, FP16, 2);
    else if (transposed) FOR_PLANES(cut_columns, n_planes, w, start, stop, to, 1, BF16);
    else FOR_PLANES(cut_columns, n_planes, w, start, stop, to, 0, BF16);
}

#endif
#endif
