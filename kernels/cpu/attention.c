/* Causal attention on the CPU, forward and backward: kernels/attention/causal.py says what is computed.

   A share is a row of the batch and a head of K and V. Its keys and values are made dense and fp32 once, also
   transposed, so that every product is one of broadcast factors with dense rows; scores live for a block of queries
   only. Heads of Q that share a head of K and V are computed beside each other, and nothing is repeated for them. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "halves.h"
#include "threads.h"

enum { BLOCK = 32 }; /* queries whose scores are held, a multiple of every ROWS and LANES */

typedef struct {
    void *values;
    int64_t strides[3]; /* of row of the batch, head and position; a head's values are dense */
} Heads;

typedef struct Job {
    int dtype, is_backward;
    int64_t n_batch, n_heads, n_kv_heads, rows, cols;
    float scale, *lse;
    Heads q, k, v, out, dout, dq, dk, dv;
    void (*walk)(const struct Job *, int64_t, int64_t, float *);
} Job;

static int64_t padded_rows(const Job *job) { return (job->rows + BLOCK - 1) / BLOCK * BLOCK; }

#define LANES 4
#define TARGET
#define NAMED(name) name##_portable
#define LOAD halves_to_floats
#define STORE floats_to_halves
#include "attention_tiles.h"
#undef LANES
#undef TARGET
#undef NAMED
#undef LOAD
#undef STORE

#ifdef HAS_AVX2_VARIANT
#define LOAD halves_to_floats_avx2
#define STORE floats_to_halves_avx2

#define LANES 8
#define TARGET AVX2
#define NAMED(name) name##_avx2
#include "attention_tiles.h"
#undef LANES
#undef TARGET
#undef NAMED

#define LANES 16
#define TARGET AVX512
#define NAMED(name) name##_avx512
#include "attention_tiles.h"
#endif

/* K, V, each also transposed, dK and dV; scores and their gradients; Q, O, dO and dQ of a block. */
static size_t space_bytes(const Job *job) {
    int64_t padded = padded_rows(job);
    return sizeof(float) * (size_t)(6 * padded * job->cols + 2 * BLOCK * padded + 4 * BLOCK * job->cols);
}

static void share(void *argument, int64_t number, void *space) {
    const Job *job = argument;
    job->walk(job, number / job->n_kv_heads, number % job->n_kv_heads, space);
}

typedef unsigned long long Address;

static void *pointer(Address address) { return (void *)(uintptr_t)address; }

/* attention(dtype, (batch, heads, kv_heads, rows, cols), scale, lse, tensors, is_backward, n_threads):
   `tensors` are q, k, v, out and in a backward pass dout, dq, dk, dv, each (address, stride, stride, stride). */
static PyObject *py_attention(PyObject *self, PyObject *args) {
    (void)self;
    Job job = {0};
    PyObject *tensors;
    Address lse;
    long long batch, heads, kv_heads, rows, cols;
    int n_threads;
    if (!PyArg_ParseTuple(args, "i(LLLLL)fKO!pi", &job.dtype, &batch, &heads, &kv_heads, &rows, &cols, &job.scale,
                          &lse, &PyTuple_Type, &tensors, &job.is_backward, &n_threads))
        return NULL;
    Heads *places[] = {&job.q, &job.k, &job.v, &job.out, &job.dout, &job.dq, &job.dk, &job.dv};
    for (Py_ssize_t i = 0; i < (job.is_backward ? 8 : 4); i++) {
        Address values;
        long long strides[3];
        PyObject *tensor = PyTuple_GetItem(tensors, i);
        if (!tensor || !PyArg_ParseTuple(tensor, "KLLL", &values, &strides[0], &strides[1], &strides[2])) return NULL;
        places[i]->values = pointer(values);
        for (int d = 0; d < 3; d++) places[i]->strides[d] = strides[d];
    }
    job.n_batch = batch, job.n_heads = heads, job.n_kv_heads = kv_heads, job.rows = rows, job.cols = cols;
    job.lse = pointer(lse);
    job.walk = AT_LEVEL(walk);
    int done;
    Py_BEGIN_ALLOW_THREADS
    done = run_shares(share, &job, batch * kv_heads, n_threads, space_bytes(&job));
    Py_END_ALLOW_THREADS
    if (!done) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"attention", py_attention, METH_VARARGS, "See attention/causal.py."},
    {NULL, NULL, 0, NULL},
};

static const Constant constants[] = {CONSTANT(BLOCK), CONSTANT(MAX_THREADS), {NULL, 0}};

MODULE(attention, "Causal attention.")
