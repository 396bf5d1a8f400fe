/* Threads which go through the steps of a forward pass together. A step takes microseconds, so they wait for each
   other by spinning; but only for a bounded time, because whoever is awaited may not be running at all on a machine
   with more threads than processors. Then they sleep until they are woken. */
#ifndef EDGEKERNELS_DECODE_TEAM_H
#define EDGEKERNELS_DECODE_TEAM_H

#include <stdatomic.h>

#if defined(__linux__)
#include <linux/futex.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <sched.h>
#endif

#define EK_SPINS 3000 /* some 30 us */

typedef struct {
    _Alignas(64) atomic_uint arrived;
    _Alignas(64) atomic_uint round;
    atomic_uint sleepers;
    unsigned size;
} ek_team;

static inline void ek_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* `yield` does nothing on most cores */
#endif
}

static void ek_sleep(ek_team *team, unsigned round)
{
#if defined(__linux__)
    syscall(SYS_futex, &team->round, FUTEX_WAIT_PRIVATE, round, NULL, NULL, 0);
#else
    (void)team, (void)round;
    sched_yield();
#endif
}

static void ek_wake(ek_team *team)
{
#if defined(__linux__)
    syscall(SYS_futex, &team->round, FUTEX_WAKE_PRIVATE, team->size, NULL, NULL, 0);
#else
    (void)team;
#endif
}

/* Wait until all threads of the team are here; what each wrote before, all may read afterwards. */
static void ek_meet(ek_team *team)
{
    if (team->size == 1)
        return;
    unsigned round = atomic_load_explicit(&team->round, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) + 1 == team->size) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        atomic_store(&team->round, round + 1); /* in one order with `sleepers`: nobody sleeps unseen */
        if (atomic_load(&team->sleepers))
            ek_wake(team);
        return;
    }
    for (int i = 0; i < EK_SPINS; i++) {
        if (atomic_load_explicit(&team->round, memory_order_acquire) != round)
            return;
        ek_pause();
    }
    atomic_fetch_add(&team->sleepers, 1);
    while (atomic_load(&team->round) == round)
        ek_sleep(team, round);
    atomic_fetch_sub(&team->sleepers, 1);
}

#endif
