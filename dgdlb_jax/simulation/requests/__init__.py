r"""Requests one by one: the networks, policies and observations of the fluid engine, with whole numbers in place of flows.

Requests of frontend $i$ arrive as a Poisson process of rate $\lambda_i(t)$, each goes to backend $j$ with probability $x_{ij}(t)$ and gets
there after the latency, and of the $N_j$ requests at a backend one is answered at a total rate of $\ell_j(N_j)$. In the limit of many
requests and replicas this is the fluid model: at scale $n$ (rates and replicas times $n$) the gap falls like $1/n$.

A step is a chain of three stages with two channels, as in `simulation.step`: `report` the workload; `dispatch` what is sent in the step;
`serve` what is there and what arrives. It is of second order in the mean and in the variance of the workloads.

| module | |
|---|---|
| `streams` | random numbers of networks, arcs and backends |
| `step` | the stages |
| `own` | own requests of every frontend until the answer is back, and rules that see each request by itself |
| `hazard` | the probability that a request is answered within a step |
| `cohorts` | requests followed from their arrival to their answer |
| `blocks` | sums over parts of a run, and their standard errors |
| `trajectory` | what comes back |
| `start`, `observe` | the first state, and what is saved of an instant |
| `engine` | `simulate_requests` and `simulate_requests_batch` |
"""
