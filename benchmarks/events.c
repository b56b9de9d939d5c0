/* Requests one by one, exactly, for bench_requests.py: Poisson arrivals, a fixed routing, hyperbolic backends at rate mu N / (kappa + N).

   cc -O3 -march=native -ffast-math -shared -fPIC events.c -o events.so -lm

   Times of the wires are in a heap; the next departure is drawn anew after every event, since an exponential time forgets. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct { double time; int backend; } arrival;
typedef struct { arrival *of; long count, room; } heap;

static void push(heap *wires, arrival new) {
    if (wires->count == wires->room) wires->of = realloc(wires->of, sizeof(arrival) * (wires->room *= 2));
    long at = wires->count++;
    for (long up; at > 0 && wires->of[up = (at - 1) / 2].time > new.time; at = up) wires->of[at] = wires->of[up];
    wires->of[at] = new;
}

static arrival pop(heap *wires) {
    arrival first = wires->of[0], last = wires->of[--wires->count];
    long at = 0;
    for (long down; (down = 2 * at + 1) < wires->count; at = down) {
        if (down + 1 < wires->count && wires->of[down + 1].time < wires->of[down].time) down++;
        if (wires->of[down].time >= last.time) break;
        wires->of[at] = wires->of[down];
    }
    wires->of[at] = last;
    return first;
}

static double uniform(uint64_t *s) { /* xorshift64*, in (0, 1) */
    *s ^= *s >> 12, *s ^= *s << 25, *s ^= *s >> 27;
    return ((*s * 2685821657736338717ull >> 11) + 0.5) * 0x1p-53;
}

/* From `after` on: mean workload of every backend; returns how many requests were sent in all. `shares` are summed up along backends. */
long events(int F, int B, double duration, double after, uint64_t seed, const double *rate, const double *shares, const double *latency,
            const double *mu, const double *kappa, double *workload) {
    heap wires = {malloc(sizeof(arrival) * 1024), 0, 1024};
    double *N = calloc(3 * B, sizeof(double)), *serves = N + B, *since = N + 2 * B, total = 0, sum = 0, t = 0;
    double *upto = malloc(sizeof(double) * F);
    long sent = 0;
    for (int i = 0; i < F; i++) upto[i] = sum += rate[i];
    for (int j = 0; j < B; j++) workload[j] = 0, since[j] = after;
    for (int i = 0; i < F; i++) { /* backends begin empty, wires as if frontends had always sent */
        for (int j = 0; j < B; j++) {
            double here = rate[i] * (shares[i * B + j] - (j ? shares[i * B + j - 1] : 0));
            for (double at = 0; here > 0 && (at -= log(uniform(&seed)) / here) < latency[i * B + j];) push(&wires, (arrival){at, j});
        }
    }
    double next = -log(uniform(&seed)) / sum;
    for (;;) {
        double arrives = wires.count ? wires.of[0].time : INFINITY;
        double leaves = total > 1e-12 ? t - log(uniform(&seed)) / total : INFINITY;
        t = fmin(next, fmin(arrives, leaves));
        if (t >= duration) break;
        int j = 0, change = 0;
        if (t == next) {
            double u = uniform(&seed) * sum;
            int i = 0;
            while (i < F - 1 && u > upto[i]) i++;
            u = uniform(&seed);
            while (j < B - 1 && u > shares[i * B + j]) j++;
            push(&wires, (arrival){t + latency[i * B + j], j});
            next = t - log(uniform(&seed)) / sum, sent++;
            continue;
        } else if (t == arrives) {
            j = pop(&wires).backend, change = 1;
        } else {
            double u = uniform(&seed) * total;
            while (j < B - 1 && (u -= serves[j]) > 0) j++;
            if (N[j] < 1) continue; /* by rounding of the total */
            change = -1;
        }
        if (t > after) workload[j] += N[j] * (t - since[j]), since[j] = t;
        N[j] += change, total -= serves[j], serves[j] = mu[j] * N[j] / (kappa[j] + N[j]), total += serves[j];
    }
    for (int j = 0; j < B; j++) workload[j] = (workload[j] + N[j] * (duration - since[j])) / (duration - after);
    free(wires.of), free(N), free(upto);
    return sent;
}
