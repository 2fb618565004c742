// mmd on the CPU: squared MMD of x (N, D) and y (M, D), biased V-statistic, kernel 1/B sum_s exp(-d^2 / bandwidth_s).
//
// Forward: three sums of kernels over blocks of 64 x 64 pairs of direct squared distances (tile.h); within one sample
// only the blocks on and above the diagonal, the others counting twice. One partial sum in float64 per row block, added
// in order: the same for any number of threads. Backward: the kernels again, gx_i = sum_j w_ij (x_i - other_j).
// O((N + M)^2 (D + B)) time, O(N + M) scratch.
#include <cmath>

#include "tile.h"

namespace cox::cpu {
namespace {

constexpr int64_t kBlock = 64;  // part of the result: partial sums follow it

struct Sample {
  const Tensor& t;
  int64_t rows() const { return t.size(0); }
  int64_t blocks() const { return ceil_div(rows(), kBlock); }
};

template <class T>
int64_t pack_block(const Sample& s, int64_t block, int64_t d, int64_t dp, acc_t<T>* dst) {
  const int64_t r0 = block * kBlock, rows = std::min(kBlock, s.rows() - r0);
  pack_rows(data<T>(s.t) + r0 * s.t.stride(0), s.t.stride(0), s.t.stride(1), rows, d, dp, dst);
  return rows;
}

// sum of all kernels between the rows of a and of b
template <class T>
double kernel_sum(const Sample& a, const Sample& b, const std::vector<acc_t<T>>& inverse, bool same) {
  using A = acc_t<T>;
  const int64_t D = a.t.size(1), dp = padded<A>(D), na = a.blocks(), nb = b.blocks();
  const tile_fn<A> tile4x4 = pick_tile<A>();
  std::vector<double> partial(static_cast<size_t>(na), 0.0);
  const int64_t items = same ? ceil_div(na, 2) : na;
  torch::stable::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) {
    Buffer<A> ab(kBlock * dp), bb(kBlock * dp);
    const auto row_block = [&](int64_t ba) {
      const int64_t rows = pack_block<T>(a, ba, D, dp, ab.get());
      double sum = 0;
      for (int64_t bj = same ? ba : 0; bj < nb; ++bj) {
        const int64_t cols = pack_block<T>(b, bj, D, dp, bb.get());
        double block_sum = 0;
        for (int64_t i = 0; i < rows; i += kTile) {
          for (int64_t j = 0; j < cols; j += kTile) {
            A sq[16];
            tile4x4(ab.get() + i * dp, bb.get() + j * dp, dp, sq);
            for (int64_t r = 0; r < std::min(kTile, rows - i); ++r) {
              for (int64_t c = 0; c < std::min(kTile, cols - j); ++c) {
                for (const A inv : inverse) {
                  block_sum += static_cast<double>(std::exp(-sq[4 * r + c] * inv));
                }
              }
            }
          }
        }
        sum += same && bj > ba ? 2 * block_sum : block_sum;
      }
      partial[ba] = sum;
    };
    for (int64_t item = begin; item < end; ++item) {
      row_block(item);
      if (same && na - 1 - item != item) {  // long and short rows of the triangle in pairs: equal work
        row_block(na - 1 - item);
      }
    }
  });
  double total = 0;
  for (const double p : partial) {
    total += p;
  }
  return total;
}

std::vector<double> positive(const Tensor& bandwidths) {
  std::vector<double> b;
  for (int64_t i = 0; i < bandwidths.size(0); ++i) {
    b.push_back(data<double>(bandwidths)[i * bandwidths.stride(0)]);
    COX_CHECK(!(b.back() <= 0), "mmd: bandwidths must be positive, got ", b.back());
  }
  return b;
}

template <class A>
std::vector<A> inverses(const std::vector<double>& b) {
  std::vector<A> inv;
  for (const double v : b) {
    inv.push_back(static_cast<A>(1 / v));
  }
  return inv;
}

Tensor mmd(Tensor x, Tensor y, Tensor bandwidths) {
  check_mmd(x, y, bandwidths);
  const std::vector<double> b = positive(bandwidths);
  const Sample sx{x}, sy{y};
  const double n = static_cast<double>(sx.rows()), m = static_cast<double>(sy.rows());
  Tensor value = make(x, {}, acc_dtype(x.scalar_type()));
  for_dtype(x.scalar_type(), [&](auto t) {
    using T = decltype(t);
    using A = acc_t<T>;
    const std::vector<A> inv = inverses<A>(b);
    const double xx = kernel_sum<T>(sx, sx, inv, true) / (n * n), yy = kernel_sum<T>(sy, sy, inv, true) / (m * m);
    const double xy = kernel_sum<T>(sx, sy, inv, false) / (n * m);
    *out<A>(value) = static_cast<A>((xx + yy - 2 * xy) / static_cast<double>(b.size()));
  });
  return value;
}

// ga_i = sum over both samples o of coeff_o * sum_j sum_s exp(-d_ij^2 / b_s) / b_s * (a_i - o_j)
template <class T>
void one_side(const Sample& a, const Sample& b, double coeff_a, double coeff_b, const std::vector<acc_t<T>>& inverse,
              T* grad) {
  using A = acc_t<T>;
  const int64_t D = a.t.size(1), dp = padded<A>(D);
  const tile_fn<A> tile4x4 = pick_tile<A>();
  torch::stable::parallel_for(0, a.blocks(), 1, [&](int64_t begin, int64_t end) {
    Buffer<A> ab(kBlock * dp), bb(kBlock * dp), part(4 * dp);
    Buffer<double> total(kBlock * dp);
    for (int64_t ba = begin; ba < end; ++ba) {
      const int64_t rows = pack_block<T>(a, ba, D, dp, ab.get());
      std::fill(total.get(), total.get() + kBlock * dp, 0.0);
      for (int side = 0; side < 2; ++side) {
        const Sample& o = side == 0 ? a : b;
        const double coeff = side == 0 ? coeff_a : coeff_b;
        for (int64_t bo = 0; bo < o.blocks(); ++bo) {
          const int64_t cols = pack_block<T>(o, bo, D, dp, bb.get());
          for (int64_t i = 0; i < rows; i += kTile) {
            std::fill(part.get(), part.get() + 4 * dp, A(0));
            for (int64_t j = 0; j < cols; j += kTile) {
              A sq[16];
              tile4x4(ab.get() + i * dp, bb.get() + j * dp, dp, sq);
              for (int64_t r = 0; r < std::min(kTile, rows - i); ++r) {
                for (int64_t c = 0; c < std::min(kTile, cols - j); ++c) {
                  A w = 0;
                  for (const A inv : inverse) {
                    w += std::exp(-sq[4 * r + c] * inv) * inv;
                  }
                  const A *p = ab.get() + (i + r) * dp, *q = bb.get() + (j + c) * dp;
                  A* s = part.get() + r * dp;
                  for (int64_t e = 0; e < dp; ++e) {
                    s[e] += w * (p[e] - q[e]);
                  }
                }
              }
            }
            double* t = total.get() + i * dp;
            for (int64_t e = 0; e < 4 * dp; ++e) {
              t[e] += coeff * static_cast<double>(part.get()[e]);
            }
          }
        }
      }
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t e = 0; e < D; ++e) {
          grad[(ba * kBlock + r) * D + e] = static_cast<T>(static_cast<A>(total.get()[r * dp + e]));
        }
      }
    }
  });
}

std::tuple<Tensor, Tensor> mmd_backward(Tensor grad, Tensor x, Tensor y, Tensor bandwidths) {
  check_mmd_backward(grad, x, y, bandwidths);
  const std::vector<double> b = positive(bandwidths);
  const Sample sx{x}, sy{y};
  const double n = static_cast<double>(sx.rows()), m = static_cast<double>(sy.rows());
  Tensor gx = make(x, {x.size(0), x.size(1)}, x.scalar_type()), gy = make(y, {y.size(0), y.size(1)}, y.scalar_type());
  for_dtype(x.scalar_type(), [&](auto t) {
    using T = decltype(t);
    using A = acc_t<T>;
    const std::vector<A> inv = inverses<A>(b);
    const double g = 4 * static_cast<double>(*data<A>(grad)) / static_cast<double>(b.size());
    one_side<T>(sx, sy, -g / (n * n), g / (n * m), inv, out<T>(gx));
    one_side<T>(sy, sx, -g / (m * m), g / (n * m), inv, out<T>(gy));
  });
  return {gx, gy};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cox_ops, CPU, m) {
  m.impl("mmd", TORCH_BOX(&mmd));
  m.impl("mmd_backward", TORCH_BOX(&mmd_backward));
}

}  // namespace cox::cpu
