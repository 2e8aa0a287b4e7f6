/* Operations and how long they took: as many as there may be, for the price of a counter each. */
#pragma once
#include "load.h"

#define BUCKETS 64 /* for each power of two: 1.6 % exact */

static uint64_t ops, latencies[BUCKETS * 60];

static inline void took(uint64_t time)
{
    int shift = time < BUCKETS ? 0 : 57 - __builtin_clzll(time);

    latencies[time < BUCKETS ? time : shift * BUCKETS + (time >> shift)]++;
    ops++;
}

/* What was is not measured: a run begins. */
static inline void forget(void)
{
    ops = 0;
    memset(latencies, 0, sizeof latencies);
}

/* The latency in microseconds that `share` of all operations did not exceed. */
static inline double percentile(double share)
{
    uint64_t seen = 0;

    for (uint64_t i = 0; i < sizeof latencies / sizeof *latencies; i++) {
        seen += latencies[i];
        if (seen && seen >= share * ops) {
            int shift = i < 2 * BUCKETS ? 0 : i / BUCKETS - 1;

            return (((i - (uint64_t)shift * BUCKETS) << shift) + (1ull << shift) / 2) / 1e3;
        }
    }
    return 0;
}

/* The line of JSON about what was measured since `began`, when `spent` seconds of CPU were gone. */
static inline void tell(uint64_t began, double spent)
{
    printf("{\"ops\": %llu, \"seconds\": %.6f, \"p50_us\": %.2f, \"p99_us\": %.2f, "
           "\"wrong\": %llu, \"cpu\": %.6f}\n",
           (unsigned long long)ops, (now() - began) / 1e9, percentile(.5), percentile(.99),
           (unsigned long long)wrong, cpu() - spent);
}
