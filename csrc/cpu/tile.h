// Direct squared distances of 4 x 4 row pairs: the inner loop of pairwise_distances and nearest_anchor in float64
// and of mmd where it is direct.
//
//   out[4*r + c] = sum_d (z[r][d] - v[c][d])^2
//
// Rows come packed (pack_rows): in float or double, 64-byte aligned, D padded with zeros to a multiple of
// kLanes, the number of rows padded with zero rows to a multiple of 4. The sum of a pair is a fixed function of
// its two rows: kLanes interleaved partial sums, then a binary tree. It therefore does not depend on where the
// pair lies in a tile, on the tiling, on the batch or on the number of threads; only on the instruction set
// (FMA with AVX2 and AVX-512, which agree bit for bit; without FMA elsewhere). No norms trick: no cancellation.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "../common.h"

namespace cox::cpu {

template <class A>
constexpr int64_t kLanes = 64 / sizeof(A);  // 16 floats, 8 doubles
constexpr int64_t kTile = 4;

inline int64_t round_up(int64_t n, int64_t m) {
  return ceil_div(n, m) * m;
}

template <class A>
int64_t padded(int64_t d) {
  return round_up(d, kLanes<A>);
}

template <class A>
using tile_fn = void (*)(const A* z, const A* v, int64_t dp, A* out);

template <class A>
tile_fn<A> pick_tile();  // for the chosen instruction set

// Instruction sets this machine can run, best last; the one in use; force one by name (tests) or by COX_ISA.
std::vector<std::string> isa_available();
std::string isa_chosen();
std::string bf16_chosen();  // what makes products of bfloat16 there (bf16.cpp), or "none"
int isa_level();  // its place in the list of all: plain 0, avx2 1, avx512 2, avx512_vnni 3, amx_int8 4
int simd_level();  // plain 0, avx2 1, avx512 and beyond 2
constexpr int kEmulatedTiles = 5;  // amx_emulated, for tests: not in the list of those available
void isa_force(const std::string& name);

// Uninitialised, 64-byte aligned.
template <class A>
class Buffer {
 public:
  explicit Buffer(int64_t n)
      : p_(static_cast<A*>(::operator new(sizeof(A) * static_cast<size_t>(std::max<int64_t>(n, 1)),
                                          std::align_val_t{64}))) {}
  ~Buffer() { ::operator delete(p_, std::align_val_t{64}); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  A* get() const { return p_; }

 private:
  A* p_;
};

// dst (round_up(rows, 4), dp) <- src (rows, d) of any strides, zero padded.
template <class T>
void pack_rows(const T* src, int64_t row_stride, int64_t col_stride, int64_t rows, int64_t d, int64_t dp,
               acc_t<T>* dst) {
  using A = acc_t<T>;
  for (int64_t r = 0; r < rows; ++r) {
    const T* s = src + r * row_stride;
    A* t = dst + r * dp;
    if (col_stride == 1) {
      for (int64_t i = 0; i < d; ++i) {
        t[i] = static_cast<A>(s[i]);
      }
    } else {
      for (int64_t i = 0; i < d; ++i) {
        t[i] = static_cast<A>(s[i * col_stride]);
      }
    }
    std::fill(t + d, t + dp, A(0));
  }
  std::fill(dst + rows * dp, dst + round_up(rows, kTile) * dp, A(0));
}

// Rows per packed block so that a block stays near `bytes`: a multiple of 4 in [4, most].
inline int64_t block_rows(int64_t bytes, int64_t row_bytes, int64_t most) {
  const int64_t n = bytes / std::max<int64_t>(row_bytes, 1);
  return std::clamp<int64_t>(n / kTile * kTile, kTile, most);
}

}  // namespace cox::cpu
