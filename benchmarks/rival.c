/* The scheme of dgdlb_jax written by hand, for bench_rivals.py: DGD-LB or least latency, hyperbolic curves, the same statistics.

   cc -O3 -march=native -ffast-math -fopenmp -shared -fPIC -DREAL=float rival.c -o rival.so

   `scalar` is the obvious loop, topologies over threads. `packed` puts LANES topologies side by side in vector registers. With -DLEAN=1
   both keep workloads only. */
#include <stdlib.h>
#include <string.h>

#ifndef REAL
#define REAL float
#endif
#define LANES (64 / (int)sizeof(REAL))
#define MAX_BACKENDS 64
#ifndef LEAN
#define LEAN 0
#endif

typedef REAL real;

/* Results, topology by topology: `sent` per arc, `rise` per half of the run and backend, the others per backend. The time integrals are
   plain sums, to be multiplied by dt / 2; dgdlb_jax keeps what rounding takes away from them in single precision. */
typedef struct { real *workload, *sent, *held, *low, *high, *rise; } results;

/* Nearest point of the simplex, in place: Newton's method over supports, started from the last one. */
static void project(real *y, const real *x, int B) {
    real sum = 0, count = 0;
    for (int j = 0; j < B; j++) { sum += x[j] > 0 ? y[j] : 0; count += x[j] > 0; }
    real nu = (sum - 1) / count, last;
    do {
        last = nu, sum = 0, count = 0;
        for (int j = 0; j < B; j++) { sum += y[j] > nu ? y[j] : 0; count += y[j] > nu; }
        nu = (sum - 1) / count;
    } while (nu > last);
    for (int j = 0; j < B; j++) y[j] = y[j] > nu ? y[j] - nu : 0;
}

static void one(int F, int B, int rows, long steps, int greedy, real dt, real eta, const real *rate, const real *delay,
                const real *mu, const real *kappa, results to) {
    const int A = F * B;
    real *flows = malloc(sizeof(real) * rows * A), *works = malloc(sizeof(real) * rows * B);
    real *x = malloc(sizeof(real) * A * 6), *f = x + A, *v = x + 2 * A, *reading = x + 3 * A, *frac = x + 4 * A, *sent = x + 5 * A;
    int *lag = malloc(sizeof(int) * A);
    real N[MAX_BACKENDS], in[MAX_BACKENDS], slope[MAX_BACKENDS], guess[MAX_BACKENDS], y[MAX_BACKENDS];
    real low[MAX_BACKENDS], high[MAX_BACKENDS], held[MAX_BACKENDS] = {0}, rise[2 * MAX_BACKENDS] = {0};
    for (int j = 0; j < B; j++) in[j] = 0, N[j] = low[j] = high[j] = 1;
    for (int i = 0; i < F; i++)
        for (int j = 0; j < B; j++) {
            const int a = i * B + j;
            lag[a] = (int)delay[a], frac[a] = delay[a] - lag[a];
            x[a] = (real)1 / B, f[a] = rate[i] * x[a], in[j] += f[a], reading[a] = 1, sent[a] = 0;
            v[a] = -eta * ((kappa[j] + 1) * (kappa[j] + 1) / (mu[j] * kappa[j]) + delay[a] * dt);
        }
    for (int r = 0; r < rows; r++) memcpy(flows + r * A, f, sizeof(real) * A);
    for (int n = 0; n < rows * B; n++) works[n] = 1;
    int now = 0;
    for (long k = 0; k < steps; k++) {
        const int next = now + 1 == rows ? 0 : now + 1;
        for (int j = 0; j < B; j++) {
            slope[j] = in[j] - mu[j] * N[j] / (kappa[j] + N[j]), guess[j] = N[j] + dt * slope[j];
            works[now * B + j] = N[j], works[next * B + j] = guess[j], in[j] = 0;
        }
        for (int i = 0; i < F; i++) {
            real best = (real)1e30, ties = 0;
            for (int j = 0; j < B; j++) {
                const int a = i * B + j, at = next - lag[a];
                const real w = works[(at < 0 ? at + rows : at) * B + j], seen = w + frac[a] * (reading[a] - w);
                reading[a] = w;
                if (greedy) {
                    y[j] = delay[a] * dt + (kappa[j] + seen) / mu[j], best = y[j] < best ? y[j] : best;
                } else {
                    const real u = -eta * ((kappa[j] + seen) * (kappa[j] + seen) / (mu[j] * kappa[j]) + delay[a] * dt);
                    y[j] = x[a] + dt / 2 * (v[a] + u), v[a] = u;
                }
            }
            if (greedy) {
                for (int j = 0; j < B; j++) y[j] = y[j] <= best, ties += y[j];
                for (int j = 0; j < B; j++) y[j] /= ties;
            } else
                project(y, x + i * B, B);
            for (int j = 0; j < B; j++) {
                const int a = i * B + j;
                const real flow = rate[i] * y[j];
                flows[next * A + a] = flow + frac[a] * (f[a] - flow);
                if (!LEAN) sent[a] += f[a] + flow;
                x[a] = y[j], f[a] = flow;
            }
        }
        for (int i = 0; i < F; i++)
            for (int j = 0; j < B; j++) {
                const int a = i * B + j, at = next - lag[a];
                in[j] += flows[(at < 0 ? at + rows : at) * A + a];
            }
        const long middle = steps / 2, late = k >= middle, last = late ? steps - middle : middle;
        const real lever = k - (late ? middle : 0) + (1 - last) / (real)2;
        for (int j = 0; j < B; j++) {
            const real before = N[j];
            N[j] += dt / 2 * (slope[j] + in[j] - mu[j] * guess[j] / (kappa[j] + guess[j]));
            if (!LEAN) held[j] += before + N[j], rise[late * B + j] += lever * (before + N[j]), low[j] = N[j] < low[j] ? N[j] : low[j], high[j] = N[j] > high[j] ? N[j] : high[j];
        }
        now = next;
    }
    memcpy(to.workload, N, sizeof(real) * B), memcpy(to.sent, sent, sizeof(real) * A), memcpy(to.held, held, sizeof(real) * B);
    memcpy(to.low, low, sizeof(real) * B), memcpy(to.high, high, sizeof(real) * B), memcpy(to.rise, rise, sizeof(real) * 2 * B);
    free(flows), free(works), free(x), free(lag);
}

void scalar(int S, int F, int B, int rows, long steps, int greedy, double dt, double eta, const real *rate, const real *delay,
            const real *mu, const real *kappa, real *workload, real *sent, real *held, real *low, real *high, real *rise) {
#pragma omp parallel for schedule(static)
    for (int s = 0; s < S; s++)
        one(F, B, rows, steps, greedy, dt, eta, rate + s * F, delay + s * F * B, mu + s * B, kappa + s * B,
            (results){workload + s * B, sent + s * F * B, held + s * B, low + s * B, high + s * B, rise + s * 2 * B});
}

/* The same for LANES topologies at once, the lane as the fastest axis of everything. */
typedef struct { real l[LANES]; } lanes;
#define EACH for (int l = 0; l < LANES; l++)

static void many(int F, int B, int rows, long steps, int greedy, real dt, real eta, const real *rate_, const real *delay_,
                 const real *mu_, const real *kappa_, results to) {
    const int A = F * B;
    lanes *flows = aligned_alloc(64, sizeof(lanes) * rows * A), *works = aligned_alloc(64, sizeof(lanes) * rows * B);
    lanes *x = aligned_alloc(64, sizeof(lanes) * A * 8), *f = x + A, *v = x + 2 * A, *reading = x + 3 * A, *frac = x + 4 * A,
          *tau = x + 5 * A, *steep = x + 6 * A, *sent = x + 7 * A;
    int(*lag)[LANES] = aligned_alloc(64, sizeof(int) * A * LANES);
    static const real zero = 0;
    lanes rate[MAX_BACKENDS], mu[MAX_BACKENDS], kappa[MAX_BACKENDS], N[MAX_BACKENDS], in[MAX_BACKENDS], slope[MAX_BACKENDS];
    lanes guess[MAX_BACKENDS], y[MAX_BACKENDS], low[MAX_BACKENDS], high[MAX_BACKENDS], held[MAX_BACKENDS], rise[2 * MAX_BACKENDS];
    for (int i = 0; i < F; i++) EACH rate[i].l[l] = rate_[l * F + i];
    for (int j = 0; j < B; j++) EACH {
        mu[j].l[l] = mu_[l * B + j], kappa[j].l[l] = kappa_[l * B + j];
        in[j].l[l] = held[j].l[l] = rise[j].l[l] = rise[B + j].l[l] = zero, N[j].l[l] = low[j].l[l] = high[j].l[l] = 1;
    }
    for (int i = 0; i < F; i++)
        for (int j = 0; j < B; j++) EACH {
            const int a = i * B + j;
            const real d = delay_[l * A + a];
            lag[a][l] = (int)d, frac[a].l[l] = d - lag[a][l], tau[a].l[l] = d * dt;
            steep[a].l[l] = 1 / (mu[j].l[l] * kappa[j].l[l]);
            x[a].l[l] = (real)1 / B, f[a].l[l] = rate[i].l[l] * x[a].l[l], in[j].l[l] += f[a].l[l], reading[a].l[l] = 1, sent[a].l[l] = 0;
            v[a].l[l] = -eta * ((kappa[j].l[l] + 1) * (kappa[j].l[l] + 1) * steep[a].l[l] + tau[a].l[l]);
        }
    for (int r = 0; r < rows; r++) memcpy(flows + r * A, f, sizeof(lanes) * A);
    for (int n = 0; n < rows * B; n++) EACH works[n].l[l] = 1;
    int now = 0;
    for (long k = 0; k < steps; k++) {
        const int next = now + 1 == rows ? 0 : now + 1;
        for (int j = 0; j < B; j++) EACH {
            slope[j].l[l] = in[j].l[l] - mu[j].l[l] * N[j].l[l] / (kappa[j].l[l] + N[j].l[l]);
            guess[j].l[l] = N[j].l[l] + dt * slope[j].l[l];
            works[now * B + j].l[l] = N[j].l[l], works[next * B + j].l[l] = guess[j].l[l], in[j].l[l] = 0;
        }
        for (int i = 0; i < F; i++) {
            lanes sum, count, nu;
            EACH sum.l[l] = count.l[l] = 0, nu.l[l] = (real)1e30;
            for (int j = 0; j < B; j++) {
                const int a = i * B + j;
                EACH {
                    int at = next - lag[a][l];
                    at = at < 0 ? at + rows : at;
                    const real w = works[at * B + j].l[l], seen = w + frac[a].l[l] * (reading[a].l[l] - w);
                    reading[a].l[l] = w;
                    if (greedy) {
                        y[j].l[l] = tau[a].l[l] + (kappa[j].l[l] + seen) / mu[j].l[l];
                        nu.l[l] = y[j].l[l] < nu.l[l] ? y[j].l[l] : nu.l[l];
                    } else {
                        const real u = -eta * ((kappa[j].l[l] + seen) * (kappa[j].l[l] + seen) * steep[a].l[l] + tau[a].l[l]);
                        y[j].l[l] = x[a].l[l] + dt / 2 * (v[a].l[l] + u), v[a].l[l] = u;
                        sum.l[l] += x[a].l[l] > 0 ? y[j].l[l] : 0, count.l[l] += x[a].l[l] > 0;
                    }
                }
            }
            if (greedy) {
                for (int j = 0; j < B; j++) EACH y[j].l[l] = y[j].l[l] <= nu.l[l], count.l[l] += y[j].l[l];
                for (int j = 0; j < B; j++) EACH y[j].l[l] /= count.l[l];
            } else {
                int rising;
                EACH nu.l[l] = (sum.l[l] - 1) / count.l[l];
                do {
                    rising = 0;
                    EACH sum.l[l] = count.l[l] = 0;
                    for (int j = 0; j < B; j++) EACH {
                        const int on = y[j].l[l] > nu.l[l];
                        sum.l[l] += on ? y[j].l[l] : 0, count.l[l] += on;
                    }
                    EACH {
                        const real better = (sum.l[l] - 1) / count.l[l];
                        rising |= better > nu.l[l], nu.l[l] = better;
                    }
                } while (rising);
                for (int j = 0; j < B; j++) EACH y[j].l[l] = y[j].l[l] > nu.l[l] ? y[j].l[l] - nu.l[l] : 0;
            }
            for (int j = 0; j < B; j++) {
                const int a = i * B + j;
                EACH {
                    const real flow = rate[i].l[l] * y[j].l[l];
                    flows[next * A + a].l[l] = flow + frac[a].l[l] * (f[a].l[l] - flow);
                    if (!LEAN) sent[a].l[l] += f[a].l[l] + flow;
                    x[a].l[l] = y[j].l[l], f[a].l[l] = flow;
                }
            }
        }
        for (int i = 0; i < F; i++)
            for (int j = 0; j < B; j++) {
                const int a = i * B + j;
                EACH {
                    int at = next - lag[a][l];
                    at = at < 0 ? at + rows : at;
                    in[j].l[l] += flows[at * A + a].l[l];
                }
            }
        const long middle = steps / 2, late = k >= middle, last = late ? steps - middle : middle;
        const real lever = k - (late ? middle : 0) + (1 - last) / (real)2;
        for (int j = 0; j < B; j++) EACH {
            const real before = N[j].l[l];
            N[j].l[l] += dt / 2 * (slope[j].l[l] + in[j].l[l] - mu[j].l[l] * guess[j].l[l] / (kappa[j].l[l] + guess[j].l[l]));
            if (LEAN) continue;
            held[j].l[l] += before + N[j].l[l], rise[late * B + j].l[l] += lever * (before + N[j].l[l]);
            low[j].l[l] = N[j].l[l] < low[j].l[l] ? N[j].l[l] : low[j].l[l];
            high[j].l[l] = N[j].l[l] > high[j].l[l] ? N[j].l[l] : high[j].l[l];
        }
        now = next;
    }
    EACH {
        for (int a = 0; a < A; a++) to.sent[l * A + a] = sent[a].l[l];
        for (int j = 0; j < B; j++) {
            to.workload[l * B + j] = N[j].l[l], to.held[l * B + j] = held[j].l[l];
            to.low[l * B + j] = low[j].l[l], to.high[l * B + j] = high[j].l[l];
            to.rise[l * 2 * B + j] = rise[j].l[l], to.rise[(l * 2 + 1) * B + j] = rise[B + j].l[l];
        }
    }
    free(flows), free(works), free(x), free(lag);
}

/* S has to be a multiple of LANES. */
void packed(int S, int F, int B, int rows, long steps, int greedy, double dt, double eta, const real *rate, const real *delay,
            const real *mu, const real *kappa, real *workload, real *sent, real *held, real *low, real *high, real *rise) {
#pragma omp parallel for schedule(static)
    for (int s = 0; s < S; s += LANES)
        many(F, B, rows, steps, greedy, dt, eta, rate + s * F, delay + s * F * B, mu + s * B, kappa + s * B,
             (results){workload + s * B, sent + s * F * B, held + s * B, low + s * B, high + s * B, rise + s * 2 * B});
}
