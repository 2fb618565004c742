// pairwise_distances on the CPU:  d_ij = ||x_i - y_j|| (squared if asked), and its gradient.
//
// Forward: blocks of x rows x blocks of y rows, packed, through the 4 x 4 tile (tile.h). O(B M N D).
// Backward: gx_i = sum_j w_ij (x_i - y_j) with w = grad / d (0 where d is 0), or 2 grad for squares; gy the same with the
// roles exchanged. Sums run over j in ascending order, so they do not depend on the threads; in float32 by vectors
// (pairwise_distances_body.h).
#include <cmath>

#include "tile.h"

#define COX_BODY "pairwise_distances_body.h"
#include "each_isa.h"

namespace cox::cpu {
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
void forward(const Tensor& x, const Tensor& y, bool squared, const Tensor& dist) {
  using A = acc_t<T>;
  const Layout lx = layout(x), ly = layout(y);
  const int64_t M = lx.rows, N = ly.rows, D = lx.d, dp = padded<A>(D);
  const T* xp = data<T>(x);
  const T* yp = data<T>(y);
  T* op = out<T>(dist);
  const tile_fn<A> tile4x4 = pick_tile<A>();
  const int64_t block = block_rows(256 << 10, dp * static_cast<int64_t>(sizeof(A)), 128);
  const int64_t bm = ceil_div(M, block), bn = ceil_div(N, block);

  torch::stable::parallel_for(0, lx.batch * bm * bn, 1, [&](int64_t begin, int64_t end) {
    Buffer<A> xb(block * dp), yb(block * dp);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t j0 = item % bn * block, i0 = item / bn % bm * block, b = item / bn / bm;
      const int64_t rows = std::min(block, M - i0), cols = std::min(block, N - j0);
      pack_rows(xp + b * lx.sb + i0 * lx.sr, lx.sr, lx.sd, rows, D, dp, xb.get());
      pack_rows(yp + b * ly.sb + j0 * ly.sr, ly.sr, ly.sd, cols, D, dp, yb.get());
      for (int64_t i = 0; i < rows; i += kTile) {
        for (int64_t j = 0; j < cols; j += kTile) {
          A sq[16];
          tile4x4(xb.get() + i * dp, yb.get() + j * dp, dp, sq);
          for (int64_t r = 0; r < std::min(kTile, rows - i); ++r) {
            for (int64_t c = 0; c < std::min(kTile, cols - j); ++c) {
              const A s = sq[4 * r + c];
              op[(b * M + i0 + i + r) * N + j0 + j + c] = static_cast<T>(squared ? s : std::sqrt(s));
            }
          }
        }
      }
    }
  });
}

template <class A>
using pull_fn = void (*)(const A* a, const A* const* q, const A* w, int64_t n, int64_t dp, A* s);

void pull_double(const double* a, const double* const* q, const double* w, int64_t n, int64_t dp, double* s) {
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t e = 0; e < dp; ++e) {
      s[e] += w[j] * (a[e] - q[j][e]);
    }
  }
}

template <class A>
pull_fn<A> pick_pull() {
  if constexpr (std::is_same_v<A, float>) {
    return COX_PICK(pull_row);
  } else {
    return &pull_double;
  }
}

// ga_i = sum_j w_ij (a_i - b_j); grad and dist are addressed by (batch, row of a, row of b) strides.
template <class T>
void one_side(const T* ap, const Layout& la, const T* bp, const Layout& lb, const T* gp, const int64_t* gs,
              const T* dp_, const int64_t* ds, bool squared, T* op) {
  using A = acc_t<T>;
  const int64_t M = la.rows, N = lb.rows, D = la.d, dp = padded<A>(D);
  const int64_t rows_at_once = 16;
  const int64_t bm = ceil_div(M, rows_at_once);
  const int64_t block = block_rows(128 << 10, dp * static_cast<int64_t>(sizeof(A)), 128);
  const pull_fn<A> pull = pick_pull<A>();
  torch::stable::parallel_for(0, la.batch * bm, 1, [&](int64_t begin, int64_t end) {
    std::vector<const A*> from(static_cast<size_t>(block));
    Buffer<A> weight(block);
    Buffer<A> ab(rows_at_once * dp), bb(block * dp), acc(rows_at_once * dp);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / bm, i0 = item % bm * rows_at_once, rows = std::min(rows_at_once, M - i0);
      pack_rows(ap + b * la.sb + i0 * la.sr, la.sr, la.sd, rows, D, dp, ab.get());
      std::fill(acc.get(), acc.get() + rows * dp, A(0));
      for (int64_t j0 = 0; j0 < N; j0 += block) {
        const int64_t cols = std::min(block, N - j0);
        pack_rows(bp + b * lb.sb + j0 * lb.sr, lb.sr, lb.sd, cols, D, dp, bb.get());
        for (int64_t r = 0; r < rows; ++r) {
          int64_t n = 0;
          for (int64_t c = 0; c < cols; ++c) {
            const A g = static_cast<A>(gp[b * gs[0] + (i0 + r) * gs[1] + (j0 + c) * gs[2]]);
            const A d = static_cast<A>(dp_[b * ds[0] + (i0 + r) * ds[1] + (j0 + c) * ds[2]]);
            const A w = squared ? 2 * g : (d == 0 ? A(0) : g / d);
            if (w != 0) {  // an infinite distance pulls nothing, and 0 * inf must not make a NaN
              from[n] = bb.get() + c * dp;
              weight.get()[n++] = w;
            }
          }
          pull(ab.get() + r * dp, from.data(), weight.get(), n, dp, acc.get() + r * dp);
        }
      }
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t e = 0; e < D; ++e) {
          op[(b * M + i0 + r) * D + e] = static_cast<T>(acc.get()[r * dp + e]);
        }
      }
    }
  });
}

Tensor pairwise_distances(Tensor x, Tensor y, bool squared) {
  check_pairwise_distances(x, y);
  std::vector<int64_t> size(x.sizes().begin(), x.sizes().end());
  size.back() = y.size(y.dim() - 2);
  Tensor dist = make(x, size, x.scalar_type());
  if (dist.numel() > 0) {
    for_dtype(x.scalar_type(), [&](auto t) { forward<decltype(t)>(x, y, squared, dist); });
  }
  return dist;
}

std::tuple<Tensor, Tensor> pairwise_distances_backward(Tensor grad, Tensor x, Tensor y, Tensor dist, bool squared) {
  check_pairwise_distances_backward(grad, x, y, dist);
  Tensor gx = make(x, {x.sizes().begin(), x.sizes().end()}, x.scalar_type());
  Tensor gy = make(y, {y.sizes().begin(), y.sizes().end()}, y.scalar_type());
  const Layout lx = layout(x), ly = layout(y), lg = layout(grad), ld = layout(dist);
  const int64_t gs[3] = {lg.sb, lg.sr, lg.sd}, gt[3] = {lg.sb, lg.sd, lg.sr};
  const int64_t ds[3] = {ld.sb, ld.sr, ld.sd}, dt[3] = {ld.sb, ld.sd, ld.sr};
  for_dtype(x.scalar_type(), [&](auto t) {
    using T = decltype(t);
    const T *xp = data<T>(x), *yp = data<T>(y), *gp = data<T>(grad), *dp = data<T>(dist);
    if (gx.numel() > 0) one_side(xp, lx, yp, ly, gp, gs, dp, ds, squared, out<T>(gx));
    if (gy.numel() > 0) one_side(yp, ly, xp, lx, gp, gt, dp, dt, squared, out<T>(gy));
  });
  return {gx, gy};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cox_ops, CPU, m) {
  m.impl("pairwise_distances", TORCH_BOX(&pairwise_distances));
  m.impl("pairwise_distances_backward", TORCH_BOX(&pairwise_distances_backward));
}

}  // namespace cox::cpu
