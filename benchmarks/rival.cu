/* The scheme of dgdlb_jax as one CUDA kernel written by hand, for bench_device.py: DGD-LB, hyperbolic curves, statistics only.

   nvcc -O3 -arch=native -use_fast_math -shared -Xcompiler -fPIC -DREAL=float rival.cu -o rival-cuda.so

   A block of threads holds one network and goes through all steps: a thread per arc keeps its routing, velocity and flow in registers,
   delay lines are in device memory, what arcs tell each other in shared memory. */
#include <cuda_runtime.h>

#ifndef REAL
#define REAL float
#endif
typedef REAL real;

__global__ void steps_of_one(int F, int B, int rows, long steps, real dt, real eta, const real *rate_, const real *delay_,
                             const real *mu_, const real *kappa_, real *flows_, real *works_, real *workload, real *cost) {
    extern __shared__ unsigned char memory[];
    const int A = F * B, a = threadIdx.x, i = a / B, j = a % B;
    const bool arc = a < A, backend = a < B;
    real *y = (real *)memory, *in = y + A, *total = in + A;
    real *flows = flows_ + (size_t)blockIdx.x * rows * A, *works = works_ + (size_t)blockIdx.x * rows * B;
    const real *mu = mu_ + blockIdx.x * B, *kappa = kappa_ + blockIdx.x * B;
    real rate = 0, tau = 0, frac = 0, x = 0, v = 0, f = 0, reading = 1, steep = 0, half = 0, network = 0;
    int lag = 0;
    if (arc) {
        const real delay = delay_[(size_t)blockIdx.x * A + a];
        rate = rate_[blockIdx.x * F + i], lag = (int)delay, frac = delay - lag, tau = delay * dt;
        half = kappa[j], steep = 1 / (mu[j] * half), x = (real)1 / B, f = rate * x;
        v = -eta * ((half + 1) * (half + 1) * steep + tau);
        for (int r = 0; r < rows; r++) flows[(size_t)r * A + a] = f;
        in[a] = f;
    }
    if (backend) for (int r = 0; r < rows; r++) works[r * B + a] = 1;
    __syncthreads();
    real N = 1, inflow = 0, held = 0, low = 1, high = 1, slope = 0, guess = 0;
    if (backend) for (int k = 0; k < F; k++) inflow += in[k * B + a];
    int now = 0;
    for (long k = 0; k < steps; k++) {
        const int next = now + 1 == rows ? 0 : now + 1;
        if (backend) {
            slope = inflow - mu[a] * N / (kappa[a] + N), guess = N + dt * slope;
            works[now * B + a] = N, works[next * B + a] = guess;
        }
        __syncthreads();
        int at = next - lag;
        at = at < 0 ? at + rows : at;
        real target = 0;
        if (arc) {
            const real w = works[at * B + j], seen = w + frac * (reading - w);
            const real u = -eta * ((half + seen) * (half + seen) * steep + tau);
            reading = w, target = x + dt / 2 * (v + u), v = u;
            y[a] = target;
        }
        __syncthreads();
        if (arc) { /* In the support are those whose distances to all that are larger sum to less than 1. */
            real above = 0;
            for (int m = 0; m < B; m++) above += max(y[i * B + m] - target, (real)0);
            in[a] = above < 1;
        }
        __syncthreads();
        if (arc) {
            real sum = 0, count = 0;
            for (int m = 0; m < B; m++) sum += in[i * B + m] * y[i * B + m], count += in[i * B + m];
            x = max(target - (sum - 1) / count, (real)0);
            const real flow = rate * x;
            flows[(size_t)next * A + a] = flow + frac * (f - flow);
            network += dt / 2 * (f + flow) * tau, f = flow;
        }
        __syncthreads();
        if (arc) in[a] = flows[(size_t)at * A + a];
        __syncthreads();
        if (backend) {
            inflow = 0;
            for (int k = 0; k < F; k++) inflow += in[k * B + a];
            const real before = N;
            N += dt / 2 * (slope + inflow - mu[a] * guess / (kappa[a] + guess));
            held += dt / 2 * (before + N), low = min(low, N), high = max(high, N);
        }
        now = next;
    }
    __syncthreads();
    if (arc) in[a] = network;
    if (backend) total[a] = held, workload[blockIdx.x * B + a] = N;
    __syncthreads();
    if (a == 0) {
        real sum = 0;
        for (int k = 0; k < A; k++) sum += in[k];
        for (int k = 0; k < B; k++) sum += total[k];
        cost[blockIdx.x] = sum;
    }
}

/* Milliseconds of the kernel, copies apart; negative, less the number of the error, when it fails. */
extern "C" double fused(int S, int F, int B, int rows, long steps, double dt, double eta, const real *rate, const real *delay,
                        const real *mu, const real *kappa, real *workload, real *cost) {
    const int A = F * B, threads = (A + 31) / 32 * 32;
    real *inputs[4], *outputs[2], *flows, *works;
    const real *given[4] = {rate, delay, mu, kappa};
    const size_t in[4] = {(size_t)S * F, (size_t)S * A, (size_t)S * B, (size_t)S * B}, out[2] = {(size_t)S * B, (size_t)S};
    for (int n = 0; n < 4; n++) {
        cudaMalloc(&inputs[n], in[n] * sizeof(real));
        cudaMemcpy(inputs[n], given[n], in[n] * sizeof(real), cudaMemcpyHostToDevice);
    }
    for (int n = 0; n < 2; n++) cudaMalloc(&outputs[n], out[n] * sizeof(real));
    cudaMalloc(&flows, (size_t)S * rows * A * sizeof(real)), cudaMalloc(&works, (size_t)S * rows * B * sizeof(real));
    cudaEvent_t begin, end;
    cudaEventCreate(&begin), cudaEventCreate(&end);
    cudaEventRecord(begin);
    steps_of_one<<<S, threads, (2 * A + B) * sizeof(real)>>>(F, B, rows, steps, (real)dt, (real)eta, inputs[0], inputs[1], inputs[2],
                                                             inputs[3], flows, works, outputs[0], outputs[1]);
    cudaEventRecord(end);
    cudaEventSynchronize(end);
    float taken = 0;
    cudaEventElapsedTime(&taken, begin, end);
    cudaMemcpy(workload, outputs[0], out[0] * sizeof(real), cudaMemcpyDeviceToHost);
    cudaMemcpy(cost, outputs[1], out[1] * sizeof(real), cudaMemcpyDeviceToHost);
    for (int n = 0; n < 4; n++) cudaFree(inputs[n]);
    cudaFree(outputs[0]), cudaFree(outputs[1]), cudaFree(flows), cudaFree(works);
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? taken : -(double)error;
}
