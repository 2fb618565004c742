// A 64 x 64 tile of direct squared distances per block of 256 threads, 4 x 4 pairs per thread.
//
// The sum of a pair runs over d in ascending order in one accumulator, whatever the tile: it is a fixed function of the
// two rows. Shared memory: two chunks of 16 coordinates x 64 rows (transposed, padded to 68). Each coordinate that is
// read from global memory serves 64 pairs, each one read from shared memory 4.
#pragma once

#include "launch.cuh"

namespace cox::cuda {

constexpr int kTile = 64, kChunk = 16, kThreads = 256, kPad = 68;

template <class T>
struct Rows {  // a (rows, d) matrix of any strides
  const T* p;
  int64_t rows, d, sr, sd;

  __device__ acc_t<T> at(int64_t r, int64_t e) const {
    return r < rows && e < d ? static_cast<acc_t<T>>(p[r * sr + e * sd]) : acc_t<T>(0);
  }
};

template <class T>
Rows<T> rows_of(const Tensor& t) {
  return {data<T>(t), t.size(0), t.size(1), t.stride(0), t.stride(1)};
}

template <class A>
struct TileBuffers {
  A a[kChunk][kPad], b[kChunk][kPad];
};

// acc[r][c] = squared distance of rows a[i0 + 4 * (tid / 16) + r] and b[j0 + 4 * (tid % 16) + c]
template <class RowsA, class RowsB, class A>
__device__ void tile_squares(const RowsA& a, int64_t i0, const RowsB& b, int64_t j0, TileBuffers<A>& s, A (&acc)[4][4]) {
  const int tid = threadIdx.x, row = tid / 16 * 4, col = tid % 16 * 4;
#pragma unroll
  for (int r = 0; r < 4; ++r) {
#pragma unroll
    for (int c = 0; c < 4; ++c) acc[r][c] = 0;
  }
  for (int64_t d0 = 0; d0 < a.d; d0 += kChunk) {
    __syncthreads();  // the chunk before is still being read
    for (int n = tid; n < kTile * kChunk; n += kThreads) {
      const int r = n / kChunk, e = n % kChunk;
      s.a[e][r] = a.at(i0 + r, d0 + e);
      s.b[e][r] = b.at(j0 + r, d0 + e);
    }
    __syncthreads();
#pragma unroll 8
    for (int e = 0; e < kChunk; ++e) {
      A x[4], y[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        x[r] = s.a[e][row + r];
        y[r] = s.b[e][col + r];
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const A diff = x[r] - y[c];
          acc[r][c] += diff * diff;
        }
      }
    }
  }
}

}  // namespace cox::cuda
