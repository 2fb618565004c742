// mmd on CUDA: squared MMD of x (N, D) and y (M, D), biased V-statistic, kernel 1/B sum_s exp(-d^2 / bandwidth_s), and its
// gradient.
//
// Forward: for each of (x, x), (y, y), (x, y) a grid of x = tiles of 64 rows, y = parts of the other sample; a block of 256
// threads walks its part in 64 x 64 tiles of direct squared distances (tile.cuh) and adds the kernels up in float64; one
// partial sum per block, added in a fixed order by one last block. O((N + M)^2 (D + B)) time, O(N + M) scratch.
// Backward: a block owns 64 rows; per tile of others the weights sum_s exp(-d^2 / b_s) / b_s take the place of the coordinates in
// shared memory (17 KiB, 33 in float64), then each thread adds sum_c w (a - o) for its (row, coordinate) pairs to a float64 buffer, N x D. No atomics,
// no synchronisation with the host (bandwidths and the incoming gradient are read on the device): deterministic.
#include "tile.cuh"

namespace cox::cuda {
namespace {

template <class A>
__device__ A inverse(const double* bandwidths, int64_t stride, int64_t s) {
  return static_cast<A>(1 / bandwidths[s * stride]);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    kernel_sums(Rows<T> a, Rows<T> b, const double* bandwidths, int64_t stride, int64_t count, int64_t rows_per_part,
                double* partial) {
  using A = acc_t<T>;
  __shared__ TileBuffers<A> buffers;
  __shared__ double sums[kThreads];
  const int tid = threadIdx.x, row = tid / 16 * 4, col = tid % 16 * 4;
  const int64_t i0 = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t begin = blockIdx.y * rows_per_part, last = begin + rows_per_part;
  const int64_t end = last < b.rows ? last : b.rows;
  double sum = 0;
  for (int64_t j0 = begin; j0 < end; j0 += kTile) {
    A acc[4][4];
    tile_squares(a, i0, b, j0, buffers, acc);
    for (int64_t s = 0; s < count; ++s) {
      const A inv = inverse<A>(bandwidths, stride, s);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          if (i0 + row + r < a.rows && j0 + col + c < end) {
            sum += static_cast<double>(exp(-acc[r][c] * inv));
          }
        }
      }
    }
  }
  sums[tid] = sum;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (tid < half) {
      sums[tid] += sums[tid + half];
    }
    __syncthreads();
  }
  if (tid == 0) {
    partial[static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x] = sums[0];
  }
}

// One block: value = xx / n^2 + yy / m^2 - 2 xy / (n m), over B. The partial sums of xx, yy and xy follow one another.
template <class A>
__global__ void __launch_bounds__(kThreads, 2)
    combine(const double* partial, int64_t nxx, int64_t nyy, int64_t nxy, double n, double m, double count, A* value) {
  __shared__ double sums[kThreads];
  const int tid = threadIdx.x;
  double sum = 0;
  for (int64_t i = tid; i < nxx + nyy + nxy; i += kThreads) {
    sum += partial[i] * (i < nxx ? 1 / (n * n) : i < nxx + nyy ? 1 / (m * m) : -2 / (n * m));
  }
  sums[tid] = sum;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (tid < half) {
      sums[tid] += sums[tid + half];
    }
    __syncthreads();
  }
  if (tid == 0) {
    *value = static_cast<A>(sums[0] / count);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    add_pulls(Rows<T> a, Rows<T> other, const double* bandwidths, int64_t stride, int64_t count, double coefficient,
              bool first, double* total) {
  using A = acc_t<T>;
  __shared__ union Shared {  // the weights of a tile are formed when its coordinates have been used
    TileBuffers<A> buffers;
    A weight[kTile][kTile + 1];
  } shared;
  auto& weight = shared.weight;
  const int tid = threadIdx.x, row = tid / 16 * 4, col = tid % 16 * 4;
  const int64_t i0 = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t rows = a.rows - i0 < kTile ? a.rows - i0 : kTile;
  if (first) {
    for (int64_t n = tid; n < rows * a.d; n += kThreads) {
      total[i0 * a.d + n] = 0;
    }
  }
  for (int64_t j0 = 0; j0 < other.rows; j0 += kTile) {
    A acc[4][4], w[4][4] = {};
    tile_squares(a, i0, other, j0, shared.buffers, acc);
    for (int64_t s = 0; s < count; ++s) {
      const A inv = inverse<A>(bandwidths, stride, s);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int c = 0; c < 4; ++c) w[r][c] += exp(-acc[r][c] * inv) * inv;
      }
    }
    __syncthreads();  // the coordinates are still being read
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int c = 0; c < 4; ++c) weight[row + r][col + c] = w[r][c];
    }
    __syncthreads();
    const int64_t cols = other.rows - j0 < kTile ? other.rows - j0 : kTile;
    for (int64_t n = tid; n < rows * a.d; n += kThreads) {
      const int64_t r = n / a.d, e = n % a.d;
      const A own = a.at(i0 + r, e);
      A sum = 0;
      for (int64_t c = 0; c < cols; ++c) {
        sum += weight[r][c] * (own - other.at(j0 + c, e));
      }
      total[i0 * a.d + n] += coefficient * static_cast<double>(sum);
    }
  }
}

// grad <- 4 g / B times the sums
template <class T>
__global__ void scale(const double* total, const acc_t<T>* g, double count, int64_t n, T* grad) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) {
    grad[i] = static_cast<T>(static_cast<acc_t<T>>(4 * static_cast<double>(*g) / count * total[i]));
  }
}

struct Parts {
  int64_t tiles, parts, rows_per_part;
  int64_t count() const { return tiles * parts; }
};

// Enough blocks for any GPU, from the sizes alone: partial sums, and so the result, do not depend on the device.
Parts parts_of(int64_t rows, int64_t others) {
  const int64_t tiles = ceil_div(rows, kTile), other_tiles = ceil_div(others, kTile);
  int64_t parts = ceil_div(1024, tiles);
  parts = parts < other_tiles ? parts : other_tiles;
  const int64_t rows_per_part = ceil_div(other_tiles, parts) * kTile;
  return {tiles, ceil_div(others, rows_per_part), rows_per_part};
}

Tensor mmd(Tensor x, Tensor y, Tensor bandwidths) {
  check_mmd(x, y, bandwidths);
  const DeviceGuard guard(x.get_device_index());
  const int64_t n = x.size(0), m = y.size(0), count = bandwidths.size(0), stride = bandwidths.stride(0);
  const Parts xx = parts_of(n, n), yy = parts_of(m, m), xy = parts_of(n, m);
  Tensor partial = make(x, {xx.count() + yy.count() + xy.count()}, ScalarType::Double);
  Tensor value = make(x, {}, acc_dtype(x.scalar_type()));
  const cudaStream_t stream = current_stream(x);
  for_dtype(x.scalar_type(), [&](auto t) {
    using T = decltype(t);
    const double* b = data<double>(bandwidths);
    double* p = out<double>(partial);
    const auto sums = [&](const Tensor& u, const Tensor& w, const Parts& q, double* to) {
      COX_LAUNCH(dim3(grid_size(q.tiles), static_cast<unsigned>(q.parts)), dim3(kThreads), stream,
                 (rows_of<T>(u), rows_of<T>(w), b, stride, count, q.rows_per_part, to), kernel_sums<T>);
    };
    sums(x, x, xx, p);
    sums(y, y, yy, p + xx.count());
    sums(x, y, xy, p + xx.count() + yy.count());
    COX_LAUNCH(dim3(1), dim3(kThreads), stream,
               (p, xx.count(), yy.count(), xy.count(), static_cast<double>(n), static_cast<double>(m),
                static_cast<double>(count), out<acc_t<T>>(value)),
               combine<acc_t<T>>);
  });
  return value;
}

std::tuple<Tensor, Tensor> mmd_backward(Tensor grad, Tensor x, Tensor y, Tensor bandwidths) {
  check_mmd_backward(grad, x, y, bandwidths);
  const DeviceGuard guard(x.get_device_index());
  const int64_t count = bandwidths.size(0), stride = bandwidths.stride(0);
  const double n = static_cast<double>(x.size(0)), m = static_cast<double>(y.size(0));
  Tensor gx = make(x, {x.size(0), x.size(1)}, x.scalar_type()), gy = make(y, {y.size(0), y.size(1)}, y.scalar_type());
  const cudaStream_t stream = current_stream(x);
  for_dtype(x.scalar_type(), [&](auto t) {
    using T = decltype(t);
    const double* b = data<double>(bandwidths);
    const auto one_side = [&](const Tensor& own, const Tensor& other, double within, double across, const Tensor& to) {
      if (own.numel() == 0) {
        return;
      }
      Tensor total = make(own, {own.size(0), own.size(1)}, ScalarType::Double);
      const dim3 grid(grid_size(ceil_div(own.size(0), kTile)));
      COX_LAUNCH(grid, dim3(kThreads), stream,
                 (rows_of<T>(own), rows_of<T>(own), b, stride, count, within, true, out<double>(total)), add_pulls<T>);
      COX_LAUNCH(grid, dim3(kThreads), stream,
                 (rows_of<T>(own), rows_of<T>(other), b, stride, count, across, false, out<double>(total)), add_pulls<T>);
      COX_LAUNCH(dim3(grid_size(ceil_div(own.numel(), 256))), dim3(256), stream,
                 (data<double>(total), data<acc_t<T>>(grad), static_cast<double>(count), own.numel(), out<T>(to)),
                 scale<T>);
    };
    one_side(x, y, -1 / (n * n), 1 / (n * m), gx);
    one_side(y, x, -1 / (m * m), 1 / (n * m), gy);
  });
  return {gx, gy};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cox_ops, CUDA, m) {
  m.impl("mmd", TORCH_BOX(&mmd));
  m.impl("mmd_backward", TORCH_BOX(&mmd_backward));
}

}  // namespace cox::cuda
