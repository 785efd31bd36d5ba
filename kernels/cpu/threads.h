/* Shares of one job, each computed once, by the threads that torch has: its OpenMP runtime is asked for them where it
   is GNU's, because threads of our own would compete with those, which spin for a while after every operation of torch.
   Elsewhere threads live for one call. A share's number says all about it, so the bits do not depend on who computes
   it. Memory that a thread needs is there before the first one starts. */

#ifndef LORA_TRAIN_THREADS_H
#define LORA_TRAIN_THREADS_H

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "common.h"

enum { MAX_THREADS = 64 };

typedef void Share(void *job, int64_t number, void *space);

typedef struct {
    Share *share;
    void *job;
    int64_t n_shares;
    char *spaces; /* a thread's after the other's */
    size_t space_bytes;
    atomic_llong next, n_threads;
} Shares;

static void take_shares(void *argument) {
    Shares *shares = argument;
    void *space = NULL;
    if (shares->spaces) space = shares->spaces + shares->space_bytes * (size_t)atomic_fetch_add(&shares->n_threads, 1);
    for (;;) {
        int64_t number = (int64_t)atomic_fetch_add(&shares->next, 1);
        if (number >= shares->n_shares) return;
        shares->share(shares->job, number, space);
    }
}

static void *take_shares_in_thread(void *argument) {
    take_shares(argument);
    return NULL;
}

typedef void GompParallel(void (*)(void *), void *, unsigned, unsigned);

/* GCC's libgomp, if torch has brought it into the process: torch loads its dependencies for all to see. */
static GompParallel *gomp_parallel(void) {
    static void *_Atomic known; /* a search goes through every library that is loaded */
    union {
        void *address;
        GompParallel *function;
    } found = {.address = known};
    if (!found.address) known = found.address = dlsym(RTLD_DEFAULT, "GOMP_parallel");
    return found.function;
}

/* Computes every share, on at most n_threads threads, each with `space_bytes` of memory to itself. 0, and no share was
   computed, if there is not so much memory. */
static int run_shares(Share *share, void *job, int64_t n_shares, int n_threads, size_t space_bytes) {
    Shares shares = {.share = share, .job = job, .n_shares = n_shares};
    if (n_threads > n_shares) n_threads = (int)n_shares;
    if (n_threads > MAX_THREADS) n_threads = MAX_THREADS;
    if (n_threads < 1) n_threads = 1;
    if (n_shares && space_bytes) {
        shares.space_bytes = (space_bytes + LINE - 1) / LINE * LINE;
        shares.spaces = new_scratch((size_t)n_threads * shares.space_bytes);
        if (!shares.spaces) return 0;
    }
    GompParallel *parallel = n_threads > 1 ? gomp_parallel() : NULL;
    if (parallel) {
        parallel(take_shares, &shares, (unsigned)n_threads, 0);
    } else {
        pthread_t threads[MAX_THREADS];
        int n_started = 0;
        while (n_started < n_threads - 1 && !pthread_create(&threads[n_started], NULL, take_shares_in_thread, &shares))
            n_started++;
        take_shares(&shares);
        for (int t = 0; t < n_started; t++) pthread_join(threads[t], NULL);
    }
    free_scratch(shares.spaces);
    return 1;
}

#endif
