/* Causal attention on the CPU, forward and backward: kernels/attention/causal.py says what is computed.

   A share is a row of the batch and a head of K and V. Its keys and values are made dense and fp32 once, also
   transposed, so that every product is one of broadcast factors with dense rows; scores live for a block of queries
   only. Heads of Q that share a head of K and V are computed beside each other, and nothing is repeated for them. */

#include "common.h" /* first: it asks the system for more than C11 */

#include <math.h>
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

/* attention((q, k, v, out, lse), scale, (), n_threads), or a backward pass with (dout, dq, dk, dv): q, out and their
   gradients [B, heads, S, D], those of k and v [B, kv_heads, S, D], of one dtype and dense in D; lse fp32 [B, heads, S],
   dense. */
static PyObject *py_attention(PyObject *self, PyObject *args) {
    (void)self;
    static const char *const names[] = {"query", "key", "value", "out", "dout", "dquery", "dkey", "dvalue"};
    Job job = {0};
    PyObject *objects[8], *lse_object, *gradients;
    Tensor q, other, lse;
    int n_threads;
    if (!PyArg_ParseTuple(args, "(OOOOO)fO!i", &objects[0], &objects[1], &objects[2], &objects[3], &lse_object,
                          &job.scale, &PyTuple_Type, &gradients, &n_threads))
        return NULL;
    job.is_backward = PyTuple_GET_SIZE(gradients) > 0;
    if (job.is_backward &&
        !PyArg_ParseTuple(gradients, "OOOO", &objects[4], &objects[5], &objects[6], &objects[7]))
        return NULL;
    if (!take(objects[0], "query", &q, ANY_DTYPE, 1, SHAPE(ANY_SIZE, ANY_SIZE, ANY_SIZE, ANY_SIZE)) ||
        !take(lse_object, "lse", &lse, FP32, 3, SHAPE(q.sizes[0], q.sizes[1], q.sizes[2])))
        return NULL;
    job.dtype = q.dtype, job.lse = lse.at;
    job.n_batch = q.sizes[0], job.n_heads = q.sizes[1], job.rows = q.sizes[2], job.cols = q.sizes[3];
    Heads *places[] = {&job.q, &job.k, &job.v, &job.out, &job.dout, &job.dq, &job.dk, &job.dv};
    for (int i = 0; i < (job.is_backward ? 8 : 4); i++) {
        int of_kv = i == 1 || i == 2 || i >= 6;
        int64_t n_heads = i == 1 ? ANY_SIZE : of_kv ? job.n_kv_heads : job.n_heads;
        if (!take(objects[i], names[i], &other, job.dtype, 1, SHAPE(job.n_batch, n_heads, job.rows, job.cols)))
            return NULL;
        if (i == 1) job.n_kv_heads = other.sizes[1];
        places[i]->values = other.at;
        memcpy(places[i]->strides, other.strides, sizeof places[i]->strides);
    }
    if (job.cols % 16 || !job.n_kv_heads || job.n_heads % job.n_kv_heads)
        return PyErr_Format(PyExc_ValueError, "%lld heads of %lld values do not fit %lld of key and value",
                            (long long)job.n_heads, (long long)job.cols, (long long)job.n_kv_heads);
    job.walk = AT_LEVEL(walk);
    int done;
    Py_BEGIN_ALLOW_THREADS
    done = run_shares(share, &job, job.n_batch * job.n_kv_heads, n_threads, space_bytes(&job));
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
