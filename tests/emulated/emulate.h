// CUDA on the CPU, as far as csrc/cuda needs it: the kernels' own source, compiled by a C++ compiler, runs on fibers.
//
// A block's threads are fibers of one operating system thread, blocks run one after the other. Between two barriers the
// fibers run in an order drawn anew each time, so that a missing barrier shows; threads of a block (warp) that meet at
// different barriers, or of which some have ended, stop the program. An asynchronous copy happens, by chance, when it is
// issued or only when it is waited for; dynamic shared memory starts as NaN. mma and ldmatrix follow PTX' layouts; an mma
// adds as tensor cores have been seen to: addends aligned to the largest and cut off.
// What it cannot show: races within a warp's step, the memory model, speed.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __align__(n) alignas(n)
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
using cudaStream_t = void*;
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

namespace emulate {

struct Copy {
  void* to;
  const void* from;
  unsigned bytes, size;
};

struct Fiber {
  ucontext_t start;
  jmp_buf here;
  std::unique_ptr<char[]> stack;
  dim3 index;
  int number, lane, site = 0;          // site: the barrier's line; 0 where it runs; -1 at its end
  bool of_warp = false, started = false;
  unsigned step = 0;                   // warp operations so far
  std::vector<std::vector<Copy>> copies;
};

struct Machine {
  static constexpr size_t kStack = 128 << 10;
  std::vector<std::unique_ptr<Fiber>> fibers;
  Fiber* now = nullptr;
  jmp_buf scheduler;
  std::function<void()> body;
  dim3 grid, block, at;
  std::vector<uint64_t> shared;                    // dynamic
  std::vector<std::array<std::array<unsigned char, 64>, 64>> slots;  // per warp: two steps of 32 lanes
  unsigned votes[3];
  unsigned vote_step = 0;
  std::mt19937 random{1};
};

inline Machine& machine() {  // of the library: one for all its files
  static Machine m;
  return m;
}

[[noreturn]] inline void stop(const char* what, int line) {
  std::fprintf(stderr, "emulated CUDA: %s (line %d, block %u %u %u)\n", what, line, machine().at.x, machine().at.y,
               machine().at.z);
  std::abort();
}

inline void yield() {
  Machine& m = machine();
  if (!_setjmp(m.now->here)) {
    _longjmp(m.scheduler, 1);
  }
}

inline void fiber_main() {
  for (;;) {
    machine().body();
    if (!machine().now->copies.empty() && !machine().now->copies.back().empty()) {
      stop("a thread ended before its asynchronous copies were committed", 0);
    }
    machine().now->copies.clear();
    machine().now->site = -1;
    yield();
  }
}

inline void resume(Fiber& f) {
  Machine& m = machine();
  m.now = &f;
  if (!_setjmp(m.scheduler)) {
    if (!f.started) {
      f.started = true;
      ucontext_t back;
      swapcontext(&back, &f.start);
    }
    _longjmp(f.here, 1);
  }
}

inline void wait(int line, bool of_warp) {
  machine().now->site = line;
  machine().now->of_warp = of_warp;
  yield();
}

inline void run_block() {
  Machine& m = machine();
  const int threads = static_cast<int>(m.block.x * m.block.y * m.block.z);
  while (static_cast<int>(m.fibers.size()) < threads) {
    auto f = std::make_unique<Fiber>();
    f->stack = std::make_unique<char[]>(Machine::kStack);
    getcontext(&f->start);
    f->start.uc_stack.ss_sp = f->stack.get();
    f->start.uc_stack.ss_size = Machine::kStack;
    f->start.uc_link = nullptr;
    makecontext(&f->start, fiber_main, 0);
    m.fibers.push_back(std::move(f));
  }
  m.slots.resize(static_cast<size_t>(threads + 31) / 32);
  for (int n = 0; n < threads; ++n) {
    Fiber& f = *m.fibers[n];
    f.index = dim3(n % m.block.x, n / m.block.x % m.block.y, n / m.block.x / m.block.y);
    f.number = n;
    f.lane = n % 32;
    f.site = 0;
    f.step = 0;
  }
  std::fill(m.shared.begin(), m.shared.end(), ~uint64_t(0));
  const int warps = (threads + 31) / 32;
  for (int ended = 0; ended < threads;) {
    bool moved = false;
    // Warps in any order, and the lanes of a warp in any order that starts somewhere and goes up or down.
    const unsigned draw = m.random();
    for (int w = 0; w < warps; ++w) {
      const int warp = static_cast<int>((draw & 1 ? w : warps - 1 - w) + (draw >> 8)) % warps;
      const int first = 32 * warp, count = std::min(32, threads - first), turn = static_cast<int>(draw >> 16) % count;
      for (int l = 0; l < count; ++l) {
        Fiber& f = *m.fibers[first + ((draw & 2 ? l : count - 1 - l) + turn) % count];
        if (f.site == 0) {
          moved = true;
          resume(f);
          ended += f.site == -1;
        }
      }
      int there = 0, line = 0;
      bool same = true;
      for (int l = 0; l < count; ++l) {
        const Fiber& f = *m.fibers[first + l];
        there += f.site > 0 && f.of_warp;
        same = same && (l == 0 || f.site == line);
        line = f.site;
      }
      if (there == count) {
        if (!same) {
          stop("lanes of a warp meet at different warp operations", line);
        }
        for (int l = 0; l < count; ++l) m.fibers[first + l]->site = 0;
        moved = true;
      }
    }
    int there = 0, line = 0;
    bool same = true;
    for (int n = 0; n < threads; ++n) {
      const Fiber& f = *m.fibers[n];
      there += f.site > 0 && !f.of_warp;
      same = same && (n == 0 || f.site == line);
      line = f.site;
    }
    if (there == threads) {
      if (!same) {
        stop("threads of a block meet at different barriers", line);
      }
      for (int n = 0; n < threads; ++n) m.fibers[n]->site = 0;
      moved = true;
      ++m.vote_step;
      m.votes[(m.vote_step + 1) % 3] = 0;  // the next one's; the last one's is yet to be read
    }
    if (!moved && ended < threads) {
      stop("threads wait at a barrier that others do not reach", m.fibers[0]->site);
    }
  }
}

template <class F>
void launch(dim3 grid, dim3 block, size_t shared, F&& body) {
  Machine& m = machine();
  if (block.x * block.y * block.z > 1024 || block.x * block.y * block.z == 0) {
    stop("a block has 1 to 1024 threads", 0);
  }
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) {
    stop("a grid has 1 to 2^31 - 1, 65535 and 65535 blocks", 0);
  }
  if (shared > (227 << 10)) {
    stop("more shared memory than a block may have", 0);
  }
  m.grid = grid;
  m.block = block;
  m.shared.assign(shared / 8 + 1, 0);
  m.body = std::forward<F>(body);
  m.votes[0] = m.votes[1] = m.votes[2] = 0;
  for (m.at.z = 0; m.at.z < grid.z; ++m.at.z) {
    for (m.at.y = 0; m.at.y < grid.y; ++m.at.y) {
      for (m.at.x = 0; m.at.x < grid.x; ++m.at.x) run_block();
    }
  }
}

inline void barrier(int line) {
  wait(line, false);
}

inline int barrier_or(int line, int p) {
  Machine& m = machine();
  unsigned& vote = m.votes[m.vote_step % 3];
  vote |= p != 0;
  wait(line, false);
  return vote != 0;
}

// All lanes leave a value and take what `pick` makes of the 32.
template <class T, class F>
auto warp_step(int line, const T& mine, F&& pick) {
  static_assert(sizeof(T) <= 64);
  Machine& m = machine();
  Fiber& f = *m.now;
  auto* slot = m.slots[static_cast<size_t>(f.number / 32)].data() + (f.step++ % 2) * 32;
  std::memcpy(slot[f.lane].data(), &mine, sizeof(T));
  wait(line, true);
  return pick([slot](int lane) {
    T t;
    std::memcpy(&t, slot[lane & 31].data(), sizeof(T));
    return t;
  });
}

inline void warp_mask(unsigned mask, int line) {
  if (mask != 0xffffffffu) {
    stop("only whole warps are emulated", line);
  }
}

template <class T>
T shuffle_xor(int line, unsigned mask, T v, int step) {
  warp_mask(mask, line);
  const int lane = machine().now->lane;
  return warp_step(line, v, [&](auto at) { return at(lane ^ step); });
}

template <class T>
T shuffle(int line, unsigned mask, T v, int from) {
  warp_mask(mask, line);
  return warp_step(line, v, [&](auto at) { return at(from); });
}

template <class T>
T shuffle_up(int line, unsigned mask, T v, unsigned step) {
  warp_mask(mask, line);
  const int lane = machine().now->lane;
  return warp_step(line, v, [&](auto at) { return lane < static_cast<int>(step) ? v : at(lane - static_cast<int>(step)); });
}

inline unsigned ballot(int line, unsigned mask, bool p) {
  warp_mask(mask, line);
  return warp_step(line, static_cast<int>(p), [&](auto at) {
    unsigned all = 0;
    for (int l = 0; l < 32; ++l) all |= static_cast<unsigned>(at(l) != 0) << l;
    return all;
  });
}

inline void copy_async(void* to, const void* from, unsigned bytes, unsigned size) {
  Fiber& f = *machine().now;
  if (reinterpret_cast<uintptr_t>(to) % size || reinterpret_cast<uintptr_t>(from) % size) {
    stop("an asynchronous copy that is not aligned", 0);
  }
  if (f.copies.empty()) {
    f.copies.emplace_back();
  }
  f.copies.back().push_back({to, from, bytes, size});
  if (machine().random() & 1) {  // as early as may be; once more when it is waited for
    std::memset(to, 0, size);
    std::memcpy(to, from, bytes);
  }
}

inline void copy_commit() {
  Fiber& f = *machine().now;
  if (f.copies.empty()) {
    f.copies.emplace_back();
  }
  f.copies.emplace_back();
}

inline void copy_wait(size_t newest) {  // all groups but the newest ones are there
  Fiber& f = *machine().now;
  while (f.copies.size() > newest + 1) {  // the last one is not committed
    for (const Copy& c : f.copies.front()) {
      std::memset(c.to, 0, c.size);
      std::memcpy(c.to, c.from, c.bytes);
    }
    f.copies.erase(f.copies.begin());
  }
}

// sum of c and n exact products: aligned to the largest, cut off at 24 bits, the result cut off to a float.
inline float cut_sum(float c, const double* products, int n) {
  double largest = std::fabs(static_cast<double>(c));
  for (int i = 0; i < n; ++i) largest = std::max(largest, std::fabs(products[i]));
  if (largest == 0 || !std::isfinite(largest)) {
    double sum = c;
    for (int i = 0; i < n; ++i) sum += products[i];
    return static_cast<float>(sum);
  }
  const double unit = std::ldexp(1.0, std::ilogb(largest) - 23);
  double units = std::trunc(c / unit);
  for (int i = 0; i < n; ++i) units += std::trunc(products[i] / unit);
  const double sum = units * unit;  // exact
  float r = static_cast<float>(sum);
  if (std::fabs(static_cast<double>(r)) > std::fabs(sum)) {
    r = std::nextafterf(r, 0.f);
  }
  return std::fabs(r) < std::numeric_limits<float>::min() ? 0.f : r;
}

inline float bf16(uint32_t pair, int half) {
  const uint32_t bits = half ? pair & 0xffff0000u : pair << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

// mma.sync.m16n8k16 of bf16 with float accumulators, by the fragments' layouts in the PTX manual.
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Share {
    uint32_t a[4], b[2];
  } mine;
  std::memcpy(mine.a, a, sizeof mine.a);
  std::memcpy(mine.b, b, sizeof mine.b);
  const int lane = machine().now->lane, group = lane / 4, in = lane % 4;
  warp_step(__LINE__, mine, [&](auto at) {
    Share rows[4], columns[2][4];  // the four lanes that hold a row of A; a column of B
    for (int t = 0; t < 4; ++t) {
      rows[t] = at(4 * group + t);
      columns[0][t] = at(4 * (2 * in) + t);
      columns[1][t] = at(4 * (2 * in + 1) + t);
    }
    for (int e = 0; e < 4; ++e) {
      const int upper = e / 2, column = e % 2;
      double products[16];
      for (int k = 0; k < 16; ++k) {  // a2, a3 and b1 hold k >= 8
        const int t = k % 8 / 2, high = k / 8;
        products[k] = static_cast<double>(bf16(rows[t].a[2 * high + upper], k % 2)) *
                      static_cast<double>(bf16(columns[column][t].b[high], k % 2));
      }
      float sum = d[e];
      for (int k = 0; k < 16; k += 8) sum = cut_sum(sum, products + k, 8);
      d[e] = sum;
    }
    return 0;
  });
}

// ldmatrix.x4: lane l names row l % 8 (16 bytes) of matrix l / 8.
inline void load_matrix(uint32_t (&r)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16) {
    stop("ldmatrix of a row that is not aligned", 0);
  }
  const int lane = machine().now->lane;
  warp_step(__LINE__, row, [&](auto at) {
    for (int m = 0; m < 4; ++m) {
      std::memcpy(&r[m], static_cast<const char*>(at(8 * m + lane / 4)) + 4 * (lane % 4), 4);
    }
    return 0;
  });
}

}  // namespace emulate

#define threadIdx (::emulate::machine().now->index)
#define blockIdx (::emulate::machine().at)
#define blockDim (::emulate::machine().block)
#define gridDim (::emulate::machine().grid)
#define __syncthreads() ::emulate::barrier(__LINE__)
#define __syncthreads_or(p) ::emulate::barrier_or(__LINE__, p)
#define __syncwarp() ::emulate::shuffle(__LINE__, 0xffffffffu, 0, 0)
#define __shfl_xor_sync(mask, v, step) ::emulate::shuffle_xor(__LINE__, mask, v, step)
#define __shfl_sync(mask, v, lane) ::emulate::shuffle(__LINE__, mask, v, lane)
#define __shfl_up_sync(mask, v, step) ::emulate::shuffle_up(__LINE__, mask, v, step)
#define __ballot_sync(mask, p) ::emulate::ballot(__LINE__, mask, p)
#define __all_sync(mask, p) (::emulate::ballot(__LINE__, mask, p) == 0xffffffffu)
#define __any_sync(mask, p) (::emulate::ballot(__LINE__, mask, p) != 0)
#define __ldg(p) (*(p))

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline unsigned __float_as_uint(float f) {
  unsigned u;
  std::memcpy(&u, &f, 4);
  return u;
}
inline float __uint_as_float(unsigned u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
template <class T>
T atomicAdd(T* p, T v) {
  const T before = *p;
  *p = before + v;
  return before;
}
template <class T>
T atomicMax(T* p, T v) {
  const T before = *p;
  *p = std::max(before, v);
  return before;
}
template <class T>
T atomicMin(T* p, T v) {
  const T before = *p;
  *p = std::min(before, v);
  return before;
}

namespace cox::cuda {

using std::exp;
using std::fma;
using std::log;
using std::log1p;
using std::max;
using std::min;
using std::sqrt;

struct DeviceGuard {
  explicit DeviceGuard(int) {}
};

}  // namespace cox::cuda

// torch/csrc/stable names CUDA in its own headers, which come first.
#define CUDA CPU
