/* fp16 and bf16 on chips with and without instructions for them, rounded to nearest, ties to even. */

#ifndef LORA_TRAIN_HALVES_H
#define LORA_TRAIN_HALVES_H

#include <stdint.h>
#include <string.h>

#include "common.h"

#define INLINE static inline __attribute__((always_inline))

static const uint32_t ABS_MASK = 0x7FFFFFFFu, INF_BITS = 0x7F800000u, FP16_MIN_NORMAL = 0x38800000u;

/* |x| of an fp16 as the bits of an fp32. */
INLINE uint32_t half_to_bits(uint16_t half) {
    uint32_t m = half & 0x7FFFu, shifted = m << 13;
    uint32_t normal = shifted + (112u << 23), special = shifted + (224u << 23);
    /* A subnormal is the fraction of 2^-14 + m 2^-24. No fp32 subnormal appears, so flush-to-zero cannot bite. */
    uint32_t lifted = shifted + (113u << 23), subnormal;
    float value;
    memcpy(&value, &lifted, 4);
    value -= 0x1p-14f;
    memcpy(&subnormal, &value, 4);
    uint32_t finite = m < 0x0400u ? subnormal : normal;
    return m >= 0x7C00u ? special : finite;
}

/* |x| to the nearest fp16, ties to even, as IEEE 754 and every CUDA cast do. */
INLINE uint16_t bits_to_half(uint32_t a) {
    uint32_t normal = (a - (112u << 23) + 0x0FFFu + ((a >> 13) & 1u)) >> 13, subnormal;
    float value;
    memcpy(&value, &a, 4);
    value += 0.5f; /* one unit in the last place of 0.5 is 2^-24, that of an fp16 subnormal */
    memcpy(&subnormal, &value, 4);
    subnormal -= 0x3F000000u;
    uint32_t half = a < FP16_MIN_NORMAL ? subnormal : normal;
    half = a >= 0x477FF000u ? 0x7C00u : half; /* 65520 */
    return (uint16_t)(a > INF_BITS ? 0x7E00u : half);
}

INLINE uint16_t bits_to_bfloat(uint32_t a) {
    uint32_t rounded = (a + 0x7FFFu + ((a >> 16) & 1u)) >> 16;
    return (uint16_t)(a > INF_BITS ? 0x7FC0u : rounded);
}

typedef void LoadHalf(const uint16_t *source, int count, float *values);
typedef void StoreHalf(const float *values, int count, uint16_t *stored);

static inline void halves_to_floats(const uint16_t *source, int count, float *values) {
    for (int i = 0; i < count; i++) {
        uint32_t bits = half_to_bits(source[i]) | (uint32_t)(source[i] & 0x8000u) << 16;
        memcpy(values + i, &bits, 4);
    }
}

static inline void floats_to_halves(const float *values, int count, uint16_t *stored) {
    for (int i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, values + i, 4);
        stored[i] = (uint16_t)(bits_to_half(bits & ABS_MASK) | (bits >> 31 << 15));
    }
}

static inline void bfloats_to_floats(const uint16_t *source, int count, float *values) {
    for (int i = 0; i < count; i++) {
        uint32_t bits = (uint32_t)source[i] << 16;
        memcpy(values + i, &bits, 4);
    }
}

static inline void floats_to_bfloats(const float *values, int count, uint16_t *stored) {
    for (int i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, values + i, 4);
        stored[i] = (uint16_t)(bits_to_bfloat(bits & ABS_MASK) | (bits >> 31 << 15));
    }
}

#ifdef HAS_AVX2_VARIANT
AVX2 static inline void halves_to_floats_avx2(const uint16_t *source, int count, float *values) {
    int i = 0;
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(values + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(source + i))));
    halves_to_floats(source + i, count - i, values + i);
}

AVX2 static inline void floats_to_halves_avx2(const float *values, int count, uint16_t *stored) {
    int i = 0;
    for (; i + 8 <= count; i += 8) {
        __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(values + i), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128((__m128i *)(stored + i), half);
    }
    floats_to_halves(values + i, count - i, stored + i);
}
#endif

#endif
