/* Shares of one job, each computed once, by the threads that torch has: its OpenMP runtime is asked for them where it
   is GNU's, because threads of our own would compete with those, which spin for a while after every operation of torch.
   Elsewhere threads live for one call. A share's number says all about it, so the bits do not depend on who computes
   it. */

#ifndef LORA_TRAIN_THREADS_H
#define LORA_TRAIN_THREADS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* RTLD_DEFAULT */
#endif
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

enum { MAX_THREADS = 64 };

typedef struct {
    void (*share)(void *job, int64_t number);
    void *job;
    int64_t n_shares;
    atomic_llong next;
} Shares;

static void take_shares(void *argument) {
    Shares *shares = argument;
    for (;;) {
        int64_t number = (int64_t)atomic_fetch_add(&shares->next, 1);
        if (number >= shares->n_shares) return;
        shares->share(shares->job, number);
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

static void run_shares(void (*share)(void *, int64_t), void *job, int64_t n_shares, int n_threads) {
    Shares shares = {.share = share, .job = job, .n_shares = n_shares};
    if (n_threads > n_shares) n_threads = (int)n_shares;
    if (n_threads > MAX_THREADS) n_threads = MAX_THREADS;
    if (n_threads <= 1) {
        take_shares(&shares);
        return;
    }
    GompParallel *parallel = gomp_parallel();
    if (parallel) {
        parallel(take_shares, &shares, (unsigned)n_threads, 0);
        return;
    }
    pthread_t threads[MAX_THREADS];
    int n_started = 0;
    while (n_started < n_threads - 1 && !pthread_create(&threads[n_started], NULL, take_shares_in_thread, &shares))
        n_started++;
    take_shares(&shares);
    for (int t = 0; t < n_started; t++) pthread_join(threads[t], NULL);
}

#endif
