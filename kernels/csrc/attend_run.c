/* One call of paged attention: the check of its arrays, and the threads which share its jobs. */
#if defined(__linux__)
#define _GNU_SOURCE
#endif
#include <string.h>

#if defined(_OPENMP)
#include <dlfcn.h>
#endif

#include "attend_jobs.h"

#define WORTH 200000 /* cost from which on a second thread is worth waking */
#define ALIGNED 64

ek_soundness ek_check_paged(const ek_paged *what, int64_t tokens, int64_t pages, int64_t table)
{
    int64_t n = what->spans;
    if (what->token_starts[0] != 0 || what->token_starts[n] != tokens || what->page_starts[0] != 0 ||
        what->page_starts[n] != table)
        return EK_UNSOUND;
    for (int64_t s = 0; s < n; s++) {
        int64_t count = what->token_starts[s + 1] - what->token_starts[s];
        int64_t owned = what->page_starts[s + 1] - what->page_starts[s];
        if (count < 0 || owned < 0 || what->past[s] < 0 || what->past[s] > owned * what->page_tokens - count)
            return EK_UNSOUND;
    }
    for (int64_t i = 0; i < table; i++)
        if (what->page_table[i] < 0 || what->page_table[i] >= pages)
            return EK_UNSOUND;
    return EK_SOUND;
}

static void work(void *data)
{
    crew *c = data;
    take_pieces(c, atomic_fetch_add(&c->arrived, 1));
}

#if defined(_OPENMP)
typedef void parallel_function(void (*)(void *), void *, unsigned, unsigned);

/* A process with torch has a pool of threads of torch's own copy of OpenMP as well, and threads which wait spin: two
   pools take the processors from each other. So the work goes to the pool which the process shows to everybody, which
   is torch's, if there is one. GOMP_parallel is what every compiled `#pragma omp parallel` calls. */
static void run_crew(crew *c)
{
    static _Atomic(parallel_function *) shared;
    parallel_function *start = atomic_load_explicit(&shared, memory_order_relaxed);
    if (start == NULL) {
        void *found = dlsym(RTLD_DEFAULT, "GOMP_parallel");
        memcpy(&start, &found, sizeof start);
        atomic_store_explicit(&shared, start, memory_order_relaxed);
    }
    if (start != NULL) {
        start(work, c, (unsigned)c->threads, 0);
        return;
    }
#pragma omp parallel num_threads(c->threads)
    work(c);
}
#else
static void run_crew(crew *c)
{
    work(c);
}
#endif

static int64_t run_jobs(crew *c, int64_t num_jobs)
{
    size_t bytes = (size_t)plan_pieces(c, num_jobs, WORTH) * sizeof(float);
    void *memory = NULL;
    if (posix_memalign(&memory, ALIGNED, bytes))
        return -1;
    give_memory(c, num_jobs, memory);
    if (c->threads > 1)
        run_crew(c);
    else
        work(c);
    free(memory);
    return 0;
}

int ek_attend_all(const ek_attend *level, const ek_paged *what, int threads)
{
    int64_t num_jobs = make_jobs(what, NULL);
    if (num_jobs == 0)
        return 0;
    crew c = {.level = level, .what = what, .threads = threads};
    c.jobs = malloc((size_t)num_jobs * sizeof *c.jobs);
    c.pieces = malloc((size_t)(num_jobs + SHARE * threads + 1) * sizeof *c.pieces);
    int64_t failed = -1;
    if (c.jobs != NULL && c.pieces != NULL) {
        make_jobs(what, c.jobs);
        failed = run_jobs(&c, num_jobs);
    }
    free(c.jobs);
    free(c.pieces);
    return (int)failed;
}
