/* Which values of a matrix dropout keeps: a hash of seed, row and column, so that the backward pass draws the same
   again. One hash of 32 bits serves two values of a row that are 16 columns apart, 16 bits each: the probability is a
   multiple of 2^-16. */

#ifndef LORA_TRAIN_DROPOUT_H
#define LORA_TRAIN_DROPOUT_H

#include <stdint.h>

typedef struct {
    uint32_t keys[2], threshold; /* a value is kept where its bits, as the upper half of 32, reach it; 0: every value */
    int64_t row_hashes;
} Dropout;

static inline Dropout dropout_of(uint64_t seed, double p, int64_t cols) {
    seed = (seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9u; /* splitmix64: neighbouring seeds differ in every bit */
    seed = (seed ^ (seed >> 27)) * 0x94D049BB133111EBu;
    seed ^= seed >> 31;
    uint32_t dropped = (uint32_t)(p * 65536.0 + 0.5); /* of 65536 */
    uint32_t threshold = (dropped < 65535 ? dropped : 65535) << 16;
    return (Dropout){{(uint32_t)seed, (uint32_t)(seed >> 32)}, threshold, (cols + 31) / 32 * 16};
}

/* Turns numbers into their hashes, for integers and vectors of them; after 2^32 of them the mask begins anew. The
   multipliers are those of Wellons' lowbias32. */
#define HASH(h, dropout)                              \
    do {                                              \
        h += (dropout)->keys[0];                      \
        h ^= h >> 16;                                 \
        h = (h ^ (dropout)->keys[1]) * 0x21F0AAADu;   \
        h ^= h >> 15;                                 \
        h *= 0x735A2D97u;                             \
        h ^= h >> 15;                                 \
    } while (0)

/* Number of the hash for a value. */
static inline uint32_t hash_number(const Dropout *dropout, int64_t row, int64_t col) {
    return (uint32_t)(row * dropout->row_hashes) + ((uint32_t)col / 32 * 16 + (uint32_t)col % 16);
}

/* The value of row and column if it is kept, else 0. */
static inline float kept_value(float value, const Dropout *dropout, int64_t row, int64_t col) {
    uint32_t h = hash_number(dropout, row, col);
    HASH(h, dropout);
    return (col & 16 ? h : h << 16) >= dropout->threshold ? value : 0.0f;
}

#endif
