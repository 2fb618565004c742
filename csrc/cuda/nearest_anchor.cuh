// The kernels of nearest_anchor (csrc/cuda/nearest_anchor.cu has the whole picture and launches them).
//
// best[j]: (bits of the score << 32 | i), the least key over the pairs seen so far: scores are >= 0, so that keys are in the
// order (score, index). Every key in it is the exact score of a pair (exact_mean), hence a bound for all others at any time.
#pragma once

#include <cfloat>
#include <cmath>
#include <limits>

#include "mma.cuh"
#include "tile.cuh"

namespace cox::cuda {

using Key = unsigned long long;
constexpr Key kNoKey = ~Key(0);
constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
struct Bank {  // v (K, N, D) of any strides
  const T* p;
  int64_t K, N, d, sk, sr, sd;
};

// What became of a query. A later kernel takes the listed ones up again, whole.
enum State : int { kOpen, kToDirect, kToExact, kNotFinite };

struct Queries {
  Key* best;       // (M)
  int* state;      // (M) State
  int64_t* list;   // (M) those whose state reached `next`
  int* listed;     // their number
  int next;        // the state of a query with too many candidates

  __device__ void pass_on(int64_t j) const {
    if (atomicMax(state + j, next) < next) {
      list[atomicAdd(listed, 1)] = j;
    }
  }
};

struct Subset {  // the queries a kernel works on: all, or those of a list
  const int64_t* list;
  const int* listed;
  int64_t M;
  __device__ int64_t size() const { return list ? static_cast<int64_t>(*listed) : M; }
  __device__ int64_t at(int64_t n) const { return list ? list[n] : n; }
};

__device__ inline float score_of(Key key) {
  return key == kNoKey ? std::numeric_limits<float>::infinity() : __uint_as_float(static_cast<unsigned>(key >> 32));
}

__device__ inline Key key_of(float score, int64_t i) {
  return static_cast<Key>(__float_as_uint(score)) << 32 | static_cast<Key>(i);
}

// The score of a pair, by a warp: 32 interleaved sums in float64, a butterfly, the mean rounded to float32; +inf or NaN where a
// square overflows float32 or a row is not finite. `exact` below does the same, sum for sum: every score that this operator
// returns is this function's.
template <class T>
__device__ double square_distance(const T* a, int64_t sa, const T* b, int64_t sb, int64_t d) {
  double sum = 0;
#pragma unroll 2
  for (int64_t e = threadIdx.x % 32; e < d; e += 32) {
    const double diff = static_cast<double>(static_cast<float>(a[e * sa])) - static_cast<double>(static_cast<float>(b[e * sb]));
    sum = fma(diff, diff, sum);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  return sum;
}

// The distance of an eligible pair, or +inf.
__device__ inline double eligible_root(double square) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  return static_cast<float>(square) < inf ? sqrt(square) : static_cast<double>(inf);
}

template <class T>
__device__ float exact_mean(const Rows<T>& z, int64_t j, const Bank<T>& v, int64_t i) {
  double total = 0;
  for (int64_t k = 0; k < v.K; ++k) {
    total += eligible_root(square_distance(z.p + j * z.sr, z.sd, v.p + k * v.sk + i * v.sr, v.sd, v.d));
  }
  return static_cast<float>(total / static_cast<double>(v.K));
}

// The same of rows whose dtype is known at run time, so that a large kernel is compiled once for all.
enum Type : int { kFloat, kHalf, kBFloat16 };

template <class T>
constexpr Type kTypeOf = std::is_same_v<T, float> ? kFloat : std::is_same_v<T, Half> ? kHalf : kBFloat16;

struct AnyRows {
  Rows<float> z;   // z.p and v.p are not float's, but `type`'s
  Bank<float> v;
  Type type;
};

template <class T>
__device__ float exact_mean_as(const AnyRows& rows, int64_t j, int64_t i) {
  const Rows<float>& z = rows.z;
  const Bank<float>& v = rows.v;
  return exact_mean(Rows<T>{reinterpret_cast<const T*>(z.p), z.rows, z.d, z.sr, z.sd}, j,
                    Bank<T>{reinterpret_cast<const T*>(v.p), v.K, v.N, v.d, v.sk, v.sr, v.sd}, i);
}

__device__ inline float exact_mean(const AnyRows& rows, int64_t j, int64_t i) {
  return rows.type == kFloat  ? exact_mean_as<float>(rows, j, i)
         : rows.type == kHalf ? exact_mean_as<Half>(rows, j, i)
                              : exact_mean_as<BFloat16>(rows, j, i);
}

// ---------------------------------------------------------------- candidates

constexpr float kClosed = std::numeric_limits<float>::quiet_NaN();  // a limit that no sum keeps

// Per block: what a screen's sum may be at most (limit) for each of its queries, and how many pairs were scored exactly.
template <int kRows>
struct Contest {
  Key least[kRows];  // (screen's sum, column): the most promising candidate of the tile
  float limit[kRows];
  int taken[kRows], spent[kRows];
};

// A tile's candidates, one per query and round, the most promising first: each is scored exactly, which lowers the limit for
// the others. each(f) calls f(row, column, the screen's sum, number of the pair) for the thread's pairs, up to 64; exact(row,
// column) is called by whole warps. Sums that are NaN or +inf are never candidates.
template <int kRows, class Each, class Exact>
__device__ __forceinline__ void settle(Contest<kRows>& c, const Each& each, const Exact& exact) {
  uint64_t pending = 0;
  each([&](int row, int, float sum, int n) { pending |= static_cast<uint64_t>(sum <= c.limit[row]) << n; });
  while (__syncthreads_or(pending != 0)) {
    if (pending) {
      each([&](int row, int column, float sum, int n) {
        if (pending >> n & 1) {
          atomicMin(&c.least[row], key_of(fmaxf(sum, 0.f), column));
        }
      });
    }
    __syncthreads();
    for (int row = threadIdx.x / 32; row < kRows; row += blockDim.x / 32) {
      const Key key = c.least[row];
      if (key != kNoKey) {
        const int column = static_cast<int>(key & 0xffffffffu);
        __syncwarp();  // all lanes have read it
        exact(row, column);
        if (threadIdx.x % 32 == 0) {
          c.taken[row] = column;
          c.least[row] = kNoKey;
        }
      }
    }
    __syncthreads();
    if (pending) {
      each([&](int row, int column, float sum, int n) {
        if ((pending >> n & 1) && (column == c.taken[row] || !(sum <= c.limit[row]))) {
          pending &= ~(uint64_t(1) << n);
        }
      });
    }
  }
}

// exact() of settle, with the score of (j, i): lowers the limit, gives the query up when it has had more than `most` candidates.
template <int kRows, class Limit>
__device__ void score_candidate(Contest<kRows>& c, int row, int64_t j, int64_t i, float score, const Queries& q, int most,
                                const Limit& limit_of) {
  if (threadIdx.x % 32 == 0) {
    if (score < std::numeric_limits<float>::infinity()) {
      const Key key = key_of(score, i), before = atomicMin(q.best + j, key);
      c.limit[row] = fminf(c.limit[row], limit_of(score_of(before < key ? before : key), row));
    }
    if (++c.spent[row] > most) {
      c.limit[row] = kClosed;
      q.pass_on(j);
    }
  }
}

// The work of a grid: tiles of queries x parts of the bank, parts of the same tiles side by side so that blocks that run at
// the same time read the same bank rows. Enough parts for all blocks; `rows` > 0 sets a part's rows instead.
struct Items {
  int64_t tiles, parts, rows;
  __device__ Items(int64_t queries, int tile, int64_t N, int bank_tile, int64_t rows_wanted) {
    tiles = (queries + tile - 1) / tile;
    const int64_t bank_tiles = (N + bank_tile - 1) / bank_tile;
    int64_t per_tile = tiles > 0 ? (static_cast<int64_t>(gridDim.x) + tiles - 1) / tiles : 1;
    per_tile = per_tile < bank_tiles ? per_tile : bank_tiles;
    rows = rows_wanted > 0 ? rows_wanted : per_tile > 0 ? (bank_tiles + per_tile - 1) / per_tile * bank_tile : 1;
    parts = (N + rows - 1) / rows;
  }
  __device__ int64_t count() const { return tiles * parts; }
};

// ---------------------------------------------------------------- start and end

// One warp per query: best, state; a query with NaN or Inf is never looked at again.
template <class T>
__global__ void start_queries(Rows<T> z, Queries q) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (j >= z.rows) {
    return;
  }
  bool finite = true;
  for (int64_t e = threadIdx.x % 32; e < z.d; e += 32) {
    const float x = static_cast<float>(z.p[j * z.sr + e * z.sd]);
    finite = finite && fabsf(x) <= FLT_MAX;
  }
  finite = __all_sync(kAllLanes, finite);
  if (threadIdx.x % 32 == 0) {
    q.best[j] = kNoKey;
    q.state[j] = finite ? kOpen : kNotFinite;
  }
}

// Keys -> score and index; a bank of more than 2^32 - 2 rows comes in slabs: `first` is this slab's first row.
template <class Score>  // float
__global__ void finish_queries(const Key* best, int64_t M, int64_t first, Score* score, int64_t* index) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (j < M) {
    const float s = score_of(best[j]);
    if (first == 0 || s < score[j]) {
      score[j] = s;
      index[j] = best[j] == kNoKey ? -1 : first + static_cast<int64_t>(best[j] & 0xffffffffu);
    }
  }
}

// ---------------------------------------------------------------- direct differences in float32, as a screen

// What a screen's sum over K may be at most for a pair to win against the score `best`, on a query with this `rest`.
struct Limit {
  float scale, offset;
  __device__ float at(float best, float rest) const { return fminf(fmaf(best + rest, scale, offset), FLT_MAX); }
};

// Of a sum over K of distances in float32 (tile.cuh: one sum of D squares): relative error at most (D / 2 + K + 8) 2^-23 in
// all, and what squares lose where they underflow.
inline Limit direct_limit(int64_t K, int64_t D) {
  const double k = static_cast<double>(K), d = static_cast<double>(D);
  return {static_cast<float>(k * (1 + (0.5 * d + k + 8) * 0x1p-23) * (1 + 2e-6)), static_cast<float>(k * 4e-23 * (1 + std::sqrt(d)))};
}

// Above this a float32 square overflows; finite rows lie at least this far apart when it did.
constexpr float kFar = 1.8e19f;

template <class T>
struct ListedRows {  // queries of a subset as rows of a tile
  Rows<T> z;
  const int64_t* list;
  int64_t size, d;
  __device__ float at(int64_t n, int64_t e) const {
    return n < size && e < d ? static_cast<float>(z.p[(list ? list[n] : n) * z.sr + e * z.sd]) : 0.f;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    direct(Rows<T> z, Bank<T> v, Subset subset, Queries q, int most, Limit limit, int64_t part_rows) {
  __shared__ TileBuffers<float> buffers;
  __shared__ Contest<kTile> contest;
  const int tid = threadIdx.x, row = tid / 16 * 4, lane = tid % 16;
  const ListedRows<T> queries{z, subset.list, subset.size(), z.d};
  const Items items(queries.size, kTile, v.N, kTile, part_rows);
  const auto limit_of = [&](float best, int) { return limit.at(best, 0); };
  for (int64_t item = blockIdx.x; item < items.count(); item += gridDim.x) {
    const int64_t j0 = item % items.tiles * kTile, begin = item / items.tiles * items.rows;
    const int64_t end = begin + items.rows < v.N ? begin + items.rows : v.N;
    __syncthreads();  // the item before is done with the contest
    if (tid < kTile) {
      const bool there = j0 + tid < queries.size && q.state[subset.at(j0 + tid)] < q.next;
      contest.limit[tid] = there ? limit_of(score_of(q.best[subset.at(j0 + tid)]), tid) : kClosed;
      contest.least[tid] = kNoKey;
      contest.spent[tid] = 0;
    }
    __syncthreads();
    for (int64_t i0 = begin; i0 < end; i0 += kTile) {
      float total[4][4] = {};
      for (int64_t k = 0; k < v.K; ++k) {
        const Rows<T> bank{v.p + k * v.sk, v.N, v.d, v.sr, v.sd};
        float acc[4][4];
        tile_squares(queries, j0, bank, i0, buffers, acc);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const float distance = sqrtf(acc[r][c]);
            total[r][c] += distance > kFar ? kFar : distance;  // NaN stays
          }
        }
      }
      const int columns = end - i0 < kTile ? static_cast<int>(end - i0) : kTile;
      settle(
          contest,
          [&](auto&& f) {
#pragma unroll
            for (int r = 0; r < 4; ++r) {
#pragma unroll
              for (int c = 0; c < 4; ++c) {
                if (4 * lane + c < columns) {
                  f(row + r, 4 * lane + c, total[r][c], 4 * r + c);
                }
              }
            }
          },
          [&](int r, int c) {
            const int64_t j = subset.at(j0 + r);
            score_candidate(contest, r, j, i0 + c, exact_mean(z, j, v, i0 + c), q, most, limit_of);
          });
    }
  }
}

// ---------------------------------------------------------------- exact, pair by pair

// A block's warps share kShared queries and take its bank rows in turn; each row that is read serves kShared pairs.
constexpr int kShared = 4;

template <class T>
__global__ void __launch_bounds__(kThreads)
    exact(Rows<T> z, Bank<T> v, Subset subset, Key* best, int64_t part_rows) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t size = subset.size();
  const Items items(size, kShared, v.N, kTile, part_rows);
  for (int64_t item = blockIdx.x; item < items.count(); item += gridDim.x) {
    const int64_t n0 = item % items.tiles * kShared, begin = item / items.tiles * items.rows;
    const int64_t end = begin + items.rows < v.N ? begin + items.rows : v.N;
    const T* query[kShared];
    Key key[kShared];
#pragma unroll
    for (int s = 0; s < kShared; ++s) {
      query[s] = z.p + subset.at(n0 + s < size ? n0 + s : n0) * z.sr;
      key[s] = kNoKey;
    }
    for (int64_t i = begin + warp; i < end; i += kThreads / 32) {
      double total[kShared] = {};
      for (int64_t k = 0; k < v.K; ++k) {
        const T* row = v.p + k * v.sk + i * v.sr;
        double sum[kShared] = {};
#pragma unroll 2
        for (int64_t e = lane; e < v.d; e += 32) {
          const double b = static_cast<double>(static_cast<float>(row[e * v.sd]));
#pragma unroll
          for (int s = 0; s < kShared; ++s) {
            const double diff = static_cast<double>(static_cast<float>(query[s][e * z.sd])) - b;
            sum[s] = fma(diff, diff, sum[s]);
          }
        }
#pragma unroll
        for (int s = 0; s < kShared; ++s) {
#pragma unroll
          for (int step = 16; step > 0; step /= 2) sum[s] += __shfl_xor_sync(kAllLanes, sum[s], step);
          total[s] += eligible_root(sum[s]);
        }
      }
#pragma unroll
      for (int s = 0; s < kShared; ++s) {
        const float score = static_cast<float>(total[s] / static_cast<double>(v.K));
        if (score < std::numeric_limits<float>::infinity() && key_of(score, i) < key[s]) {
          key[s] = key_of(score, i);
        }
      }
    }
#pragma unroll
    for (int s = 0; s < kShared; ++s) {
      if (lane == s && n0 + s < size) {
        atomicMin(best + subset.at(n0 + s), key[s]);
      }
    }
  }
}

// ---------------------------------------------------------------- the bf16 screen

// Operands: a row x (a query or a bank row) becomes r = bf16(x - centre), D padded with zeros to a multiple of kDepth, and
//   edge = (below |r|^2, above |x - centre - r|):
// with a for a query's r and b for a bank row's,
//   |x - y| >= |a - b| - rest_x - rest_y           triangle inequality, the same centre for both
//   |a - b|^2 >= edge_a + edge_b - 2 dot           whatever the tensor cores made of dot = a . b, in float32
// An mma's addends are aligned to the largest of them and cut off, at worst one by one and at 24 bits, sums may be taken 4,
// 8 or 16 at a time: at most 24 cuts of 2^-23 sum |a_e b_e| <= 2^-24 (|a|^2 + |b|^2) per 16 coordinates. Hence the share
// `loss` of the squared norms below; it also covers the roundings of the norms and of edge_a + edge_b - 2 dot.
// A row with NaN or Inf is stored as 0 with edge (+inf, 0): never a candidate. One whose squares leave float32's range: 0
// with edge (0, +inf): always one.
constexpr int kScreenTile = 128, kDepth = 32;
constexpr float kHuge = 1e38f;

inline double screen_loss(int64_t depth) {
  const double loss = (2 * 1.6 * static_cast<double>(depth) + 16) * 0x1p-24;
  return loss < 1 ? loss : 1;
}

// A pair wins only if the sum over k of its distances is at most K times the best score, half a unit in that one's last place
// more; then sum_k (root - rest_k) <= K (best + rest), up to roundings of at most (K + 4) 2^-23 of each part.
inline Limit screen_limit(int64_t K) {
  const double k = static_cast<double>(K);
  return {static_cast<float>(k * (1 + (k + 8) * 0x1p-21) * (1 + 2e-6)), 1e-38f};
}

struct alignas(8) Edge {
  float norm, rest;
};

// The mean of some bank rows. Any centre is right; one in the middle of the data makes the operands small.
template <class T>
__global__ void find_centre(Bank<T> v, int64_t rows, float* centre) {
  const int64_t e = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (e >= v.d) {
    return;
  }
  double sum = 0, count = 0;
  for (int64_t k = 0; k < v.K; ++k) {
#pragma unroll 8
    for (int64_t n = 0; n < rows; ++n) {
      const float x = static_cast<float>(v.p[k * v.sk + v.N / rows * n * v.sr + e * v.sd]);
      const bool fine = fabsf(x) < 1e18f;
      sum += fine ? static_cast<double>(x) : 0;
      count += fine;
    }
  }
  centre[e] = count > 0 ? static_cast<float>(sum / count) : 0.f;
}

// One warp per row of one (rows, d) matrix; rows up to `padded` are written, those behind the last as never a candidate.
// grow: a factor above 1 for `rest`, for the roundings of the sums that it enters.
template <class T>
__global__ void round_rows(Rows<T> x, const float* centre, int64_t depth, int64_t padded, double loss, double grow,
                           uint32_t* operand, Edge* edge) {
  const int64_t r = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (r >= padded) {
    return;
  }
  double norm = 0, rest = 0;
  bool finite = true;
  for (int64_t p = lane; p < depth / 2; p += 32) {
    uint32_t pair = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t e = 2 * p + half;
      if (r < x.rows && e < x.d) {
        const float own = static_cast<float>(x.p[r * x.sr + e * x.sd]);
        finite = finite && fabsf(own) <= FLT_MAX;
        const double a = static_cast<double>(own) - static_cast<double>(centre[e]);
        const float f = static_cast<float>(a);
        uint32_t bits = __float_as_uint(f);
        bits = fabsf(f) < 1e-30f ? 0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        const double rounded = static_cast<double>(__uint_as_float(bits << 16));
        norm = fma(rounded, rounded, norm);
        rest = fma(a - rounded, a - rounded, rest);
        pair |= bits << 16 * half;
      }
    }
    operand[r * (depth / 2) + p] = pair;
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    norm += __shfl_xor_sync(kAllLanes, norm, step);
    rest += __shfl_xor_sync(kAllLanes, rest, step);
  }
  finite = __all_sync(kAllLanes, finite) && r < x.rows;
  const bool huge = !(norm < kHuge);
  if (!finite || huge) {
    for (int64_t p = lane; p < depth / 2; p += 32) operand[r * (depth / 2) + p] = 0;
  }
  if (lane == 0) {
    constexpr float inf = std::numeric_limits<float>::infinity();
    if (!finite) {
      edge[r] = {inf, 0};
    } else if (huge) {
      edge[r] = {0, inf};
    } else {  // what products lose where they underflow: less than 2^-124 each
      edge[r] = {static_cast<float>(norm * (1 - loss) - static_cast<double>(depth) * 0x1p-124),
                 static_cast<float>((sqrt(rest) + 1e-15 * sqrt(norm)) * grow * (1 + 1e-6))};
    }
  }
}

struct Operands {
  const char *z, *v;            // (rows, depth) bf16: queries; K times `padded` bank rows
  const Edge *z_edge, *v_edge;  // (rows), (K, padded)
  int64_t depth, padded;
};

template <int kMaps>
struct ScreenShape {  // shared memory: kStages x (kMaps + 1) x 8 KiB operands, kStages x kMaps KiB edges
  static constexpr int kStages = kMaps == 1 ? 4 : 3;
  static constexpr int kOperand = kScreenTile * kDepth * 2, kStage = (kMaps + 1) * kOperand;
  static constexpr int kEdges = kMaps * kScreenTile * static_cast<int>(sizeof(Edge));
  static constexpr int kBytes = kStages * (kStage + kEdges);
};

// Where 16 bytes (8 coordinates) of a row lie in a tile: rows of 64 bytes, their quarters turned so that ldmatrix' 8 rows
// lie in different banks.
__device__ __forceinline__ int tile_at(int row, int quarter) {
  return row * 64 + ((quarter ^ (row >> 1 & 3)) << 4);
}

// 128 queries x 128 bank rows x kMaps mappings per step of 32 coordinates, 8 warps of 64 x 32 each. kWhole: K <= kMaps, so
// that all products of a pair are there at once; else `total` keeps their roots from pass to pass.
template <int kMaps, bool kWhole>
__global__ void __launch_bounds__(kThreads, 1) screen(Operands o, AnyRows rows, Queries q, int most, Limit limit, int64_t part_rows) {
  using S = ScreenShape<kMaps>;
  const auto& z = rows.z;
  const auto& v = rows.v;
  COX_DYNAMIC_SHARED(memory);
  __shared__ Contest<kScreenTile> contest;
  __shared__ Edge own[kScreenTile];
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
  const int row0 = warp / 4 * 64, column0 = warp % 4 * 32;
  const int64_t row_bytes = 2 * o.depth;
  const int chunks = static_cast<int>(o.depth / kDepth);
  const int64_t passes = (v.K + kMaps - 1) / kMaps;
  const Items items(z.rows, kScreenTile, v.N, kScreenTile, part_rows);
  const auto limit_of = [&](float best, int row) { return limit.at(best, own[row].rest); };

  for (int64_t item = blockIdx.x; item < items.count(); item += gridDim.x) {
    const int64_t j0 = item % items.tiles * kScreenTile, begin = item / items.tiles * items.rows;
    const int64_t end = begin + items.rows < v.N ? begin + items.rows : v.N;
    __syncthreads();  // the item before is done with shared memory
    if (tid < kScreenTile) {
      const int64_t j = j0 + tid;
      const bool there = j < z.rows && q.state[j] < q.next;
      own[tid] = there ? o.z_edge[j] : Edge{0, 0};
      contest.limit[tid] = there ? limit_of(score_of(q.best[j]), tid) : kClosed;
      contest.least[tid] = kNoKey;
      contest.spent[tid] = 0;
    }
    // Steps: chunks of coordinates within passes over the mappings within bank tiles.
    const int64_t steps = (end - begin + kScreenTile - 1) / kScreenTile * passes * chunks;
    int64_t load_tile = begin, load_pass = 0, loaded = 0;
    int load_chunk = 0, load_stage = 0, load_edges = 0;
    const auto load = [&] {  // the next step's operands; with a pass' first chunk its edges
      if (loaded < steps) {
        unsigned char* stage = memory + load_stage * S::kStage;
#pragma unroll
        for (int n = 0; n < 2; ++n) {  // 512 pieces of 16 bytes per operand
          const int piece = tid + n * kThreads, r = piece / 4, quarter = piece % 4;
          const int to = tile_at(r, quarter);
          const int64_t from = static_cast<int64_t>(load_chunk) * (2 * kDepth) + quarter * 16;
          copy_async(stage + to, o.z + (j0 + r) * row_bytes + from);
#pragma unroll
          for (int m = 0; m < kMaps; ++m) {
            const int64_t k = load_pass * kMaps + m;
            if (m == 0 || k < v.K) {
              copy_async(stage + (m + 1) * S::kOperand + to, o.v + (k * o.padded + load_tile + r) * row_bytes + from);
            }
          }
        }
        const int m = tid / 64, r = tid % 64 * 2;  // two rows' edges each
        const int64_t k = load_pass * kMaps + m;
        if (load_chunk == 0 && m < kMaps && k < v.K) {
          copy_async(memory + S::kStages * S::kStage + load_edges * S::kEdges + (m * kScreenTile + r) * sizeof(Edge),
                     o.v_edge + k * o.padded + load_tile + r);
        }
        ++loaded;
        load_stage = load_stage + 1 == S::kStages ? 0 : load_stage + 1;
        if (++load_chunk == chunks) {
          load_chunk = 0;
          load_edges = load_edges + 1 == S::kStages ? 0 : load_edges + 1;
          if (++load_pass == passes) {
            load_pass = 0;
            load_tile += kScreenTile;
          }
        }
      }
      copy_commit();
    };
#pragma unroll
    for (int n = 0; n < S::kStages - 1; ++n) load();

    int stage = 0, edges = 0;
    float total[kWhole ? 1 : 4][4][4];
    for (int64_t i0 = begin; i0 < end; i0 += kScreenTile) {
      for (int64_t pass = 0; pass < passes; ++pass) {
        const bool second = kMaps > 1 && pass * kMaps + 1 < v.K;
        float acc[kMaps][4][4][4];  // mapping, 16 rows, 8 columns, fragment
#pragma unroll
        for (int m = 0; m < kMaps; ++m) {
#pragma unroll
          for (int r = 0; r < 4; ++r) {
#pragma unroll
            for (int c = 0; c < 4; ++c) {
#pragma unroll
              for (int e = 0; e < 4; ++e) acc[m][r][c][e] = 0;
            }
          }
        }
        for (int chunk = 0; chunk < chunks; ++chunk) {
          copy_wait<S::kStages - 2>();
          __syncthreads();  // this step's operands are there for all; the step before is done with its stage
          load();
          const unsigned char* a_tile = memory + stage * S::kStage;
          stage = stage + 1 == S::kStages ? 0 : stage + 1;
#pragma unroll
          for (int half = 0; half < 2; ++half) {  // 16 coordinates
            uint32_t a[4][4];
#pragma unroll
            for (int r = 0; r < 4; ++r) {
              load_matrix(a[r], a_tile + tile_at(row0 + 16 * r + lane % 16, 2 * half + lane / 16));
            }
#pragma unroll
            for (int m = 0; m < kMaps; ++m) {
              if (m == 0 || second) {
                const unsigned char* b_tile = a_tile + (m + 1) * S::kOperand;
#pragma unroll
                for (int c = 0; c < 4; c += 2) {
                  uint32_t b[4];
                  load_matrix(b, b_tile + tile_at(column0 + 8 * c + lane / 16 * 8 + lane % 8, 2 * half + lane / 8 % 2));
                  const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
                  for (int r = 0; r < 4; ++r) {
                    mma_bf16(acc[m][r][c], a[r], b0);
                    mma_bf16(acc[m][r][c + 1], a[r], b1);
                  }
                }
              }
            }
          }
        }
        // Roots. A fragment's values: rows lane / 4 and + 8, columns 2 (lane % 4) and + 1.
        const Edge* edge = reinterpret_cast<const Edge*>(memory + S::kStages * S::kStage + edges * S::kEdges);
        edges = edges + 1 == S::kStages ? 0 : edges + 1;
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const float norm[2] = {own[row0 + 16 * r + lane / 4].norm, own[row0 + 16 * r + lane / 4 + 8].norm};
#pragma unroll
          for (int c = 0; c < 4; ++c) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              float sum = 0;
#pragma unroll
              for (int m = 0; m < kMaps; ++m) {
                if (m == 0 || second) {
                  const Edge bank = edge[m * kScreenTile + column0 + 8 * c + lane % 4 * 2 + e % 2];
                  sum += sqrt_approx(fmaxf(fmaf(-2.f, acc[m][r][c][e], norm[e / 2] + bank.norm), 0.f)) - bank.rest;
                }
              }
              if (kWhole) {
                acc[0][r][c][e] = sum;
              } else {
                total[r % (kWhole ? 1 : 4)][c][e] = pass == 0 ? sum : total[r % (kWhole ? 1 : 4)][c][e] + sum;
              }
            }
          }
        }
        if (pass + 1 == passes) {
          settle(
              contest,
              [&](auto&& f) {
#pragma unroll
                for (int r = 0; r < 4; ++r) {
#pragma unroll
                  for (int c = 0; c < 4; ++c) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                      f(row0 + 16 * r + lane / 4 + e / 2 * 8, column0 + 8 * c + lane % 4 * 2 + e % 2,
                        kWhole ? acc[0][r][c][e] : total[r % (kWhole ? 1 : 4)][c][e], 16 * r + 4 * c + e);
                    }
                  }
                }
              },
              [&](int r, int c) {
                score_candidate(contest, r, j0 + r, i0 + c, exact_mean(rows, j0 + r, i0 + c), q, most, limit_of);
              });
        }
      }
    }
    copy_wait<0>();
  }
}

}  // namespace cox::cuda
