/* What every C file of this folder has: loops of several levels, tensors as arguments, scratch memory that is counted,
   and a module.

   Levels: loops for any x86-64 or other chip, for AVX2, for AVX-512, or for AVX-512 and AMX's tiles.
   kernels/cpu_level.py decides and tells every C file, which keeps it in `level`; `best_level` is the most that chip,
   system and compiler allow.

   Tensors come as themselves. torch tells address, dtype, shape and strides in a struct that other libraries know too
   (DLPack, dmlc/dlpack), and every argument is checked against what a function wants: a ValueError names it.

   Scratch: what a call allocates beside its tensors. One counter for all files, in bytes that were asked for. */

#ifndef LORA_TRAIN_COMMON_H
#define LORA_TRAIN_COMMON_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* syscall, RTLD_DEFAULT */
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

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

enum { FP32, FP16, BF16, FP64, INT64, N_DTYPES };
enum { HALF = -2, ANY_DTYPE, ANY_SIZE = -1, MAX_DIMS = 8 }; /* fp16 or bf16; these or fp32 */

/* `strides` are in values. */
typedef struct {
    void *at;
    int dtype, n_dims;
    int64_t sizes[MAX_DIMS], strides[MAX_DIMS];
} Tensor;

/* The start of DLPack's DLManagedTensor: all that is read here. */
typedef struct {
    void *data;
    int32_t device_type, device_id, n_dims;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *sizes, *strides;
    uint64_t byte_offset;
} DLTensor;

enum { DL_CPU = 1, DL_INT = 0, DL_FLOAT = 2, DL_BFLOAT = 4 };

static PyObject *to_dlpack; /* torch.utils.dlpack.to_dlpack */

static const char *const DTYPE_NAMES[N_DTYPES] = {"float32", "float16", "bfloat16", "float64", "int64"};

static inline int dtype_of(const DLTensor *from) {
    if (from->lanes != 1) return ANY_DTYPE;
    if (from->code == DL_INT) return from->bits == 64 ? INT64 : ANY_DTYPE;
    if (from->code == DL_BFLOAT) return from->bits == 16 ? BF16 : ANY_DTYPE;
    if (from->code != DL_FLOAT) return ANY_DTYPE;
    return from->bits == 64 ? FP64 : from->bits == 32 ? FP32 : from->bits == 16 ? FP16 : ANY_DTYPE;
}

/* The capsule goes at once: the tensor is an argument, and lives as long as the call. */
static int read_tensor(PyObject *object, const char *name, Tensor *to) {
    PyObject *capsule = PyObject_CallOneArg(to_dlpack, object);
    if (!capsule) return 0;
    const DLTensor *from = PyCapsule_GetPointer(capsule, "dltensor");
    const char *trouble = !from || (from->n_dims && !from->strides) ? "has no strides"
                          : from->device_type != DL_CPU             ? "is not on the CPU"
                          : from->n_dims > MAX_DIMS                 ? "has more than eight dimensions"
                          : dtype_of(from) == ANY_DTYPE             ? "has a dtype that no loop takes"
                                                                    : NULL;
    if (!trouble) {
        to->at = (char *)from->data + from->byte_offset;
        to->dtype = dtype_of(from), to->n_dims = from->n_dims;
        for (int d = 0; d < from->n_dims; d++) to->sizes[d] = from->sizes[d], to->strides[d] = from->strides[d];
    }
    Py_DECREF(capsule);
    if (trouble) PyErr_Format(PyExc_ValueError, "%s %s", name, trouble);
    return !trouble;
}

static inline int64_t values_of(const Tensor *t) {
    int64_t values = 1;
    for (int d = 0; d < t->n_dims; d++) values *= t->sizes[d];
    return values;
}

/* How many of the last dimensions lie one value after the other; strides of a single value do not count. */
static inline int dense_dims(const Tensor *t) {
    int64_t apart = 1;
    int d = t->n_dims;
    for (; d > 0; apart *= t->sizes[--d])
        if (t->sizes[d - 1] > 1 && t->strides[d - 1] != apart) break;
    return values_of(t) ? t->n_dims - d : t->n_dims;
}

static int has_dtype(const Tensor *t, const char *name, int dtype) {
    if (dtype >= 0 ? t->dtype == dtype : t->dtype <= BF16 && (dtype == ANY_DTYPE || t->dtype != FP32)) return 1;
    const char *wanted = dtype >= 0           ? DTYPE_NAMES[dtype]
                         : dtype == ANY_DTYPE ? "float32, float16 or bfloat16"
                                              : "float16 or bfloat16";
    PyErr_Format(PyExc_ValueError, "%s is %s, not %s", name, DTYPE_NAMES[t->dtype], wanted);
    return 0;
}

/* A tensor of that dtype and shape, of which the last n_dense dimensions are dense; 0 after a ValueError. */
static int take(PyObject *object, const char *name, Tensor *to, int dtype, int n_dense, int n_dims,
                const int64_t *sizes) {
    if (!read_tensor(object, name, to) || !has_dtype(to, name, dtype)) return 0;
    if (to->n_dims != n_dims) {
        PyErr_Format(PyExc_ValueError, "%s has %d dimensions, not %d", name, to->n_dims, n_dims);
        return 0;
    }
    for (int d = 0; d < n_dims; d++)
        if (sizes[d] != ANY_SIZE && to->sizes[d] != sizes[d]) {
            PyErr_Format(PyExc_ValueError, "dimension %d of %s has size %lld, not %lld", d, name,
                         (long long)to->sizes[d], (long long)sizes[d]);
            return 0;
        }
    if (dense_dims(to) >= n_dense) return 1;
    PyErr_Format(PyExc_ValueError, "%s has gaps in its last %d dimensions", name, n_dense);
    return 0;
}

/* A dense tensor of any shape with so many values. */
static inline int take_flat(PyObject *object, const char *name, Tensor *to, int dtype, int64_t n) {
    if (!read_tensor(object, name, to) || !has_dtype(to, name, dtype)) return 0;
    if (n != ANY_SIZE && values_of(to) != n)
        PyErr_Format(PyExc_ValueError, "%s has %lld values, not %lld", name, (long long)values_of(to), (long long)n);
    else if (dense_dims(to) < to->n_dims) PyErr_Format(PyExc_ValueError, "%s has gaps", name);
    else return 1;
    return 0;
}

/* The length of the shape and the shape, for `take`. */
#define SHAPE(...) (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]){__VA_ARGS__}

typedef struct {
    atomic_llong bytes, peak;
    atomic_llong until_failure; /* allocations that succeed before one fails; below 0: none fails */
} Scratch;

static Scratch scratch_of_file = {.until_failure = -1}, *scratch = &scratch_of_file;

enum { LINE = 64 }; /* bytes that a cache line has; every allocation starts with one, which holds its size */

/* Memory from a cache line's start, to be given back to free_scratch, or NULL. Needs no lock of Python. */
static inline void *new_scratch(size_t bytes) {
    if (atomic_load(&scratch->until_failure) >= 0 && atomic_fetch_sub(&scratch->until_failure, 1) == 0) return NULL;
    void *start;
    if (bytes > SIZE_MAX / 2 || posix_memalign(&start, LINE, LINE + bytes)) return NULL; /* not a byte more */
    *(size_t *)start = bytes;
    long long now = atomic_fetch_add(&scratch->bytes, (long long)bytes) + (long long)bytes;
    long long peak = atomic_load(&scratch->peak);
    while (peak < now && !atomic_compare_exchange_weak(&scratch->peak, &peak, now)) continue;
    return (char *)start + LINE;
}

/* Gives back what new_scratch gave; nothing for NULL. */
static inline void free_scratch(void *at) {
    if (!at) return;
    char *start = (char *)at - LINE;
    atomic_fetch_sub(&scratch->bytes, (long long)*(size_t *)start);
    free(start);
}

#define SCRATCH_NAME "lora_train scratch"

/* The counter, for `share_scratch` of the other files. */
static PyObject *py_scratch(PyObject *self, PyObject *args) {
    (void)self, (void)args;
    return PyCapsule_New(scratch, SCRATCH_NAME, NULL);
}

/* share_scratch(counter): counts there from now on. */
static PyObject *py_share_scratch(PyObject *self, PyObject *capsule) {
    (void)self;
    Scratch *shared = PyCapsule_GetPointer(capsule, SCRATCH_NAME);
    if (!shared) return NULL;
    scratch = shared;
    Py_RETURN_NONE;
}

/* (bytes now, most bytes at once since the last reset_peak) */
static PyObject *py_scratch_bytes(PyObject *self, PyObject *args) {
    (void)self, (void)args;
    return Py_BuildValue("LL", atomic_load(&scratch->bytes), atomic_load(&scratch->peak));
}

static PyObject *py_reset_peak(PyObject *self, PyObject *args) {
    (void)self, (void)args;
    atomic_store(&scratch->peak, atomic_load(&scratch->bytes));
    Py_RETURN_NONE;
}

/* fail_after(n): the allocation after the next n fails, once; none if n < 0. For tests. */
static PyObject *py_fail_after(PyObject *self, PyObject *number) {
    (void)self;
    long long n = PyLong_AsLongLong(number);
    if (PyErr_Occurred()) return NULL;
    atomic_store(&scratch->until_failure, n);
    Py_RETURN_NONE;
}

static PyMethodDef common_methods[] = {
    {"best_level", py_best_level, METH_NOARGS, "What this chip has; see common.h."},
    {"use_level", py_use_level, METH_O, "Which loops run; see common.h."},
    {"scratch", py_scratch, METH_NOARGS, "The counter of scratch memory."},
    {"share_scratch", py_share_scratch, METH_O, "Counts scratch memory there."},
    {"scratch_bytes", py_scratch_bytes, METH_NOARGS, "Bytes of scratch memory, now and at most."},
    {"reset_peak", py_reset_peak, METH_NOARGS, "Begins anew to look for the most bytes."},
    {"fail_after", py_fail_after, METH_O, "Lets an allocation fail, for tests."},
    {NULL, NULL, 0, NULL},
};

/* What decides how much scratch memory a call takes, as attributes of the module. */
typedef struct {
    const char *name;
    long value;
} Constant;

#define CONSTANT(name) {#name, (long)(name)}

static PyObject *new_module(struct PyModuleDef *definition, const Constant *constants) {
    PyObject *dlpack = PyImport_ImportModule("torch.utils.dlpack");
    to_dlpack = dlpack ? PyObject_GetAttrString(dlpack, "to_dlpack") : NULL;
    Py_XDECREF(dlpack);
    if (!to_dlpack) return PyErr_Format(PyExc_ImportError, "this torch has no torch.utils.dlpack.to_dlpack");
    PyObject *module = PyModule_Create(definition);
    if (!module) return NULL;
    int failed = PyModule_AddFunctions(module, common_methods);
    for (; !failed && constants->name; constants++)
        failed = PyModule_AddIntConstant(module, constants->name, constants->value);
    if (failed) Py_CLEAR(module);
    return module;
}

/* The module _`file` with the tables `methods` and `constants`. */
#define MODULE(file, about)                                                                    \
    static struct PyModuleDef definition = {                                                   \
        PyModuleDef_HEAD_INIT, "_" #file, about, -1, methods, NULL, NULL, NULL, NULL};         \
    PyMODINIT_FUNC PyInit__##file(void) { return new_module(&definition, constants); }

#endif
