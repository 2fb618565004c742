// mmd on the CPU: squared MMD of x (N, D) and y (M, D), biased V-statistic, kernel 1/B sum_s exp(-d^2 / bandwidth_s).
//
// Direct: three sums of kernels over blocks of 64 x 64 pairs of direct squared distances (tile.h); within one sample only
// the blocks on and above the diagonal, the others counting twice. One partial sum in float64 per row block, added in
// order. Backward: the kernels again, gx_i = sum_j w_ij (x_i - other_j).
//
// By products, where float32 bears it: rows minus the mean of both samples, ||a||^2 + ||b||^2 - 2 a.b with torch's own mm
// in blocks of kRows x kCols pairs that stay in the second cache level, kernels 16 at a time (mmd_body.h), those of a row
// of a block added in float32, the rest in float64; a row is at distance 0 from itself. With R the largest norm, a squared
// distance is then off by at most about kUnits * 2^-24 sqrt(D) R^2 (roundings of either sign), so a kernel value by that
// over the least bandwidth: products are used where this is at most kBear. Backward: gx_i = x_i sum_j w_ij - (W other)_i.
//
// Each block is one thread's, and partial sums are added in order: the same for any number of threads.
// O((N + M)^2 (D + B)) time, O((N + M) D) scratch.
#include <cmath>
#include <limits>

#include "matmul.h"
#include "tile.h"

#define COX_BODY "mmd_body.h"
#include "each_isa.h"

namespace cox::cpu {
namespace {

constexpr int64_t kBlock = 64;  // part of the result: partial sums follow it
constexpr int64_t kRows = 256, kCols = 1024;  // these, too
constexpr int64_t kFew = 256;  // rows of a sample up to which pairs are taken directly
constexpr double kUnits = 4, kBear = 5e-5;

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
    COX_CHECK(b.back() > 0, "mmd: bandwidths must be positive, got ", b.back());
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

struct Centred {  // a sample's rows minus the mean of both, in float32, and their squared norms
  Tensor rows;
  std::vector<float> norms;
  double largest = 0;  // norm; NaN or inf if one is

  template <class T>
  Centred(const Tensor& t, const std::vector<double>& mean, T)
      : rows(make(t, {t.size(0), t.size(1)}, ScalarType::Float)), norms(static_cast<size_t>(t.size(0))) {
    const int64_t D = t.size(1), sr = t.stride(0), sd = t.stride(1);
    const T* src = data<T>(t);
    float* dst = out<float>(rows);
    torch::stable::parallel_for(0, t.size(0), 64, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        double norm = 0;
        for (int64_t d = 0; d < D; ++d) {
          const float a = static_cast<float>(static_cast<double>(static_cast<float>(src[i * sr + d * sd])) - mean[d]);
          dst[i * D + d] = a;
          norm += static_cast<double>(a) * a;
        }
        norms[i] = static_cast<float>(norm);
      }
    });
    for (const float n : norms) {
      largest = n <= largest ? largest : n;  // a NaN stays
      if (n != n) {
        break;
      }
    }
  }
};

template <class T>
std::vector<double> mean_of(const Tensor& x, const Tensor& y) {
  const int64_t D = x.size(1);
  std::vector<double> mean(static_cast<size_t>(D), 0.0);
  for (const Tensor* t : {&x, &y}) {
    const T* p = data<T>(*t);
    for (int64_t i = 0; i < t->size(0); ++i) {
      for (int64_t d = 0; d < D; ++d) {
        mean[d] += static_cast<double>(static_cast<acc_t<T>>(p[i * t->stride(0) + d * t->stride(1)]));
      }
    }
  }
  for (double& m : mean) {
    m /= static_cast<double>(x.size(0) + y.size(0));
  }
  return mean;
}

bool float32_bears(const Centred& x, const Centred& y, const std::vector<double>& bandwidths) {
  const double least = *std::min_element(bandwidths.begin(), bandwidths.end());
  const double off = kUnits * std::ldexp(std::sqrt(static_cast<double>(x.rows.size(1))), -24);
  return off * std::max(x.largest, y.largest) <= kBear * least && x.largest + y.largest < 1e30;  // false for NaN
}

bool is_large(const Tensor& x, const Tensor& y) {
  return x.size(0) > kFew && y.size(0) > kFew && x.size(1) > 0;
}

// f(first column, number of columns, whether they are the rows' own) over all columns of b, or, within one sample, over
// those from the rows' own block on.
template <class F>
void by_columns(int64_t first_row, int64_t rows, int64_t columns, bool same, F&& f) {
  if (same) {
    f(first_row, rows, true);
  }
  for (int64_t j = same ? first_row + rows : 0; j < columns; j += kCols) {
    f(j, std::min(kCols, columns - j), false);
  }
}

double kernel_sum(const Centred& a, const Centred& b, const std::vector<float>& inverse, bool same) {
  const int64_t N = a.rows.size(0), M = b.rows.size(0), na = ceil_div(N, kRows);
  const auto kernels_of_row = COX_PICK(kernels_of_row);
  std::vector<double> partial(static_cast<size_t>(na), 0.0);
  each_block(same ? ceil_div(na, 2) : na, [&](int64_t begin, int64_t end) {
    const Tensor buffer = make(a.rows, {kRows * kCols}, ScalarType::Float);
    float* p = out<float>(buffer);
    const auto row_block = [&](int64_t block) {
      const int64_t i0 = block * kRows, rows = std::min(kRows, N - i0);
      by_columns(i0, rows, M, same, [&](int64_t j0, int64_t cols, bool own) {
        mm_rows(a.rows, i0, rows, b.rows, j0, cols, buffer);
        double sum = 0;
        for (int64_t i = 0; i < rows; ++i) {
          if (own) {
            p[i * cols + i] = a.norms[i0 + i];
          }
          sum += kernels_of_row(p + i * cols, a.norms[i0 + i], b.norms.data() + j0, cols, inverse);
        }
        partial[block] += same && !own ? 2 * sum : sum;
      });
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
    const auto set = [&](double xx, double yy, double xy) {
      *out<A>(value) = static_cast<A>((xx / (n * n) + yy / (m * m) - 2 * (xy / (n * m))) / static_cast<double>(b.size()));
    };
    if constexpr (std::is_same_v<A, float>) {
      if (is_large(x, y)) {
        const std::vector<double> mean = mean_of<T>(x, y);
        const Centred cx(x, mean, t), cy(y, mean, t);
        if (float32_bears(cx, cy, b)) {
          return set(kernel_sum(cx, cx, inv, true), kernel_sum(cy, cy, inv, true), kernel_sum(cx, cy, inv, false));
        }
      }
    }
    set(kernel_sum<T>(sx, sx, inv, true), kernel_sum<T>(sy, sy, inv, true), kernel_sum<T>(sx, sy, inv, false));
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

// The same by products.
template <class T>
void one_side(const Centred& a, const Centred& b, double coeff_a, double coeff_b, const std::vector<float>& inverse, T* grad) {
  const int64_t N = a.rows.size(0), D = a.rows.size(1);
  const auto weights_of_row = COX_PICK(weights_of_row);
  each_block(ceil_div(N, kRows), [&](int64_t begin, int64_t end) {
    const Tensor buffer = make(a.rows, {kRows * kCols}, ScalarType::Float), pulled = make(a.rows, {kRows * D}, ScalarType::Float);
    float* w = out<float>(buffer);
    Buffer<double> total(kRows * D), sums(kRows);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t i0 = block * kRows, rows = std::min(kRows, N - i0);
      std::fill(total.get(), total.get() + rows * D, 0.0);
      std::fill(sums.get(), sums.get() + rows, 0.0);
      for (int side = 0; side < 2; ++side) {
        const Centred& o = side == 0 ? a : b;
        const double coeff = side == 0 ? coeff_a : coeff_b;
        for (int64_t j0 = 0; j0 < o.rows.size(0); j0 += kCols) {
          const int64_t cols = std::min(kCols, o.rows.size(0) - j0);
          mm_rows(a.rows, i0, rows, o.rows, j0, cols, buffer);
          for (int64_t i = 0; i < rows; ++i) {
            const int64_t own = i0 + i - j0;
            if (side == 0 && own >= 0 && own < cols) {
              w[i * cols + own] = -std::numeric_limits<float>::infinity();  // a row does not pull itself
            }
            sums.get()[i] += coeff * weights_of_row(w + i * cols, a.norms[i0 + i], o.norms.data() + j0, cols, inverse);
          }
          mm_weights(buffer, rows, cols, o.rows, j0, pulled);
          const float* pull = data<float>(pulled);
          for (int64_t e = 0; e < rows * D; ++e) {
            total.get()[e] -= coeff * static_cast<double>(pull[e]);
          }
        }
      }
      const float* at = data<float>(a.rows) + i0 * D;
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t e = i * D; e < (i + 1) * D; ++e) {
          grad[i0 * D + e] = static_cast<T>(static_cast<float>(sums.get()[i] * static_cast<double>(at[e]) + total.get()[e]));
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
    const double xx = -g / (n * n), yy = -g / (m * m), xy = g / (n * m);
    if constexpr (std::is_same_v<A, float>) {
      if (is_large(x, y)) {
        const std::vector<double> mean = mean_of<T>(x, y);
        const Centred cx(x, mean, t), cy(y, mean, t);
        if (float32_bears(cx, cy, b)) {
          one_side<T>(cx, cy, xx, xy, inv, out<T>(gx));
          one_side<T>(cy, cx, yy, xy, inv, out<T>(gy));
          return;
        }
      }
    }
    one_side<T>(sx, sy, xx, xy, inv, out<T>(gx));
    one_side<T>(sy, sx, yy, xy, inv, out<T>(gy));
  });
  return {gx, gy};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cox_ops, CPU, m) {
  m.impl("mmd", TORCH_BOX(&mmd));
  m.impl("mmd_backward", TORCH_BOX(&mmd_backward));
}

}  // namespace cox::cpu
