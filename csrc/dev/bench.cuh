// Shared by dev/cuda: device copies of host vectors, and the median time of a kernel with the second cache level emptied
// before each run.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include <cuda_runtime.h>

#define CHECK(call)                                                                            \
  do {                                                                                         \
    const cudaError_t e = (call);                                                              \
    if (e != cudaSuccess) {                                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(e));          \
      std::exit(1);                                                                            \
    }                                                                                          \
  } while (0)

template <class T>
struct OnDevice {
  T* p = nullptr;
  size_t n;
  explicit OnDevice(size_t count) : n(count) { CHECK(cudaMalloc(&p, std::max<size_t>(n, 1) * sizeof(T))); }
  explicit OnDevice(const std::vector<T>& v) : OnDevice(v.size()) {
    CHECK(cudaMemcpy(p, v.data(), n * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~OnDevice() { cudaFree(p); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  std::vector<T> host() const {
    std::vector<T> v(n);
    CHECK(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
  }
};

inline std::vector<float> gaussian(size_t n, unsigned seed) {
  std::mt19937 g(seed);
  std::normal_distribution<float> d;
  std::vector<float> v(n);
  for (float& x : v) x = d(g);
  return v;
}

inline int processors() {
  int n = 0;
  CHECK(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, 0));
  return n;
}

// Milliseconds, median of `rounds`.
template <class F>
float median_time(F&& f, int rounds = 5) {
  OnDevice<char> flush(size_t(128) << 20);
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int r = 0; r <= rounds; ++r) {
    CHECK(cudaMemset(flush.p, r, flush.n));
    CHECK(cudaEventRecord(begin));
    f();
    CHECK(cudaGetLastError());
    CHECK(cudaEventRecord(end));
    CHECK(cudaEventSynchronize(end));
    float t = 0;
    CHECK(cudaEventElapsedTime(&t, begin, end));
    if (r > 0) times.push_back(t);  // the first one warms up
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}
