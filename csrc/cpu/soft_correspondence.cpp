// soft_correspondence on the CPU: shares q_ji = softmax_i of bias_{y_i} - (v + d)/2 log(1 + ||z_j - m_i||^2 / v), or of
// bias_{y_i} - ||z_j - m_i||^2 / 2 where v is inf, and their sums by readings j and by items i.
//
// Two passes, as the backward pass of flash attention takes them: the first finds every reading's normaliser, the second
// makes the shares of a tile again and adds them up, by readings and by items. Items are sorted by class, so that a class is
// a run of columns; rows are centred on the items' mean, products are in float32, a distance that is small beside the norms
// is taken directly. Distances of bfloat16 rows are products of bfloat16 (bf16.h) where the machine has these and the rows
// need no centre. Shares below e^-40 count as 0: what is 0 in 8 readings x 16 items is not multiplied, and where the first
// pass has seen that a tile holds nothing else for 8 readings the second leaves it out.
//
// A block of kReadings readings meets the tiles of kItems items; the tiles, in groups that follow from N alone, are shared
// out among the threads. Sums over a block or a tile are in float32, beyond in float64, groups are added in order: the same
// for any number of threads, and but for bf16.h for AVX2 and AVX-512. O(M N (d + p)) time, O(N (d + p)) + kGroups
// O(kReadings (p + C)) scratch.
#include <cmath>
#include <limits>

#include "bf16.h"

#define COX_BODY "soft_correspondence_body.h"
#include "each_isa.h"

namespace cox::cpu {
namespace {

constexpr int64_t kGroups = 32, kWorth = 1 << 18;  // kWorth: pairs for which it is worth waking a thread
constexpr double kLog2e = 1.4426950408889634, kFarthest = 1e30;

struct Shape {
  int64_t M, N, d, p, C;
};

struct Found {  // the outputs
  Tensor posterior, expected, margin, evidence, use, total, scatter;

  Found(const Tensor& like, const Shape& n) {
    const ScalarType t = acc_dtype(like.scalar_type());
    posterior = make(like, {n.M, n.C}, t);
    expected = make(like, {n.M, n.p}, t);
    margin = make(like, {n.M}, t);
    evidence = make(like, {n.M}, t);
    use = make(like, {n.N}, t);
    total = make(like, {n.N, n.d}, t);
    scatter = make(like, {n.d, n.d}, t);
  }
};

// Best minus second-best; of one class its own posterior.
template <class A>
A margin_of(const double* posterior, int64_t n) {
  double best = 0, second = 0;
  for (int64_t c = 0; c < n; ++c) {
    second = std::max(second, std::min(best, posterior[c]));
    best = std::max(best, posterior[c]);
  }
  return static_cast<A>(best - second);
}

std::vector<int64_t> numbers(const Tensor& t, int64_t least, int64_t most, const char* name) {
  std::vector<int64_t> v(static_cast<size_t>(t.size(0)));
  const int64_t *from = data<int64_t>(t), stride = t.stride(0);
  for (size_t i = 0; i < v.size(); ++i) {
    v[i] = from[static_cast<int64_t>(i) * stride];
    COX_CHECK(v[i] <= most && (v[i] >= least || least < 0), "soft_correspondence: expected ", name, " below C = ", most + 1,
              least < 0 ? "" : " and not negative", ", got ", v[i]);
  }
  return v;
}

template <class T>
struct Given {  // a matrix, or a vector as one column, of any strides; finite
  const T* p;
  int64_t rows, cols, sr, sc;

  Given(const Tensor& t, const char* name)
      : p(data<T>(t)), rows(t.size(0)), cols(t.dim() == 2 ? t.size(1) : 1), sr(t.stride(0)), sc(t.dim() == 2 ? t.stride(1) : 0) {
    std::vector<double> row(static_cast<size_t>(cols));
    for (int64_t r = 0; r < rows; ++r) {
      read(r, row.data());
      bool finite = true;
      for (const double v : row) finite &= std::abs(v) <= std::numeric_limits<double>::max();
      COX_CHECK(finite, "soft_correspondence: ", name, " has NaN or Inf");
    }
  }

  double at(int64_t r, int64_t c = 0) const { return static_cast<double>(static_cast<acc_t<T>>(p[r * sr + c * sc])); }

  void read(int64_t r, double* to) const {  // a row
    const T* from = p + r * sr;
    if (sc == 1) {
      for (int64_t c = 0; c < cols; ++c) to[c] = static_cast<double>(static_cast<acc_t<T>>(from[c]));
    } else {
      for (int64_t c = 0; c < cols; ++c) to[c] = static_cast<double>(static_cast<acc_t<T>>(from[c * sc]));
    }
  }
};

// ---------------------------------------------------------------- float64: one reading after the other, directly

void run(const Shape& n, const Given<double>& z, const Given<double>& means, const Given<double>& x,
         const std::vector<int64_t>& classes, const Given<double>& bias, const std::vector<int64_t>& labels, double freedom,
         const Found& to) {
  const double half = (freedom + static_cast<double>(n.d)) / 2, inf = std::numeric_limits<double>::infinity();
  double *use = out<double>(to.use), *total = out<double>(to.total), *scatter = out<double>(to.scatter);
  std::fill(use, use + n.N, 0.0);
  std::fill(total, total + n.N * n.d, 0.0);
  std::fill(scatter, scatter + n.d * n.d, 0.0);
  std::vector<double> logit(static_cast<size_t>(n.N)), far(static_cast<size_t>(n.N));
  for (int64_t j = 0; j < n.M; ++j) {
    double top = -inf, mass = 0, weight = 0;
    for (int64_t i = 0; i < n.N; ++i) {
      double sum = 0;
      for (int64_t e = 0; e < n.d; ++e) {
        const double diff = z.at(j, e) - means.at(i, e);
        sum += diff * diff;
      }
      const bool may = labels.empty() || labels[j] < 0 || labels[j] == classes[i];
      far[i] = sum;
      logit[i] = may ? bias.at(classes[i]) - (freedom < inf ? half * std::log1p(sum / freedom) : sum / 2) : -inf;
      top = std::max(top, logit[i]);
    }
    for (int64_t i = 0; i < n.N && top > -inf; ++i) mass += std::exp(logit[i] - top);
    double *posterior = out<double>(to.posterior) + j * n.C, *expected = out<double>(to.expected) + j * n.p;
    std::fill(posterior, posterior + n.C, 0.0);
    std::fill(expected, expected + n.p, 0.0);
    for (int64_t i = 0; i < n.N && top > -inf; ++i) {
      const double q = std::exp(logit[i] - top) / mass;
      const double w = freedom < inf ? q * (freedom + static_cast<double>(n.d)) / (freedom + far[i]) : q;
      posterior[classes[i]] += q;
      use[i] += w;
      weight += w;
      for (int64_t e = 0; e < n.p; ++e) expected[e] += q * x.at(i, e);
      for (int64_t e = 0; e < n.d; ++e) total[i * n.d + e] += w * z.at(j, e);
    }
    for (int64_t a = 0; a < n.d; ++a) {
      for (int64_t e = 0; e < n.d; ++e) scatter[a * n.d + e] += weight * z.at(j, a) * z.at(j, e);
    }
    out<double>(to.margin)[j] = margin_of<double>(posterior, n.C);
    out<double>(to.evidence)[j] = top > -inf ? top + std::log(mass) : -inf;
  }
}

// ---------------------------------------------------------------- float32: tiles

struct Items {  // sorted by class, less the centre, packed by tiles
  int64_t tiles, groups, per_group;
  std::vector<int64_t> order;
  std::vector<double> centre;
  std::vector<Segment> segments;
  std::vector<ItemTile> tile;
  std::vector<int32_t> label;
  Buffer<float> items, x, norms, bias, top;
  Buffer<uint32_t> pairs;
  std::vector<double> total, use;

  template <class T>
  Items(const Shape& n, int64_t dp, int64_t pp, int64_t units, const std::vector<double>& origin, const Given<T>& means,
        const Given<T>& xs, const std::vector<int64_t>& classes,
        const Given<T>& biases, double most, double scale)
      : tiles(ceil_div(n.N, kItems)),
        order(static_cast<size_t>(n.N)),
        centre(origin),
        label(static_cast<size_t>(tiles * kItems), -1),
        items(tiles * kItems * n.d),
        x(tiles * kItems * pp),
        norms(tiles * kItems),
        bias(tiles * kItems),
        top(tiles * kReadings),
        pairs(tiles * kItems * units),
        total(static_cast<size_t>(tiles * kItems * dp), 0.0),
        use(static_cast<size_t>(tiles * kItems), 0.0) {
    per_group = ceil_div(tiles, kGroups);
    groups = ceil_div(tiles, per_group);
    std::vector<int64_t> begin(static_cast<size_t>(n.C) + 1, 0);
    for (const int64_t c : classes) ++begin[static_cast<size_t>(c) + 1];
    for (int64_t c = 0; c < n.C; ++c) begin[c + 1] += begin[c];
    for (int64_t i = 0; i < n.N; ++i) order[static_cast<size_t>(begin[classes[i]]++)] = i;
    std::vector<double> farthest(static_cast<size_t>(tiles), 0.0);
    torch::stable::parallel_for(0, tiles, ceil_div(kWorth, kItems * (n.d + n.p + 1)), [&](int64_t begin, int64_t end) {
      std::vector<double> mean(static_cast<size_t>(n.d)), vector(static_cast<size_t>(n.p));
      for (int64_t t = begin; t < end; ++t) {
        const int64_t s0 = t * kItems;
        std::fill(items.get() + s0 * n.d, items.get() + (s0 + kItems) * n.d, 0.0f);
        std::fill(x.get() + s0 * pp, x.get() + (s0 + kItems) * pp, 0.0f);
        std::fill(norms.get() + s0, norms.get() + s0 + kItems, 0.0f);
        std::fill(bias.get() + s0, bias.get() + s0 + kItems, kNone);
        for (int64_t s = s0; s < std::min(n.N, s0 + kItems); ++s) {
          const int64_t i = order[s];
          means.read(i, mean.data());
          double norm = 0;
          for (int64_t e = 0; e < n.d; ++e) {
            const float v = static_cast<float>(mean[e] - centre[e]);
            items.get()[s0 * n.d + e * kItems + s - s0] = v;
            norm += static_cast<double>(v) * static_cast<double>(v);
          }
          farthest[t] = std::max(farthest[t], norm);
          norms.get()[s] = static_cast<float>(scale * norm);
          bias.get()[s] = static_cast<float>(kLog2e * (biases.at(classes[i]) - most));
          label[s] = static_cast<int32_t>(classes[i]);
          xs.read(i, vector.data());
          for (int64_t e = 0; e < n.p; ++e) x.get()[s * pp + e] = static_cast<float>(vector[e]);
        }
        const float* tile_items = items.get() + s0 * n.d;
        for (int64_t u = 0; u < units; ++u) {
          for (int64_t s = 0; s < kItems; ++s) {
            const float first = 2 * u < n.d ? tile_items[2 * u * kItems + s] : 0.0f;
            const float second = 2 * u + 1 < n.d ? tile_items[(2 * u + 1) * kItems + s] : 0.0f;
            pairs.get()[s0 * units + u * kItems + s] = bf16_pair(first, second);
          }
        }
      }
    });
    const double norm = tiles ? *std::max_element(farthest.begin(), farthest.end()) : 0;
    COX_CHECK(norm <= kFarthest, "soft_correspondence: means lie too far from each other, squared distance ", norm);
    COX_CHECK(!tiles || *std::min_element(bias.get(), bias.get() + n.N) >= -1e30f,
              "soft_correspondence: biases must lie within 5e29 of each other");
    std::vector<size_t> first;
    for (int64_t t = 0; t < tiles; ++t) {
      first.push_back(segments.size());
      for (int64_t s = t * kItems; s < std::min(n.N, (t + 1) * kItems); ++s) {
        const int32_t at = static_cast<int32_t>(s - t * kItems);
        if (at == 0 || label[s] != label[s - 1]) {
          segments.push_back({at, at, label[s]});
        }
        segments.back().to = at + 1;
      }
    }
    first.push_back(segments.size());
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t s = t * kItems;
      tile.push_back({items.get() + s * n.d, x.get() + s * pp, norms.get() + s, bias.get() + s, label.data() + s,
                      segments.data() + first[t], segments.data() + first[t + 1], round_up(std::min(kItems, n.N - s), 16),
                      pairs.get() + s * units, total.data() + s * dp, use.data() + s, top.get() + t * kReadings});
    }
  }

  template <class F>
  void each_tile(int64_t group, F&& f) const {
    for (int64_t t = group * per_group; t < std::min(tiles, (group + 1) * per_group); ++t) f(tile[t]);
  }
};

// The mean of the items, and the mean squared norm.
template <class T>
std::pair<std::vector<double>, double> mean_of(const Shape& n, const Given<T>& means) {
  std::vector<double> row(static_cast<size_t>(n.d)), centre(static_cast<size_t>(n.d), 0.0);
  double square = 0;
  for (int64_t i = 0; i < n.N; ++i) {
    means.read(i, row.data());
    for (int64_t e = 0; e < n.d; ++e) centre[e] += row[e] / static_cast<double>(n.N);
    for (int64_t e = 0; e < n.d; ++e) square += row[e] * row[e] / static_cast<double>(n.N);
  }
  return {centre, square};
}

template <class T>
void run(const Shape& n, const Given<T>& z, const Given<T>& means, const Given<T>& xs, const std::vector<int64_t>& classes,
         const Given<T>& biases, const std::vector<int64_t>& labels, double freedom, const Found& to) {
  const bool student = std::isfinite(freedom);
  const double d = static_cast<double>(n.d), scale = student ? 1 / (freedom + d) : kLog2e / 2;
  const int64_t dp = round_up(n.d, 16), pp = round_up(n.p, 16);
  double most = biases.at(0);
  for (int64_t c = 1; c < n.C; ++c) most = std::max(most, biases.at(c));
  auto [centre, square] = mean_of(n, means);
  double far = 0;
  for (const double c : centre) far += c * c;
  // bfloat16 holds what is given, not what is centred: its products are for items that lie about the origin.
  const Bf16* bf16 = std::is_same_v<T, BFloat16> && 2 * far <= square - far && n.d > 0 ? pick_bf16() : nullptr;
  const int64_t units = bf16 ? round_up(ceil_div(n.d, 2), bf16->deep) : 0;
  if (bf16) {
    std::fill(centre.begin(), centre.end(), 0.0);
  }
  Items items(n, dp, pp, units, centre, means, xs, classes, biases, most, scale);
  const int64_t G = items.groups, rows_most = std::min(kReadings, round_up(n.M, kStep));
  const auto first = COX_PICK(soft_first), second = COX_PICK(soft_second);
  const auto add_scatter = COX_PICK(soft_scatter);

  // Of a block of readings; then of its groups of tiles.
  Buffer<float> zb(rows_most * dp), weighted(rows_most * dp), part(dp * dp), zn(rows_most), high(rows_most), low(rows_most);
  std::vector<int32_t> label(static_cast<size_t>(rows_most));
  std::vector<double> scatter(static_cast<size_t>(dp * dp), 0.0), weight(static_cast<size_t>(rows_most));
  Buffer<uint32_t> pairs(rows_most * units);
  Buffer<float> tops(G * rows_most);
  Buffer<double> masses(G * rows_most), weights(G * rows_most), expected(G * rows_most * pp);
  std::vector<Sums> sums;
  int64_t classes_of_groups = 0;
  for (int64_t g = 0; g < G; ++g) {
    const ItemTile& last = items.tile[std::min(items.tiles, (g + 1) * items.per_group) - 1];
    const int64_t from = items.tile[g * items.per_group].segment->label, count = (last.last - 1)->label - from + 1;
    sums.push_back({tops.get() + g * rows_most, masses.get() + g * rows_most, weights.get() + g * rows_most,
                    expected.get() + g * rows_most * pp, nullptr, from, count});
    classes_of_groups += count;
  }
  Buffer<double> posteriors(classes_of_groups * rows_most);
  int64_t at = 0;
  for (Sums& s : sums) {
    s.posterior = posteriors.get() + at;
    at += s.classes * rows_most;
  }

  const double shifted = student ? (freedom + d) / 2 * std::log1p(d / freedom) : 0;  // of the logits, by u's unit
  const std::vector<float> no_bias(kItems, 0.0f);
  ReadingBlock b{0, n.d, dp, pp, zb.get(), zn.get(), label.data(), high.get(), low.get(), no_bias.data(), {}, bf16, pairs.get(),
                 units};
  b.law = {student, static_cast<float>((student ? freedom + d : 0) / 2), static_cast<float>(scale),
           static_cast<float>(student ? freedom * scale : 0), static_cast<float>(student ? -d * scale : 0)};
  for (int64_t j0 = 0; j0 < n.M; j0 += kReadings) {
    const int64_t rows = std::min(kReadings, n.M - j0);
    b.rows = round_up(rows, kStep);
    std::fill(zb.get(), zb.get() + b.rows * dp, 0.0f);
    for (int64_t r = 0; r < b.rows; ++r) {
      double norm = 0;
      for (int64_t e = 0; e < n.d && r < rows; ++e) {
        const float v = static_cast<float>(z.at(j0 + r, e) - items.centre[e]);
        zb.get()[r * dp + e] = v;
        norm += static_cast<double>(v) * static_cast<double>(v);
      }
      for (int64_t u = 0; u < units; ++u) {  // behind the row's dp there is none
        const float* row = zb.get() + r * dp;
        pairs.get()[r * units + u] = 2 * u < dp ? bf16_pair(row[2 * u], row[2 * u + 1]) : 0;
      }
      COX_CHECK(norm <= kFarthest, "soft_correspondence: z lies too far from means, squared distance ", norm);
      zn.get()[r] = static_cast<float>(scale * norm);
      label[r] = r < rows && !labels.empty() ? static_cast<int32_t>(std::max<int64_t>(labels[j0 + r], -1)) : -1;
    }
    const int64_t grain = std::max<int64_t>(1, kWorth / (b.rows * items.per_group * kItems));
    torch::stable::parallel_for(0, G, grain, [&](int64_t begin, int64_t end) {
      Scratch scratch(dp, pp);
      const Bf16Entered entered(bf16);
      for (int64_t g = begin; g < end; ++g) {
        std::fill(sums[g].top, sums[g].top + b.rows, kNone);
        std::fill(sums[g].mass, sums[g].mass + b.rows, 0.0);
        items.each_tile(g, [&](const ItemTile& t) { first(b, t, sums[g], scratch); });
      }
    });
    for (int64_t r = 0; r < b.rows; ++r) {
      float top = kNone;
      double mass = 0;
      for (const Sums& s : sums) top = std::max(top, s.top[r]);
      for (const Sums& s : sums) mass += s.mass[r] * std::exp2(static_cast<double>(s.top[r]) - static_cast<double>(top));
      const bool some = mass > 0;
      const double lse = some ? static_cast<double>(top) + std::log2(mass) : 0;
      high.get()[r] = some && r < rows ? static_cast<float>(lse) : -kNone;  // no share comes of that
      low.get()[r] = some && r < rows ? static_cast<float>(lse - static_cast<double>(high.get()[r])) : 0;
      if (r < rows) {
        const double moved = label[r] < 0 ? most : biases.at(label[r]);
        out<float>(to.evidence)[j0 + r] =
            some ? static_cast<float>(lse / kLog2e - shifted + moved) : -std::numeric_limits<float>::infinity();
      }
    }
    torch::stable::parallel_for(0, G, grain, [&](int64_t begin, int64_t end) {
      Scratch scratch(dp, pp);
      const Bf16Entered entered(bf16);
      for (int64_t g = begin; g < end; ++g) {
        const Sums& s = sums[g];
        std::fill(s.weight, s.weight + b.rows, 0.0);
        std::fill(s.expected, s.expected + b.rows * pp, 0.0);
        std::fill(s.posterior, s.posterior + b.rows * s.classes, 0.0);
        items.each_tile(g, [&](const ItemTile& t) { second(b, t, s, scratch); });
      }
    });
    float *posterior = out<float>(to.posterior), *margin = out<float>(to.margin), *mean = out<float>(to.expected);
    torch::stable::parallel_for(0, b.rows, b.rows * n.N < kWorth ? b.rows : 64, [&](int64_t begin, int64_t end) {
      std::vector<double> row(static_cast<size_t>(std::max(n.C, pp)));
      for (int64_t r = begin; r < end; ++r) {
        weight[r] = 0;
        for (const Sums& s : sums) weight[r] += s.weight[r];
        if (r >= rows) {
          continue;
        }
        std::fill(row.begin(), row.end(), 0.0);
        for (const Sums& s : sums) {
          for (int64_t c = 0; c < s.classes; ++c) row[s.first_class + c] += s.posterior[r * s.classes + c];
        }
        double sum = 0;  // 1 up to rounding, 0 where there is no share
        for (int64_t c = 0; c < n.C; ++c) sum += row[c];
        const double unit = sum > 0 ? 1 / sum : 0;
        for (int64_t c = 0; c < n.C; ++c) row[c] *= unit;
        for (int64_t c = 0; c < n.C; ++c) posterior[(j0 + r) * n.C + c] = static_cast<float>(row[c]);
        margin[j0 + r] = margin_of<float>(row.data(), n.C);
        std::fill(row.begin(), row.end(), 0.0);
        for (const Sums& s : sums) {
          for (int64_t e = 0; e < n.p; ++e) row[e] += s.expected[r * pp + e];
        }
        for (int64_t e = 0; e < n.p; ++e) mean[(j0 + r) * n.p + e] = static_cast<float>(unit * row[e]);
      }
    });
    add_scatter(b, weight.data(), weighted.get(), part.get(), scatter.data());
  }

  // Back to the coordinates and the order that were given.
  double all = 0;
  std::vector<double> sum(static_cast<size_t>(n.d), 0.0);
  float *use = out<float>(to.use), *total = out<float>(to.total), *spread = out<float>(to.scatter);
  for (int64_t s = 0; s < n.N; ++s) {
    const int64_t i = items.order[s];
    const double own = items.use[s], *from = items.total.data() + s * dp;
    all += own;
    use[i] = static_cast<float>(own);
    for (int64_t e = 0; e < n.d; ++e) {
      sum[e] += from[e];
      total[i * n.d + e] = static_cast<float>(from[e] + own * items.centre[e]);
    }
  }
  for (int64_t a = 0; a < n.d; ++a) {
    for (int64_t e = 0; e < n.d; ++e) {
      const double moved = items.centre[a] * sum[e] + sum[a] * items.centre[e] + all * items.centre[a] * items.centre[e];
      spread[a * n.d + e] = static_cast<float>((scatter[a * dp + e] + scatter[e * dp + a]) / 2 + moved);
    }
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> soft_correspondence(Tensor z, Tensor means, Tensor x,
                                                                                      Tensor classes, Tensor bias,
                                                                                      std::optional<Tensor> labels,
                                                                                      double freedom) {
  check_soft_correspondence(z, means, x, classes, bias, labels, freedom);
  const Shape n{z.size(0), means.size(0), z.size(1), x.size(1), bias.size(0)};
  const Found f(z, n);
  for_dtype(z.scalar_type(), [&](auto t) {
    using T = decltype(t);
    const std::vector<int64_t> known = labels ? numbers(*labels, -1, n.C - 1, "labels") : std::vector<int64_t>{};
    run(n, Given<T>(z, "z"), Given<T>(means, "means"), Given<T>(x, "x"), numbers(classes, 0, n.C - 1, "classes"),
        Given<T>(bias, "bias"), known, freedom, f);
  });
  return {f.posterior, f.expected, f.margin, f.evidence, f.use, f.total, f.scatter};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cox_ops, CPU, m) {
  m.impl("soft_correspondence", TORCH_BOX(&soft_correspondence));
}

}  // namespace cox::cpu
