// nearest_anchor on the CPU:  score_j = min_i 1/K sum_k ||z_j - v_{k,i}||,  index_j = the lowest i that reaches it.
//
// What is computed. The score of a pair is the sum of K roots of direct squared distances in float64, in a fixed order
// (screen.h: squares), divided by K. For float32, float16 and bfloat16 it is rounded to float32, and the index is the
// lowest i among the least rounded scores. An item with a squared distance that float32 cannot hold counts as infinite;
// NaN and infinite scores are never chosen. The result is thus one number of the data alone: tiles, threads, batches
// and instruction sets cannot change a bit of it. float64 inputs take all pairs directly through tile.h.
//
// How. Bank and queries are quantised to 8 bits a coordinate, and integer dot products give every pair a lower bound
// (screen). Pairs whose bound exceeds the query's best score so far are out; the others are kept in a short list, from
// which the most promising are rescored whenever it fills up, so that the bound falls early; in the end all that are
// left are rescored in order of their bounds. A query whose list overflows (more than kMost items too close to call) is
// screened again with 16 bits, then compared directly with every item. 2 K M N D integer operations, 96 MiB of packed
// bank at a time, 8 KiB per query in work: never M x N.
//
// The certificate. Let z, v be centred rows (minus one vector for all), z^ = s q, v^ = t p their rounded versions with
// integers q, p, e_z = ||z - z^|| and e_v = ||v - v^|| the rounding's norms, known row by row. q.p is exact.
//   (norms)     z.v - z^.v^ = z.(v - v^) + (z - z^).v^, hence ||z - v||^2 >= x - 2 (||z|| e_v + e_z ||v^||)
//               with x = ||z||^2 + ||v||^2 - 2 st (q.p)
//   (triangle)  ||z - v|| >= ||z^ - v^|| - e_z - e_v, ||z^ - v^||^2 = x - d_z - d_v with d = ||.||^2 - ||.^||^2
// The first is the better one where distances exceed norms, the second for near copies: chosen for a query and a panel
// of kBank items, whose largest ||v^|| (norms) or e (triangle) stands for them all (screen_body.h: bounds). Both bounds
// go through
//   sum_k sqrt(max(0, x_k - loss_k)) - slack <= K (best score).
// Rounding: x takes float32 roundings of terms that sum to at most 8 (||z||^2 + ||v||^2): less than 32 times 2^-24 of
// it, kGamma with the span's largest ||v||^2, is part of the loss, and kFloor for underflow. The roots (relative error
// 2^-14 at most) and their sum are covered by kMargin = 1 + 2^-12 on the limit, kFloorRoot covers max(kFloor, .), and
// the best score enters as the upper end of what rounds to it. e, ||v^|| and ||z|| are computed in float64 and rounded
// up. Everything is in units of 1 / unit, a power of two that brings the norms of a sample near 1. Rows of norm below
// 2^-55 count as 0 with e their norm; bank rows above 2^40 by ||z - v||^2 >= (2^40 - 2^30)^2 > kFar; queries above 2^30
// are compared directly.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <mutex>
#include <numeric>

#include "screen.h"

namespace cox::cpu {
namespace {

// ---------------------------------------------------------------- float64: all pairs directly

void run_double(const Tensor& z, const Tensor& v, int64_t tile, const Tensor& score, const Tensor& index) {
  using T = double;
  using A = double;
  constexpr A inf = std::numeric_limits<A>::infinity();
  const int64_t M = z.size(0), D = z.size(1), K = v.size(0), N = v.size(1), dp = padded<A>(D);
  const T* zp = data<T>(z);
  const T* vp = data<T>(v);
  const int64_t zs0 = z.stride(0), zs1 = z.stride(1), vs0 = v.stride(0), vs1 = v.stride(1), vs2 = v.stride(2);
  const tile_fn<A> tile4x4 = pick_tile<A>();

  // None of the sizes below changes a result: see tile.h.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t row_bytes = dp * static_cast<int64_t>(sizeof(A));
  const int64_t bank_rows = tile > 0 ? tile : block_rows(256 << 10, K * row_bytes, 256);
  const int64_t query_rows =
      tile > 0 ? tile
               : std::min(block_rows(1 << 20, row_bytes, 256), round_up(ceil_div(M, 2 * threads), kTile));
  const int64_t query_blocks = ceil_div(M, query_rows), bank_blocks = ceil_div(N, bank_rows);
  const int64_t wanted = ceil_div(2 * threads, query_blocks);
  const int64_t parts = std::max<int64_t>(1, std::min(tile > 0 ? std::max<int64_t>(wanted, 3) : wanted, bank_blocks));

  std::vector<A> part_score(static_cast<size_t>(parts * M), inf);
  std::vector<int64_t> part_index(static_cast<size_t>(parts * M), -1);

  torch::stable::parallel_for(0, query_blocks * parts, 1, [&](int64_t begin, int64_t end) {
    const int64_t bank_pad = round_up(bank_rows, kTile);
    Buffer<A> zb(round_up(query_rows, kTile) * dp), vb(K * bank_pad * dp);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t part = item % parts, j0 = item / parts * query_rows, rows = std::min(query_rows, M - j0);
      A* best = part_score.data() + part * M + j0;
      int64_t* arg = part_index.data() + part * M + j0;
      pack_rows(zp + j0 * zs0, zs0, zs1, rows, D, dp, zb.get());
      for (int64_t b = bank_blocks * part / parts; b < bank_blocks * (part + 1) / parts; ++b) {
        const int64_t i0 = b * bank_rows, cols = std::min(bank_rows, N - i0);
        for (int64_t k = 0; k < K; ++k) {
          pack_rows(vp + k * vs0 + i0 * vs1, vs1, vs2, cols, D, dp, vb.get() + k * bank_pad * dp);
        }
        for (int64_t j = 0; j < rows; j += kTile) {
          for (int64_t i = 0; i < cols; i += kTile) {
            A sq[16], total[16] = {};
            for (int64_t k = 0; k < K; ++k) {
              tile4x4(zb.get() + j * dp, vb.get() + (k * bank_pad + i) * dp, dp, sq);
              for (int p = 0; p < 16; ++p) {
                total[p] += std::sqrt(sq[p]);
              }
            }
            const int64_t rr = std::min(kTile, rows - j), cc = std::min(kTile, cols - i);
            for (int64_t r = 0; r < rr; ++r) {
              for (int64_t c = 0; c < cc; ++c) {
                const A s = total[4 * r + c] / static_cast<A>(K);
                if (s < best[j + r]) {
                  best[j + r] = s;
                  arg[j + r] = i0 + i + c;
                }
              }
            }
          }
        }
      }
    }
  });

  A* sp = out<A>(score);
  int64_t* ip = out<int64_t>(index);
  for (int64_t j = 0; j < M; ++j) {
    A best = inf;
    int64_t arg = -1;
    for (int64_t part = 0; part < parts; ++part) {
      if (part_score[part * M + j] < best) {
        best = part_score[part * M + j];
        arg = part_index[part * M + j];
      }
    }
    sp[j] = best;
    ip[j] = arg;
  }
}

// ---------------------------------------------------------------- float32, float16, bfloat16: screen and rescore

constexpr double kOverflow = 0x1.ffffffp127;  // squares from here on round to +inf in float32
constexpr float kFar = 0x1p78f;               // the n that stands for a bank row of norm above 2^40
constexpr int64_t kMost = 1024, kTighten = 32;  // survivors of a query in store; how many of them call for a rescore
constexpr int64_t kStride = kMost + 8;          // keeps the lists' beginnings out of each other's cache lines
constexpr double kRescore = 40;  // what an exact score costs, in 8-bit products of the same pair
constexpr float kInf = std::numeric_limits<float>::infinity();

struct Best {
  float score = kInf;
  int64_t index = -1;
  void take(float s, int64_t i) {
    if (s < score || (s == score && i < index)) {
      score = s;
      index = i;
    }
  }
};

struct Entry {  // a survivor: K times a lower bound of its score, its row in the bank
  float low;
  int32_t row;
};

struct Mode {
  bool mean;  // one product with the mean of the mappings
  bool wide;  // 16 bits
};

struct Bank {  // `rows` items from begin on, or scattered over all N, quantised
  const Mode mode;
  const int64_t begin, rows, stride, N, maps, steps;
  Buffer<int32_t> units;    // [panel][map][step][kBank]
  Buffer<BankPanel> panel;  // [panel][map]
  Bank(Mode mode, int64_t begin, int64_t rows, int64_t stride, int64_t N, int64_t K, int64_t steps)
      : mode(mode), begin(begin), rows(rows), stride(stride), N(N), maps(mode.mean ? 1 : K), steps(steps),
        units(panels() * maps * steps * kBank), panel(panels() * maps) {}
  int64_t panels() const { return ceil_div(rows, kBank); }
  int64_t item(int64_t row) const { return (begin + row * stride) % N; }
};

// A stride that scatters samples over n items, none twice: no period of the data's order lines up with it.
inline int64_t scattered(int64_t n) {
  int64_t stride = static_cast<int64_t>(0.6180339887 * static_cast<double>(n)) + 1;
  while (std::gcd(stride, n) > 1) ++stride;
  return stride;
}

struct Entered {  // a thread that uses the screen
  const Screen& screen;
  explicit Entered(const Screen& screen) : screen(screen) { screen.enter(); }
  ~Entered() { screen.leave(); }
};

struct Row {  // one quantised row in the screen's units
  float scale, n, h, e, d;
  int64_t sum;
};

// f(next) on each thread; next() hands out 0, 1, ... and -1 when there are no more.
template <class F>
void share(int64_t items, F f) {
  std::atomic<int64_t> handed{0};
  const auto next = [&] {
    const int64_t i = handed.fetch_add(1);
    return i < items ? i : -1;
  };
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), items);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    if (begin < end) f(next);
  });
}

template <class T>
class Search {
 public:
  Search(const Tensor& z, const Tensor& v, int64_t tile)
      : M(z.size(0)), D(z.size(1)), K(v.size(0)), N(v.size(1)), dp(round_up(D, 16)), tile(tile),
        threads(torch::stable::get_num_threads()), zp(data<T>(z)), vp(data<T>(v)), zs0(z.stride(0)), zs1(z.stride(1)),
        vs0(v.stride(0)), vs1(v.stride(1)), vs2(v.stride(2)), screen(pick_screen()), centre(dp),
        best(static_cast<size_t>(M)) {}

  void run(const Tensor& score, const Tensor& index) {
    std::vector<int64_t> all(static_cast<size_t>(M));
    for (int64_t j = 0; j < M; ++j) all[j] = j;
    // Too little to be worth the packing; a sum of very many roots would need a wider margin.
    if ((tile == 0 && (M < 6 || N < 4 * kBank)) || K > 512) {
      direct(all, 0, N);
    } else {
      look();
      // 96 MiB of packed bank at a time
      const int64_t most = (int64_t(96) << 20) / std::max<int64_t>(K * dp, 1) / kBank * kBank;
      const int64_t chunk = tile > 0 ? tile : std::max<int64_t>(most, kBank);
      Mode mode{tile > 0 && tile % 2 == 0, false};
      if (tile == 0 && M >= 1024 && N >= 1024) mode = choose();
      if (D > (1 << 17)) mode = {false, true};  // 8 bits could overflow
      for (int64_t i = 0; i < N; i += chunk) screened(all, i, std::min(chunk, N - i), mode);
    }
    float* scores = out<float>(score);
    int64_t* places = out<int64_t>(index);
    for (int64_t j = 0; j < M; ++j) {
      scores[j] = best[j].score;
      places[j] = best[j].index;
    }
  }

 private:
  const int64_t M, D, K, N, dp, tile, threads;
  const T *zp, *vp;
  const int64_t zs0, zs1, vs0, vs1, vs2;
  const Screen& screen;
  Buffer<double> centre;  // (dp), zero padded
  double unit = 1;        // the screen's units in those of the data: a power of two
  double spread = 0;      // of an item's mappings around their mean, squared, by that mean's squared norm
  std::vector<Best> best;

  static const float* as_floats(const T* p, int64_t stride, int64_t d, float* scratch) {
    if constexpr (std::is_same_v<T, float>) {
      if (stride == 1) return p;
    }
    for (int64_t i = 0; i < d; ++i) scratch[i] = static_cast<float>(p[i * stride]);
    return scratch;
  }
  const float* query(int64_t j, float* scratch) const { return as_floats(zp + j * zs0, zs1, D, scratch); }
  const float* bank(int64_t k, int64_t i, float* scratch) const {
    return as_floats(vp + k * vs0 + i * vs1, vs2, D, scratch);
  }

  void fetch(int64_t i) const {  // into the cache
    if (vs2 != 1) return;
    for (int64_t k = 0; k < K; ++k) {
      const T* v = vp + k * vs0 + i * vs1;
      for (int64_t d = 0; d < D; d += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(v + d);
    }
  }

  // Scores of `rows` <= 4 bank items for one query: float64, rounded once at the end. scratch (4, dp)
  void exact(const float* z, const int64_t* item, int64_t rows, float* scratch, float* score) const {
    double total[4] = {};
    bool finite[4] = {true, true, true, true};
    for (int64_t k = 0; k < K; ++k) {
      const float* v[4];
      double square[4];
      for (int64_t r = 0; r < rows; ++r) v[r] = bank(k, item[r], scratch + r * dp);
      screen.squares(z, v, rows, D, square);
      for (int64_t r = 0; r < rows; ++r) {
        total[r] += std::sqrt(square[r]);
        finite[r] = finite[r] && square[r] < kOverflow;
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      score[r] = finite[r] ? static_cast<float>(total[r] / static_cast<double>(K)) : kInf;
    }
  }

  // Every pair of these queries with rows [begin, begin + rows).
  void direct(const std::vector<int64_t>& ids, int64_t begin, int64_t rows) {
    const int64_t group = 16, groups = ceil_div(ids.size(), group);
    const int64_t block = block_rows(256 << 10, K * dp * 4, 1 << 20), blocks = ceil_div(rows, block);
    const int64_t parts = std::clamp<int64_t>(ceil_div(4 * threads, std::max<int64_t>(groups, 1)), 1,
                                              std::max<int64_t>(blocks, 1));
    std::mutex merging;
    share(groups * parts, [&](auto next) {
      Buffer<float> zb(dp), vb(4 * dp);
      for (int64_t item = next(); item >= 0; item = next()) {
        const int64_t part = item % parts, j0 = item / parts * group;
        const int64_t count = std::min<int64_t>(group, ids.size() - j0);
        Best found[16];
        for (int64_t b = blocks * part / parts; b < blocks * (part + 1) / parts; ++b) {
          const int64_t first = begin + b * block, last = std::min(first + block, begin + rows);
          for (int64_t j = 0; j < count; ++j) {
            const float* z = query(ids[j0 + j], zb.get());
            for (int64_t i = first; i < last; i += 4) {
              const int64_t items[4] = {i, i + 1, i + 2, i + 3}, n = std::min<int64_t>(4, last - i);
              float score[4];
              exact(z, items, n, vb.get(), score);
              for (int64_t r = 0; r < n; ++r) found[j].take(score[r], items[r]);
            }
          }
        }
        const std::lock_guard<std::mutex> lock(merging);
        for (int64_t j = 0; j < count; ++j) best[ids[j0 + j]].take(found[j].score, found[j].index);
      }
    });
  }

  // Centre, unit and spread from up to 256 bank rows, or queries. None changes a result.
  void look() {
    std::fill(centre.get(), centre.get() + dp, 0.0);
    Buffer<float> f(dp);
    Buffer<double> x(dp), mean(dp), zero(dp);
    std::fill(zero.get(), zero.get() + dp, 0.0);
    std::fill(f.get(), f.get() + dp, 0.0f);
    const auto finite = [](double n) { return n < std::numeric_limits<double>::infinity(); };
    const int64_t count = std::min<int64_t>(N, 256), stride = scattered(N);
    double norm = 0, n = 0, seen = 0, whole = 0, within = 0;
    std::vector<double> sum(static_cast<size_t>(dp));
    for (int64_t s = 0; s < count * K; ++s) {
      screen.centred(padded(bank(s % K, s / K * stride % N, f.get()), f.get()), zero.get(), false, x.get(), dp, &n);
      if (!finite(n)) continue;
      ++seen;
      for (int64_t d = 0; d < D; ++d) sum[d] += x.get()[d];
    }
    for (int64_t d = 0; d < D && seen > 0; ++d) centre.get()[d] = sum[d] / seen;
    for (int64_t s = 0; s < count; ++s) {
      double each = 0;
      for (int64_t k = 0; k < K; ++k) {
        const float* row = padded(bank(k, s * stride % N, f.get()), f.get());
        screen.centred(row, centre.get(), false, x.get(), dp, &n);
        if (finite(n)) norm = std::max(norm, n);
        each += n / static_cast<double>(K);
        screen.centred(row, centre.get(), k > 0, mean.get(), dp, &n);
      }
      n /= static_cast<double>(K * K);
      if (finite(each) && finite(n)) {
        whole += n;
        within += each - n;
      }
    }
    for (int64_t s = 0; s < std::min<int64_t>(M, 256) && norm == 0; ++s) {
      screen.centred(padded(query(s, f.get()), f.get()), centre.get(), false, x.get(), dp, &n);
      if (finite(n)) norm = std::max(norm, n);
    }
    unit = norm > 0 ? std::ldexp(1.0, -std::ilogb(norm) / 2) : 1;
    spread = within / whole;
  }

  int64_t steps_of(Mode mode) const { return mode.wide ? ceil_div(D, 2) : round_up(ceil_div(D, 4), screen.deep8); }

  const float* padded(const float* row, float* scratch) const {
    if (row != scratch && D < dp) {
      memcpy(scratch, row, sizeof(float) * static_cast<size_t>(D));
      return scratch;
    }
    return row;
  }

  // x, as centred() left it, to dst[step * stride]. `more` is added to the rounding.
  Row quantise(const double* x, double most, double n, double more, Mode mode, int top, int offset, int64_t stride,
               int32_t* dst) const {
    Row row{};
    const int64_t steps = steps_of(mode), made = std::min(steps, dp / (mode.wide ? 2 : 4));
    const double norm = std::sqrt(n) * unit, up = 1 + 0x1p-20;
    row.n = static_cast<float>(n * unit * unit);
    if (most * unit < 0x1p-55) {  // far below the others: stands for 0
      blank(offset, steps, stride, dst);
      row.e = static_cast<float>((norm + more * unit) * up);
      row.d = row.n;
      return row;
    }
    double scale = most * unit / top;
    if (mode.wide) scale = std::max(most * unit / 32766, norm / (46339 - std::sqrt(static_cast<double>(dp))));
    row.scale = static_cast<float>(scale);
    const double t = static_cast<double>(row.scale);
    const Rounded f = screen.round(x, t / unit, dp, steps, mode.wide, offset, stride, dst);
    if (made < steps) blank(offset, steps - made, stride, dst + made * stride);
    row.e = static_cast<float>((std::sqrt(f.rest2) * unit + norm * 0x1p-40 + more * unit) * up);
    row.h = static_cast<float>(std::sqrt(f.q2) * t * up);
    row.d = static_cast<float>(n * unit * unit - f.q2 * t * t);
    row.sum = f.sum;
    return row;
  }

  static void blank(int offset, int64_t steps, int64_t stride, int32_t* dst) {  // a row of zeros
    int32_t u;
    memset(&u, offset, 4);
    for (int64_t s = 0; s < steps; ++s) dst[s * stride] = u;
  }

  void pack(Bank& b) const {
    const Mode mode = b.mode;
    const int offset = mode.wide ? 0 : screen.offset8;
    share(b.panels(), [&](auto next) {
      Buffer<float> f(dp);
      Buffer<double> x(dp);
      std::fill(f.get(), f.get() + dp, 0.0f);
      for (int64_t p = next(); p >= 0; p = next()) {
        for (int64_t k = 0; k < b.maps; ++k) {
          const int64_t at = p * b.maps + k;
          BankPanel& to = b.panel.get()[at];
          BankSpan span{0, 0, 0};
          for (int64_t c = 0; c < kBank; ++c) {
            const int64_t i = b.item(p * kBank + c);
            Row row{0, kInf, 0, 0, 0, 0};  // never below a limit: beyond the end, NaN, Inf
            double n = kInf, most = 0, more = 0;
            if (p * kBank + c < b.rows) {
              most = screen.centred(padded(bank(k, i, f.get()), f.get()), centre.get(), false, x.get(), dp, &n);
              if (mode.mean && K > 1) {
                double sizes = std::sqrt(n);
                for (int64_t m = 1; m < K; ++m) {
                  double one = 0;  // of the sum so far
                  screen.centred(padded(bank(m, i, f.get()), f.get()), centre.get(), true, x.get(), dp, &one);
                  sizes += std::sqrt(one);
                }
                most = 0;
                n = 0;
                for (int64_t d = 0; d < dp; ++d) {
                  x.get()[d] /= static_cast<double>(K);
                  most = std::max(most, std::abs(x.get()[d]));
                  n += x.get()[d] * x.get()[d];
                }
                more = sizes * 0x1p-40;
              }
            }
            int32_t* dst = b.units.get() + at * b.steps * kBank + c;
            if (n < std::numeric_limits<double>::infinity() && std::sqrt(n) * unit <= 0x1p40) {
              row = quantise(x.get(), most, n, more, mode, screen.bank_most8, offset, kBank, dst);
              span = {std::max(span.n, row.n), std::max(span.h, row.h), std::max(span.e, row.e)};
            } else {
              if (n < std::numeric_limits<double>::infinity()) row.n = kFar;
              blank(offset, b.steps, kBank, dst);
            }
            to.t[c] = row.scale;
            to.n[c] = row.n;
            to.e[c] = row.e;
            to.d[c] = row.d;
          }
          to.most = span;
        }
      }
    });
  }

  // K times the best score so far in the screen's units, rounded upwards: what a candidate must not exceed.
  float reach(const Best& b) const {
    const double score = b.index < 0 ? 0x1.0001p64 : static_cast<double>(b.score) * (1 + 0x1p-22) + 0x1p-149;
    return static_cast<float>(std::min(score * unit * (1 + 0x1p-22), 0x1p100)) * static_cast<float>(K) * (1 + 0x1p-22f);
  }

  // The chunk's best for these queries, merged into best[]; returns those that had too many survivors. *rescored
  // counts the exact scores.
  std::vector<int64_t> pass(const Bank& b, const std::vector<int64_t>& ids, int64_t* rescored) {
    const int64_t count = ids.size(), panels = b.panels(), steps = b.steps, maps = b.maps;
    const float scale = static_cast<float>(maps) / static_cast<float>(K) * (1 + 0x1p-22f);
    int64_t size = tile > 0 ? tile : std::clamp<int64_t>((512 << 10) / std::max<int64_t>(4 * steps, 1), 48, 1008);
    int64_t blocks = std::max(ceil_div(count, size), std::min(threads, ceil_div(count, 4 * kQuery)));
    if (tile == 0) {
      blocks = round_up(blocks, std::min(threads, std::max<int64_t>(ceil_div(count, kQuery), 1)));
      size = ceil_div(count, blocks);
    }
    size = round_up(size, kQuery);
    blocks = ceil_div(count, size);
    const int64_t wanted = tile > 0 ? 3 : ceil_div(threads, std::max<int64_t>(blocks, 1));
    const int64_t parts = std::clamp<int64_t>(wanted, 1, panels);
    std::vector<char> full(static_cast<size_t>(count), 0);
    std::vector<Best> merged(static_cast<size_t>(count));
    std::atomic<int64_t> scores{0};
    std::mutex merging;

    // of a query's units: from one query to the next, from one step to the next
    const bool in_rows = !b.mode.wide && screen.deep8 > 1;
    const int64_t across = in_rows ? steps : 1, along = in_rows ? 1 : kQuery;
    share(blocks * parts, [&](auto next) {
      const Entered entered(screen);
      const int64_t tiles = size / kQuery;
      Buffer<int32_t> units(tiles * steps * kQuery);
      Buffer<QueryPanel> panel(tiles);
      Buffer<float> total(tiles * kQuery * kBank), add(tiles * maps * 16), weigh(tiles * 32), slack(tiles * 16),
          limit(tiles * 16), reached(tiles * 16), zb(dp), vb(dp);
      Buffer<double> x(dp);
      Buffer<Entry> store(size * kStride);
      std::vector<int64_t> held(static_cast<size_t>(size)), when(static_cast<size_t>(size));
      std::vector<Best> found(static_cast<size_t>(size));
      std::vector<char> flooded(static_cast<size_t>(size));
      alignas(64) int32_t dots[kQuery * kBank];
      int64_t evaluated = 0;
      std::fill(zb.get(), zb.get() + dp, 0.0f);
      std::fill(panel.get(), panel.get() + tiles, QueryPanel{});
      std::fill(reached.get(), reached.get() + tiles * 16, -kInf);

      for (int64_t item = next(); item >= 0; item = next()) {
        const int64_t part = item % parts, j0 = item / parts * size, mine = std::min(size, count - j0);
        const int64_t used = ceil_div(mine, kQuery);

        for (int64_t j = 0; j < used * kQuery; ++j) {
          QueryPanel& p = panel.get()[j / kQuery];
          const int64_t r = j % kQuery;
          float& u = reached.get()[j / kQuery * 16 + r];
          Row row{};
          int32_t* dst = units.get() + j / kQuery * steps * kQuery + r * across;
          bool usable = false;
          u = -kInf;  // nothing is below
          if (j < mine) {
            found[j] = best[ids[j0 + j]];
            held[j] = flooded[j] = 0;
            when[j] = kTighten;
            double n;
            const float* z = padded(query(ids[j0 + j], zb.get()), zb.get());
            const double most = screen.centred(z, centre.get(), false, x.get(), dp, &n);
            if (std::sqrt(n) * unit < 0x1p30) {
              usable = true;
              row = quantise(x.get(), most, n, 0, b.mode, 127, 0, along, dst);
              u = reach(found[j]) * scale;
            } else if (n < std::numeric_limits<double>::infinity()) {
              flooded[j] = 1;  // so far off that float32 does not tell the bank's rows apart
            }
          }
          if (!usable) blank(0, steps, along, dst);
          p.n[r] = row.n;
          p.h[r] = static_cast<float>(std::sqrt(static_cast<double>(row.n)) * (1 + 0x1p-20));
          p.e[r] = row.e;
          p.d[r] = row.d;
          p.mul[r] = -2 * row.scale;
          p.init[r] = static_cast<int32_t>(b.mode.wide ? 0 : -row.sum * screen.offset8);
        }

        const auto rescore = [&](int64_t j, int64_t row) {
          const float* z = query(ids[j0 + j], zb.get());
          const int64_t i = b.item(row);
          float score;
          exact(z, &i, 1, vb.get(), &score);
          found[j].take(score, i);
          ++evaluated;
          reached.get()[j / kQuery * 16 + j % kQuery] = reach(found[j]) * scale;
        };
        const auto drop = [&](int64_t j) {  // the survivors that the best score now rules out
          Entry* e = store.get() + j * kStride;
          const float u = reached.get()[j / kQuery * 16 + j % kQuery];
          held[j] = std::remove_if(e, e + held[j], [&](const Entry& s) { return s.low > u; }) - e;
        };
        const auto lower = [](const Entry& a, const Entry& b) { return a.low < b.low; };
        const auto tighten = [&](int64_t j) {  // rescores the most promising survivor
          Entry* e = store.get() + j * kStride;
          Entry* least = std::min_element(e, e + held[j], lower);
          const int64_t row = least->row;
          *least = e[--held[j]];
          rescore(j, row);
          drop(j);
          when[j] = std::max(kTighten, 2 * held[j]);
        };
        const auto ready = [&](int64_t j) {
          Entry* e = store.get() + j * kStride;
          drop(j);
          std::sort(e, e + held[j], lower);
          if (held[j]) fetch(b.item(e[0].row));
        };
        const auto finish = [&](int64_t j) {
          const Entry* e = store.get() + j * kStride;
          for (int64_t s = 0; s < held[j] && e[s].low <= reached.get()[j / kQuery * 16 + j % kQuery]; ++s) {
            if (s + 1 < held[j]) fetch(b.item(e[s + 1].row));
            rescore(j, e[s].row);
          }
        };

        for (int64_t p = panels * part / parts; p < panels * (part + 1) / parts; ++p) {
          for (int64_t g = 0; g < used; ++g) {
            screen.bounds(panel.get()[g], reached.get() + 16 * g, b.panel.get() + p * maps, maps,
                          add.get() + 16 * maps * g, weigh.get() + 32 * g, slack.get() + 16 * g, limit.get() + 16 * g);
          }
          for (int64_t k = 0; k < maps; ++k) {
            const int64_t at = p * maps + k;
            for (int64_t g = 0; g < used; ++g) {
              (b.mode.wide ? screen.dots16 : screen.dots8)(units.get() + g * steps * kQuery,
                                                           b.units.get() + at * steps * kBank, steps,
                                                           panel.get()[g].init, dots);
              float* sums = total.get() + g * kQuery * kBank;
              screen.roots(dots, b.panel.get()[at], add.get() + 16 * (maps * g + k), weigh.get() + 32 * g,
                           panel.get()[g].mul, k == 0, sums);
              uint32_t mask[kQuery];
              if (k + 1 < maps || !screen.below(sums, limit.get() + 16 * g, mask)) continue;
              for (int64_t r = 0; r < kQuery; ++r) {
                const int64_t j = g * kQuery + r;
                for (uint32_t m = mask[r]; m && j < mine; m &= m - 1) {
                  const int64_t c = __builtin_ctz(m);
                  const float low = sums[r * kBank + c] * (2 - kMargin) - slack.get()[16 * g + r] -
                                    kFloorRoot * static_cast<float>(maps);
                  store.get()[j * kStride + held[j]++] = {low, static_cast<int32_t>(p * kBank + c)};
                }
                if (mask[r] && j < mine && (held[j] >= when[j] || held[j] > kMost - kBank)) {
                  tighten(j);
                  if (held[j] > kMost - kBank) {
                    flooded[j] = 1;
                    held[j] = 0;
                    reached.get()[16 * g + r] = -kInf;
                  }
                }
              }
            }
          }
        }
        ready(0);
        for (int64_t j = 0; j < mine; ++j) {
          if (j + 1 < mine) ready(j + 1);
          finish(j);
        }
        const std::lock_guard<std::mutex> lock(merging);
        for (int64_t j = 0; j < mine; ++j) {
          merged[j0 + j].take(found[j].score, found[j].index);
          full[j0 + j] |= flooded[j];
        }
      }
      scores += evaluated;
    });

    std::vector<int64_t> left;
    for (int64_t j = 0; j < count; ++j) {
      best[ids[j]].take(merged[j].score, merged[j].index);
      if (full[j]) left.push_back(ids[j]);
    }
    *rescored += scores;
    return left;
  }

  // Survivors of the average query as a part of the bank, found on a sample of queries and at most `some` rows; 1 where
  // there are too many.
  double survivors(Mode mode, int64_t some) {
    const int64_t rows = std::min(some, N), count = 8 * kQuery;
    std::vector<int64_t> ids;
    for (int64_t s = 0; s < count; ++s) ids.push_back(s * scattered(M) % M);
    Bank b(mode, 0, rows, scattered(N), N, K, steps_of(mode));
    pack(b);
    int64_t rescored = 0;
    const size_t left = pass(b, ids, &rescored).size();
    return left * 20 > ids.size() ? 1 : static_cast<double>(rescored) / static_cast<double>(rows * count);
  }

  // The bound through the mean of the mappings saves K - 1 products of a pair and pays with more survivors, each as
  // dear as kRescore products. It is off by spread / 4 of a distance, while distances differ by about 1 / sqrt(D) of
  // themselves: tried where that is not hopeless, taken where it keeps half of the gain. 16 bits where 8 tell too
  // little.
  Mode choose() {
    const double gain = static_cast<double>(K - 1) / static_cast<double>(2 * K) / kRescore;
    if (K > 1 && spread * std::sqrt(static_cast<double>(D)) < 4 && survivors({true, false}, 4096) <= gain) {
      return {true, false};
    }
    return {false, survivors({false, false}, 512) > 0.05};
  }

  // Rows [begin, begin + rows) for all queries.
  void screened(const std::vector<int64_t>& all, int64_t begin, int64_t rows, Mode mode) {
    std::vector<int64_t> left = all;
    int64_t few = 0;  // queries for which another screen is not worth its packing
    for (const Mode next : {Mode{true, false}, Mode{false, false}, Mode{false, true}}) {
      if ((next.mean && !mode.mean) || (!next.wide && mode.wide)) continue;
      if (static_cast<int64_t>(left.size()) <= few) break;
      Bank b(next, begin, rows, 1, N, K, steps_of(next));
      pack(b);
      int64_t rescored = 0;
      left = pass(b, left, &rescored);
      few = tile > 0 ? 0 : 4 * kQuery;
    }
    if (!left.empty()) direct(left, begin, rows);
  }
};

std::tuple<Tensor, Tensor> nearest_anchor(Tensor z, Tensor v, int64_t tile) {
  check_nearest_anchor(z, v, tile);
  tile = tile_within(tile, z, v);
  Tensor score = make(z, {z.size(0)}, acc_dtype(z.scalar_type()));
  Tensor index = make(z, {z.size(0)}, ScalarType::Long);
  if (z.size(0) > 0) {
    for_dtype(z.scalar_type(), [&](auto t) {
      if constexpr (std::is_same_v<decltype(t), double>) {
        run_double(z, v, tile, score, index);
      } else {
        Search<decltype(t)>(z, v, tile).run(score, index);
      }
    });
  }
  return {score, index};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cox_ops, CPU, m) {
  m.impl("nearest_anchor", TORCH_BOX(&nearest_anchor));
}

}  // namespace cox::cpu
