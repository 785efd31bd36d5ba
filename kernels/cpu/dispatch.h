/* Which loops run: those for any x86-64 or other chip, for AVX2, for AVX-512, or for AVX-512 and AMX's tiles.

   kernels/cpu_level.py decides and tells every C file, which keeps it in `level`; `best_level` is the most that chip,
   system and compiler allow. */

#ifndef LORA_TRAIN_DISPATCH_H
#define LORA_TRAIN_DISPATCH_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* syscall */
#endif
#include <Python.h>

#ifdef __x86_64__
#include <immintrin.h>
#define HAS_AVX2_VARIANT 1
#define AVX2 __attribute__((target("avx2,f16c,fma")))
#define AVX512 __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,f16c,fma,prefer-vector-width=512")))
#endif

#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) || __GNUC__ >= 11)
#include <sys/syscall.h>
#include <unistd.h>
#define HAS_TILES 1
enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 }; /* of arch_prctl */
#endif

enum { LEVEL_PORTABLE, LEVEL_AVX2, LEVEL_AVX512, LEVEL_AMX }; /* as in cpu_level.py */

static int level = LEVEL_PORTABLE;

/* `name` has the suffixes _portable, _avx2 and _avx512. */
#ifdef HAS_AVX2_VARIANT
#define AT_LEVEL(name) (level >= LEVEL_AVX512 ? name##_avx512 : level == LEVEL_AVX2 ? name##_avx2 : name##_portable)
#else
#define AT_LEVEL(name) name##_portable
#endif

#ifdef HAS_TILES
/* Whether the chip has tiles and the system lets this process use them. */
static inline int may_use_tiles(void) {
    unsigned a = 7, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    if (!(d >> 22 & 1) || !(d >> 24 & 1)) return 0; /* AMX-BF16, AMX-TILE */
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#endif

static inline int best_level(void) {
#ifdef HAS_AVX2_VARIANT
    if (!__builtin_cpu_supports("avx2")) return LEVEL_PORTABLE; /* every chip with AVX2 has F16C and FMA */
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl"))
        return LEVEL_AVX2;
#ifdef HAS_TILES
    if (may_use_tiles()) return LEVEL_AMX;
#endif
    return LEVEL_AVX512;
#else
    return LEVEL_PORTABLE;
#endif
}

static PyObject *py_best_level(PyObject *self, PyObject *args) {
    (void)self, (void)args;
    return PyLong_FromLong(best_level());
}

/* use_level(number): of at most best_level(), for every call from now on. */
static PyObject *py_use_level(PyObject *self, PyObject *number) {
    (void)self;
    int wanted = (int)PyLong_AsLong(number);
    if (PyErr_Occurred()) return NULL;
    if (wanted < LEVEL_PORTABLE || wanted > best_level())
        return PyErr_Format(PyExc_ValueError, "level %d of 0 to %d", wanted, best_level());
    level = wanted;
    Py_RETURN_NONE;
}

#define LEVEL_METHODS                                                                 \
    {"best_level", py_best_level, METH_NOARGS, "What this chip has; see dispatch.h."}, \
    {"use_level", py_use_level, METH_O, "Which loops run; see dispatch.h."}

#endif
