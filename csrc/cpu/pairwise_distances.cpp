// pairwise_distances on the CPU:  d_ij = ||x_i - y_j|| (squared if asked), and its gradient. O(B M N D).
//
// float64: direct differences, blocks of packed rows through the 4 x 4 tile (tile.h). Backward: gx_i = sum_j w_ij (x_i - y_j)
// with w = grad / d (0 where d is 0), or 2 grad for squares; gy the same with the roles exchanged; j ascending.
//
// float32 and half: ||x||^2 + ||y||^2 - 2 x.y where float32 bears it, direct differences where not, pair by pair. With
// u = 2^-24 and products added up kChunk at a time, each of steps = kChunk + D / kChunk roundings of a dot product is at most
// u ||x|| ||y||, and they are of either sign. A square's error is thus near sqrt(steps) u (||x||^2 + ||y||^2) at worst, and
// never above (steps + D / 16 + 8) times that unit, norms included. A pair is far if its square is at least `least` of
// ||x||^2 + ||y||^2, least = sqrt((steps + 8) / 1280), 0.25 for D = 512: distances of far pairs were off by at most 2e-6 of
// themselves. All other pairs, those with a norm whose products overflow or underflow, and D <= kFew are direct, added up
// over the same chunks. A distance is thus a function of its two rows alone: the same in any batch, with the roles
// exchanged, and with AVX2 and AVX-512.
//
// Backward: gx_i = (x_i - c) sum_j w_ij - sum_j w_ij (y_j - c) by the same tiles over the far pairs, j ascending in chunks
// of kChunk; c, near the mean, only makes more pairs far. Pairs that are near pull directly, w_ij (x_i - y_j). Scratch: a
// packed copy of x and y.
#include <cmath>
#include <limits>

#include "tile.h"

namespace cox::cpu {
namespace {

constexpr int64_t kRows = 12, kPanel = 32;  // pairs of a tile
constexpr int64_t kMany = 4 * kRows;  // rows that a thread has at hand
constexpr int64_t kChunk = 64, kStride = kChunk + 16;  // products of one sum; between the rows of a chunk
constexpr int64_t kFew = 32;  // coordinates up to which all is direct
constexpr float kTiny = 0x1p-80f, kHuge = 0x1p118f;

struct Pull {
  int32_t row;
  float weight;
};

// Rows a lie in chunks [chunk][kMany][kStride], rows b in panels [coordinate][kPanel], kPanel rows side by side.
struct Kernels {
  // c[r][j] (+)= sum over n <= kChunk coordinates of a b, or of (a - b)^2, for `rows` <= kRows rows and kPanel others
  void (*tile)(const float* a, int64_t rows, const float* b, int64_t n, float* c, int64_t stride, bool add, bool direct);
  float (*norm)(const float* row, int64_t d);  // squared; NaN above kHuge
  float (*sum)(const float* row, int64_t n);
  // c[j], the products of row a with n others, become squared distances; returns how many were near or beside near ones.
  // direct[j]: the direct ones, if they are made already
  int64_t (*squares)(float* c, float norm, const float* norms, int64_t n, float least, const float* direct, const float* a,
                     const float* b, int64_t d);
  bool (*all_near)(const float* c, float norm, const float* norms, int64_t n, float least);  // c: squared distances
  void (*roots)(const float* c, int64_t n, bool squared, float* to);
  // w[j] = the weight of pair j if it is far, else 0; near pairs of weight not 0 to `near`, their number is returned
  int64_t (*weights)(const float* grad, const float* dist, float norm, const float* norms, int64_t n, float least,
                     bool squared, float* w, Pull* near);
  // s += sum_j w_j (rows_j - a), d coordinates, a multiple of 16
  void (*pull)(const float* a, const float* rows, int64_t d, const Pull* near, int64_t n, float* s);
};

}  // namespace
}  // namespace cox::cpu

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

// ---------------------------------------------------------------- float64

void forward(const double* xp, const Layout& lx, const double* yp, const Layout& ly, bool squared, double* op) {
  const int64_t M = lx.rows, N = ly.rows, D = lx.d, dp = padded<double>(D);
  const tile_fn<double> tile4x4 = pick_tile<double>();
  const int64_t block = block_rows(256 << 10, dp * 8, 128);
  const int64_t bm = ceil_div(M, block), bn = ceil_div(N, block);

  torch::stable::parallel_for(0, lx.batch * bm * bn, 1, [&](int64_t begin, int64_t end) {
    Buffer<double> xb(block * dp), yb(block * dp);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t j0 = item % bn * block, i0 = item / bn % bm * block, b = item / bn / bm;
      const int64_t rows = std::min(block, M - i0), cols = std::min(block, N - j0);
      pack_rows(xp + b * lx.sb + i0 * lx.sr, lx.sr, lx.sd, rows, D, dp, xb.get());
      pack_rows(yp + b * ly.sb + j0 * ly.sr, ly.sr, ly.sd, cols, D, dp, yb.get());
      for (int64_t i = 0; i < rows; i += kTile) {
        for (int64_t j = 0; j < cols; j += kTile) {
          double sq[16];
          tile4x4(xb.get() + i * dp, yb.get() + j * dp, dp, sq);
          for (int64_t r = 0; r < std::min(kTile, rows - i); ++r) {
            for (int64_t c = 0; c < std::min(kTile, cols - j); ++c) {
              const double s = sq[4 * r + c];
              op[(b * M + i0 + i + r) * N + j0 + j + c] = squared ? s : std::sqrt(s);
            }
          }
        }
      }
    }
  });
}

// ga_i = sum_j w_ij (a_i - b_j); grad and dist are addressed by (batch, row of a, row of b) strides.
void one_side(const double* ap, const Layout& la, const double* bp, const Layout& lb, const double* gp, const Layout& lg,
              const double* distp, const Layout& ld, bool squared, double* op) {
  const int64_t M = la.rows, N = lb.rows, D = la.d, dp = padded<double>(D);
  const int64_t rows_at_once = 16, bm = ceil_div(M, rows_at_once);
  const int64_t block = block_rows(128 << 10, dp * 8, 128);
  torch::stable::parallel_for(0, la.batch * bm, 1, [&](int64_t begin, int64_t end) {
    Buffer<double> ab(rows_at_once * dp), bb(block * dp), acc(rows_at_once * dp);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / bm, i0 = item % bm * rows_at_once, rows = std::min(rows_at_once, M - i0);
      pack_rows(ap + b * la.sb + i0 * la.sr, la.sr, la.sd, rows, D, dp, ab.get());
      std::fill(acc.get(), acc.get() + rows * dp, 0.0);
      for (int64_t j0 = 0; j0 < N; j0 += block) {
        const int64_t cols = std::min(block, N - j0);
        pack_rows(bp + b * lb.sb + j0 * lb.sr, lb.sr, lb.sd, cols, D, dp, bb.get());
        for (int64_t r = 0; r < rows; ++r) {
          const double* a = ab.get() + r * dp;
          double* s = acc.get() + r * dp;
          for (int64_t c = 0; c < cols; ++c) {
            const double g = gp[b * lg.sb + (i0 + r) * lg.sr + (j0 + c) * lg.sd];
            const double d = distp[b * ld.sb + (i0 + r) * ld.sr + (j0 + c) * ld.sd];
            const double w = squared ? 2 * g : (d == 0 ? 0 : g / d);
            const double* q = bb.get() + c * dp;
            for (int64_t e = 0; w != 0 && e < dp; ++e) {  // an infinite distance pulls nothing, and 0 * inf is NaN
              s[e] += w * (a[e] - q[e]);
            }
          }
        }
      }
      for (int64_t r = 0; r < rows; ++r) {
        memcpy(op + (b * M + i0 + r) * D, acc.get() + r * dp, sizeof(double) * static_cast<size_t>(D));
      }
    }
  });
}

// ---------------------------------------------------------------- float32, float16, bfloat16

// The part of ||x||^2 + ||y||^2 from which on a squared distance is made of products; from 1 on none is.
float least_of(int64_t d) {
  const double steps = static_cast<double>(std::min(d, kChunk) + d / kChunk);
  return static_cast<float>(std::sqrt((steps + 8) / 1280));
}

// n values of any stride as floats, in place where they are that already
template <class T>
const float* floats(const T* p, int64_t stride, int64_t n, float* scratch) {
  if constexpr (std::is_same_v<T, float>) {
    if (stride == 1) {
      return p;
    }
  }
  if (stride == 0) {
    std::fill(scratch, scratch + n, static_cast<float>(*p));
  } else {
    for (int64_t i = 0; i < n; ++i) {
      scratch[i] = static_cast<float>(p[i * stride]);
    }
  }
  return scratch;
}

// A block of rows of y and up to kMany rows of x, packed, and the squares of their distances.
struct Block {
  const Kernels& f;
  const int64_t D, most;  // most: columns
  const float least;
  Buffer<float> row, a, b, norms, c, directly;
  float norm[kMany];
  bool near = false;  // many of the last pairs were: all direct differences are made, and products only if need be

  Block(const Kernels& f, int64_t D, int64_t most)
      : f(f), D(D), most(most), least(least_of(D)), row(kPanel * D),
        a(std::max<int64_t>(ceil_div(D, kChunk), 1) * kMany * kStride), b(most * D), norms(most), c(kMany * most),
        directly(D > kFew ? kMany * most : 0) {
    std::fill(a.get(), a.get() + ceil_div(D, kChunk) * kMany * kStride, 0.0f);
  }

  template <class T>
  void pack_y(const T* p, int64_t sr, int64_t sd, int64_t cols) {
    const float* rows[kPanel];
    for (int64_t j = 0; j < cols; j += kPanel) {
      const int64_t n = std::min(kPanel, cols - j);
      for (int64_t r = 0; r < n; ++r) {
        rows[r] = floats(p + (j + r) * sr, sd, D, row.get() + r * D);
        norms.get()[j + r] = f.norm(rows[r], D);
      }
      std::fill(norms.get() + j + n, norms.get() + j + kPanel, 0.0f);
      std::fill(b.get() + j * D, b.get() + (n < kPanel ? (j + kPanel) * D : j * D), 0.0f);
      for (int64_t k = 0; k < D; k += 16) {  // a cache line of each row at a time
        for (int64_t r = 0; r < n; ++r) {
          for (int64_t e = k; e < std::min(k + 16, D); ++e) b.get()[j * D + e * kPanel + r] = rows[r][e];
        }
      }
    }
  }

  template <class T>
  void pack_x(const T* p, int64_t sr, int64_t sd, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) {
      const float* at = floats(p + r * sr, sd, D, row.get());
      norm[r] = f.norm(at, D);
      for (int64_t k = 0; k < D; k += kChunk) {
        memcpy(a.get() + (k / kChunk * kMany + r) * kStride, at + k,
               sizeof(float) * static_cast<size_t>(std::min(kChunk, D - k)));
      }
    }
  }

  void tiles(int64_t rows, int64_t cols, bool direct, float* to) {
    for (int64_t j = 0; j < cols; j += kPanel) {
      for (int64_t k = 0; k == 0 || k < D; k += kChunk) {
        for (int64_t r = 0; r < rows; r += kRows) {
          f.tile(a.get() + (k / kChunk * kMany + r) * kStride, std::min(kRows, rows - r), b.get() + j * D + k * kPanel,
                 std::min(kChunk, D - k), to + r * most + j, most, k > 0, direct);
        }
      }
    }
  }

  bool all_near(int64_t rows, int64_t cols) const {  // surely: products are not so far off
    for (int64_t r = 0; r < rows; ++r) {
      if (!f.all_near(directly.get() + r * most, norm[r], norms.get(), cols, least - 0x1p-10f)) return false;
    }
    return true;
  }

  // f(r, squares of row r)
  template <class F>
  void each_row(int64_t rows, int64_t cols, F&& done) {
    const bool direct = D <= kFew || least >= 1;
    if (direct) tiles(rows, cols, true, c.get());
    if (near) tiles(rows, cols, true, directly.get());
    const bool made = direct || (near && all_near(rows, cols));
    if (!made) tiles(rows, cols, false, c.get());
    int64_t found = 0;
    for (int64_t r = 0; r < rows; ++r) {
      float *to = c.get() + r * most, *made_directly = near ? directly.get() + r * most : nullptr;
      if (!made) {
        found += f.squares(to, norm[r], norms.get(), cols, least, made_directly, a.get() + r * kStride, b.get(), D);
      }
      done(r, near && made ? made_directly : to);
    }
    if (!made) near = 3 * found > rows * cols;
  }
};

template <class T>
void forward(const T* xp, const Layout& lx, const T* yp, const Layout& ly, bool squared, T* op) {
  const int64_t M = lx.rows, N = ly.rows, D = lx.d;
  const Kernels& f = *COX_PICK(kernels);
  const int64_t most = round_up(std::min(block_rows(4 << 20, D * 4, 512), N), kPanel);
  const int64_t bn = ceil_div(N, most), wanted = ceil_div(4 * torch::stable::get_num_threads(), lx.batch * bn);
  const int64_t part = round_up(ceil_div(M, std::min(wanted, ceil_div(M, 2 * kMany))), kMany), parts = ceil_div(M, part);

  torch::stable::parallel_for(0, lx.batch * bn * parts, 1, [&](int64_t begin, int64_t end) {
    Block block(f, D, most);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / parts / bn, j0 = item / parts % bn * most, cols = std::min(most, N - j0);
      if (item == begin || item % parts == 0) block.pack_y(yp + b * ly.sb + j0 * ly.sr, ly.sr, ly.sd, cols);
      for (int64_t i = item % parts * part; i < std::min(M, (item % parts + 1) * part); i += kMany) {
        const int64_t rows = std::min(kMany, M - i);
        block.pack_x(xp + b * lx.sb + i * lx.sr, lx.sr, lx.sd, rows);
        block.each_row(rows, cols, [&](int64_t r, float* squares) {
          T* to = op + (b * M + i + r) * N + j0;
          if constexpr (std::is_same_v<T, float>) {
            f.roots(squares, cols, squared, to);
          } else {
            f.roots(squares, cols, squared, squares);
            for (int64_t j = 0; j < cols; ++j) to[j] = static_cast<T>(squares[j]);
          }
        });
      }
    }
  });
}

// Rows minus c, in panels of coordinates [chunk of kChunk rows][panel][row][kPanel], and their norms. Rows whose norm is NaN
// count as 0 there: all their pairs are near.
struct Packed {
  const int64_t rows, panels;
  Buffer<float> units, norms;

  template <class T>
  Packed(const Kernels& f, const T* p, const Layout& l, const float* centre)
      : rows(l.rows), panels(ceil_div(l.d, kPanel)), units(round_up(rows, kChunk) * panels * kPanel), norms(rows) {
    torch::stable::parallel_for(0, ceil_div(rows, kChunk), 1, [&](int64_t begin, int64_t end) {
      Buffer<float> row(panels * kPanel);
      std::fill(row.get(), row.get() + panels * kPanel, 0.0f);
      for (int64_t i = begin * kChunk; i < std::min(end * kChunk, rows); ++i) {
        const float* at = floats(p + i * l.sr, l.sd, l.d, row.get());
        for (int64_t e = 0; e < l.d; ++e) row.get()[e] = at[e] - centre[e];
        const float n = norms.get()[i] = f.norm(row.get(), l.d);
        for (int64_t q = 0; q < panels; ++q) {
          float* to = units.get() + ((i / kChunk * panels + q) * kChunk + i % kChunk) * kPanel;
          if (n == n) {
            memcpy(to, row.get() + q * kPanel, sizeof(float) * kPanel);
          } else {
            std::fill(to, to + kPanel, 0.0f);
          }
        }
      }
    });
  }
  const float* chunk(int64_t j) const { return units.get() + j / kChunk * panels * kChunk * kPanel; }
};

// The mean of up to 256 rows of each, without those that are not finite.
template <class T>
void mean_of(const T* xp, const Layout& lx, const T* yp, const Layout& ly, float* mean) {
  std::vector<double> sum(static_cast<size_t>(lx.d));
  Buffer<float> scratch(lx.d);
  double count = 0;
  for (const auto& [p, l] : {std::pair(xp, lx), std::pair(yp, ly)}) {
    for (int64_t i = 0; i < l.rows; i += ceil_div(l.rows, 256)) {
      const float* row = floats(p + i * l.sr, l.sd, l.d, scratch.get());
      if (!std::all_of(row, row + l.d, [](float v) { return std::abs(v) < kHuge; })) continue;
      for (int64_t e = 0; e < l.d; ++e) sum[e] += row[e];
      ++count;
    }
  }
  for (int64_t e = 0; e < lx.d; ++e) mean[e] = count > 0 ? static_cast<float>(sum[e] / count) : 0.0f;
}

// One item of the batch, seen from the rows of a: ga_i = sum_j w_ij (a_i - b_j), with grad and dist addressed by (row of a,
// row of b) strides.
template <class T>
struct Side {
  const Kernels& f;
  const T* ap;
  const Layout& la;
  const Packed& pa;
  const T* bp;
  const Layout& lb;
  const Packed& pb;
  const float* centre;
  const T* gp;
  const Layout lg;
  const T* distp;
  const Layout ld;
  const bool squared;
  T* const op;
};

// What a thread holds of up to kMany rows of a.
template <class T>
struct Pulled {
  const Side<T>& s;
  const int64_t D, dp, wide;
  const float least;
  Buffer<float> a, total, w, gs, ds, ws;  // total: sum_j w_ij (b_j - centre) of far pairs, sum_j w_ij (b_j - a_i) of near ones
  Buffer<Pull> near, some;
  std::vector<float> b;  // rows, only where pairs are near
  int64_t i0 = 0, rows = 0, held[kMany];
  double sums[kMany];

  explicit Pulled(const Side<T>& s)
      : s(s), D(s.la.d), dp(padded<float>(D)), wide(s.pb.panels * kPanel), least(std::min(least_of(D), 1.0f)), a(kMany * dp),
        total(kMany * wide), w(kMany * kStride), gs(kChunk), ds(kChunk), ws(kMany), near(kMany * kChunk), some(kMany) {
    static_assert(kMany <= kChunk);
  }

  void start(int64_t first) {
    i0 = first;
    rows = std::min(kMany, s.la.rows - i0);
    pack_rows(s.ap + i0 * s.la.sr, s.la.sr, s.la.sd, rows, D, dp, a.get());
    std::fill(total.get(), total.get() + kMany * wide, 0.0f);
    std::fill(w.get(), w.get() + kMany * kStride, 0.0f);
    std::fill(sums, sums + kMany, 0.0);
  }

  int64_t some_weights(int64_t i, int64_t j, int64_t n, int64_t sg, int64_t sd, float norm, const float* norms, float* to,
                       Pull* pulls) {
    const float* g = floats(s.gp + i * s.lg.sr + j * s.lg.sd, sg, n, gs.get());
    const float* d = floats(s.distp + i * s.ld.sr + j * s.ld.sd, sd, n, ds.get());
    return s.f.weights(g, d, norm, norms, n, least, s.squared, to, pulls);
  }

  // w and near of all rows and b's rows [j0, j0 + cols), in the order of dist in memory
  void weights(int64_t j0, int64_t cols) {
    const float *na = s.pa.norms.get() + i0, *nb = s.pb.norms.get() + j0;
    if (s.ld.sd == 1 || s.ld.sr != 1) {
      for (int64_t r = 0; r < rows; ++r) {
        held[r] = some_weights(i0 + r, j0, cols, s.lg.sd, s.ld.sd, na[r], nb, w.get() + r * kStride, near.get() + r * kChunk);
      }
    } else {
      std::fill(held, held + rows, int64_t(0));
      for (int64_t c = 0; c < cols; ++c) {
        const int64_t n = some_weights(i0, j0 + c, rows, s.lg.sr, s.ld.sr, nb[c], na, ws.get(), some.get());
        for (int64_t r = 0; r < rows; ++r) w.get()[r * kStride + c] = ws.get()[r];
        for (const Pull* p = some.get(); p < some.get() + n; ++p) {
          near.get()[p->row * kChunk + held[p->row]++] = {static_cast<int32_t>(c), p->weight};
        }
      }
    }
    for (int64_t r = 0; r < rows; ++r) sums[r] += static_cast<double>(s.f.sum(w.get() + r * kStride, cols));
  }

  void add(int64_t j0, int64_t cols) {
    weights(j0, cols);
    for (int64_t q = 0; q < s.pb.panels; ++q) {
      for (int64_t r = 0; r < rows; r += kRows) {
        s.f.tile(w.get() + r * kStride, std::min(kRows, rows - r), s.pb.chunk(j0) + q * kChunk * kPanel, cols,
                 total.get() + r * wide + q * kPanel, wide, true, false);
      }
    }
    if (std::all_of(held, held + rows, [](int64_t n) { return n == 0; })) return;
    b.resize(static_cast<size_t>(kChunk * dp));
    pack_rows(s.bp + j0 * s.lb.sr, s.lb.sr, s.lb.sd, cols, D, dp, b.data());
    for (int64_t r = 0; r < rows; ++r) {
      s.f.pull(a.get() + r * dp, b.data(), dp, near.get() + r * kChunk, held[r], total.get() + r * wide);
    }
  }

  void finish() const {
    for (int64_t r = 0; r < rows; ++r) {
      const float sum = static_cast<float>(sums[r]), *at = a.get() + r * dp, *t = total.get() + r * wide;
      const float norm = s.pa.norms.get()[i0 + r];
      for (int64_t e = 0; e < D; ++e) {
        s.op[(i0 + r) * D + e] = static_cast<T>((norm == norm ? (at[e] - s.centre[e]) * sum : 0.0f) - t[e]);
      }
    }
  }
};

template <class T>
void one_side(const Side<T>& side) {
  torch::stable::parallel_for(0, ceil_div(side.la.rows, kMany), 1, [&](int64_t begin, int64_t end) {
    Pulled<T> rows(side);
    for (int64_t item = begin; item < end; ++item) {
      rows.start(item * kMany);
      for (int64_t j = 0; j < side.lb.rows; j += kChunk) rows.add(j, std::min(kChunk, side.lb.rows - j));
      rows.finish();
    }
  });
}

template <class T>
void backward(const T* xp, const Layout& lx, const T* yp, const Layout& ly, const T* gp, const Layout& lg, const T* dp,
              const Layout& ld, bool squared, T* gx, T* gy) {
  const auto turned = [](const Layout& l) { return Layout{l.batch, l.d, l.rows, l.sb, l.sd, l.sr}; };
  if constexpr (std::is_same_v<T, double>) {
    if (lx.rows > 0) one_side(xp, lx, yp, ly, gp, lg, dp, ld, squared, gx);
    if (ly.rows > 0) one_side(yp, ly, xp, lx, gp, turned(lg), dp, turned(ld), squared, gy);
  } else {
    const Kernels& f = *COX_PICK(kernels);
    const auto one = [&](int64_t b) {
      Buffer<float> centre(lx.d);
      const T *x = xp + b * lx.sb, *y = yp + b * ly.sb, *g = gp + b * lg.sb, *d = dp + b * ld.sb;
      mean_of(x, lx, y, ly, centre.get());
      const Packed px(f, x, lx, centre.get()), py(f, y, ly, centre.get());
      one_side(Side<T>{f, x, lx, px, y, ly, py, centre.get(), g, lg, d, ld, squared, gx + b * lx.rows * lx.d});
      one_side(Side<T>{f, y, ly, py, x, lx, px, centre.get(), g, turned(lg), d, turned(ld), squared, gy + b * ly.rows * ly.d});
    };
    const bool many = lx.batch >= 2 * torch::stable::get_num_threads();  // then a thread takes whole items
    torch::stable::parallel_for(0, many ? lx.batch : 1, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < (many ? end : lx.batch); ++b) one(b);
    });
  }
}

Tensor pairwise_distances(Tensor x, Tensor y, bool squared) {
  check_pairwise_distances(x, y);
  std::vector<int64_t> size(x.sizes().begin(), x.sizes().end());
  size.back() = y.size(y.dim() - 2);
  Tensor dist = make(x, size, x.scalar_type());
  if (dist.numel() > 0) {
    for_dtype(x.scalar_type(), [&](auto t) {
      using T = decltype(t);
      forward(data<T>(x), layout(x), data<T>(y), layout(y), squared, out<T>(dist));
    });
  }
  return dist;
}

std::tuple<Tensor, Tensor> pairwise_distances_backward(Tensor grad, Tensor x, Tensor y, Tensor dist, bool squared) {
  check_pairwise_distances_backward(grad, x, y, dist);
  Tensor gx = make(x, {x.sizes().begin(), x.sizes().end()}, x.scalar_type());
  Tensor gy = make(y, {y.sizes().begin(), y.sizes().end()}, y.scalar_type());
  for_dtype(x.scalar_type(), [&](auto t) {
    using T = decltype(t);
    if (gx.numel() + gy.numel() > 0) {
      backward(data<T>(x), layout(x), data<T>(y), layout(y), data<T>(grad), layout(grad), data<T>(dist), layout(dist), squared,
               out<T>(gx), out<T>(gy));
    }
  });
  return {gx, gy};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cox_ops, CPU, m) {
  m.impl("pairwise_distances", TORCH_BOX(&pairwise_distances));
  m.impl("pairwise_distances_backward", TORCH_BOX(&pairwise_distances_backward));
}

}  // namespace cox::cpu
