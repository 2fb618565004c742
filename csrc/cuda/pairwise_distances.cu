// pairwise_distances on CUDA:  d_ij = ||x_i - y_j|| (squared if asked), and its gradient.
//
// Forward: one block of 256 threads per 64 x 64 tile of the result (grid.x) and batch (grid.z), tile.cuh. O(B M N D).
// Backward: gx_i = sum_j w_ij (x_i - y_j), w = grad / d (0 where d is 0) or 2 grad for squares. One block per 8 rows of x
// (grid.x) and 128 coordinates (grid.y), one coordinate per thread; weights of 64 columns at a time in shared memory
// (4 KiB), each y value read once per 8 rows. gy is the same with the roles exchanged. Sums run over j in ascending
// order: deterministic. A weight of 0 is skipped, so that an infinite difference under it makes no NaN.
#include "tile.cuh"

namespace cox::cuda {
namespace {

struct Layout {  // of a (B, rows, D) or (rows, D) tensor
  int64_t batch, rows, d, sb, sr, sd;
};

Layout layout(const Tensor& t) {
  const int64_t r = t.dim();
  return {r == 3 ? t.size(0) : 1,   t.size(r - 2),   t.size(r - 1),
          r == 3 ? t.stride(0) : 0, t.stride(r - 2), t.stride(r - 1)};
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    distances(const T* x, Layout lx, const T* y, Layout ly, bool squared, T* dist) {
  using A = acc_t<T>;
  __shared__ TileBuffers<A> buffers;
  const int64_t tiles_n = (ly.rows + kTile - 1) / kTile;
  const int64_t i0 = blockIdx.x / tiles_n * kTile, j0 = blockIdx.x % tiles_n * kTile;
  const int row = threadIdx.x / 16 * 4, col = threadIdx.x % 16 * 4;
  for (int64_t b = blockIdx.z; b < lx.batch; b += gridDim.z) {
    const Rows<T> xr{x + b * lx.sb, lx.rows, lx.d, lx.sr, lx.sd}, yr{y + b * ly.sb, ly.rows, ly.d, ly.sr, ly.sd};
    A acc[4][4];
    tile_squares(xr, i0, yr, j0, buffers, acc);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int64_t i = i0 + row + r, j = j0 + col + c;
        if (i < lx.rows && j < ly.rows) {
          dist[(b * lx.rows + i) * ly.rows + j] = static_cast<T>(squared ? acc[r][c] : sqrt(acc[r][c]));
        }
      }
    }
  }
}

constexpr int kRows = 8, kCols = 64, kLane = 128;

// lg and ld address grad and dist by (batch, row of a, row of b).
template <class T>
__global__ void __launch_bounds__(kLane)
    one_side(const T* a, Layout la, const T* b, Layout lb, const T* grad, Layout lg, const T* dist, Layout ld,
             bool squared, T* result) {
  using A = acc_t<T>;
  __shared__ A weight[kRows][kCols];
  const int64_t i0 = static_cast<int64_t>(blockIdx.x) * kRows;
  const int64_t e = static_cast<int64_t>(blockIdx.y) * kLane + threadIdx.x;
  for (int64_t n = blockIdx.z; n < la.batch; n += gridDim.z) {
    const Rows<T> ar{a + n * la.sb, la.rows, la.d, la.sr, la.sd}, br{b + n * lb.sb, lb.rows, lb.d, lb.sr, lb.sd};
    A own[kRows], sum[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      own[r] = ar.at(i0 + r, e);
      sum[r] = 0;
    }
    for (int64_t j0 = 0; j0 < lb.rows; j0 += kCols) {
      __syncthreads();  // the weights before are still being read
      for (int w = threadIdx.x; w < kRows * kCols; w += kLane) {
        const int64_t i = i0 + w / kCols, j = j0 + w % kCols;
        A value = 0;
        if (i < la.rows && j < lb.rows) {
          const A g = static_cast<A>(grad[n * lg.sb + i * lg.sr + j * lg.sd]);
          const A d = static_cast<A>(dist[n * ld.sb + i * ld.sr + j * ld.sd]);
          value = squared ? 2 * g : (d == 0 ? A(0) : g / d);
        }
        weight[w / kCols][w % kCols] = value;
      }
      __syncthreads();
#pragma unroll 4
      for (int c = 0; c < kCols; ++c) {
        const A other = br.at(j0 + c, e);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const A w = weight[r][c];
          if (w != 0) {
            sum[r] += w * (own[r] - other);
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (i0 + r < la.rows && e < la.d) {
        result[(n * la.rows + i0 + r) * la.d + e] = static_cast<T>(sum[r]);
      }
    }
  }
}

unsigned batches(int64_t b) {
  return static_cast<unsigned>(b < 65535 ? b : 65535);
}

Tensor pairwise_distances(Tensor x, Tensor y, bool squared) {
  check_pairwise_distances(x, y);
  const DeviceGuard guard(x.get_device_index());
  std::vector<int64_t> size(x.sizes().begin(), x.sizes().end());
  size.back() = y.size(y.dim() - 2);
  Tensor dist = make(x, size, x.scalar_type());
  if (dist.numel() == 0) {
    return dist;
  }
  const Layout lx = layout(x), ly = layout(y);
  const dim3 grid(grid_size(ceil_div(lx.rows, kTile) * ceil_div(ly.rows, kTile)), 1, batches(lx.batch));
  const cudaStream_t stream = current_stream(x);
  for_dtype(x.scalar_type(), [&](auto t) {
    using T = decltype(t);
    COX_LAUNCH(grid, dim3(kThreads), stream, (data<T>(x), lx, data<T>(y), ly, squared, out<T>(dist)), distances<T>);
  });
  return dist;
}

std::tuple<Tensor, Tensor> pairwise_distances_backward(Tensor grad, Tensor x, Tensor y, Tensor dist, bool squared) {
  check_pairwise_distances_backward(grad, x, y, dist);
  const DeviceGuard guard(x.get_device_index());
  Tensor gx = make(x, {x.sizes().begin(), x.sizes().end()}, x.scalar_type());
  Tensor gy = make(y, {y.sizes().begin(), y.sizes().end()}, y.scalar_type());
  const Layout lx = layout(x), ly = layout(y), lg = layout(grad), ld = layout(dist);
  Layout gt = lg, dt = ld;
  std::swap(gt.sr, gt.sd);
  std::swap(dt.sr, dt.sd);
  const cudaStream_t stream = current_stream(x);
  const auto grid = [](const Layout& l) {
    COX_CHECK(ceil_div(l.d, kLane) <= 65535, "pairwise_distances: D = ", l.d, " is more than the gradient takes on CUDA");
    return dim3(grid_size(ceil_div(l.rows, kRows)), grid_size(ceil_div(l.d, kLane)), batches(l.batch));
  };
  for_dtype(x.scalar_type(), [&](auto t) {
    using T = decltype(t);
    const T *xp = data<T>(x), *yp = data<T>(y), *gp = data<T>(grad), *dp = data<T>(dist);
    if (gx.numel() > 0) {
      COX_LAUNCH(grid(lx), dim3(kLane), stream, (xp, lx, yp, ly, gp, lg, dp, ld, squared, out<T>(gx)), one_side<T>);
    }
    if (gy.numel() > 0) {
      COX_LAUNCH(grid(ly), dim3(kLane), stream, (yp, ly, xp, lx, gp, gt, dp, dt, squared, out<T>(gy)), one_side<T>);
    }
  });
  return {gx, gy};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cox_ops, CUDA, m) {
  m.impl("pairwise_distances", TORCH_BOX(&pairwise_distances));
  m.impl("pairwise_distances_backward", TORCH_BOX(&pairwise_distances_backward));
}

}  // namespace cox::cuda
