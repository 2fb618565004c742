// soft_correspondence on CUDA: shares q_ji = softmax_i of bias_{y_i} - (v + d)/2 log(1 + ||z_j - m_i||^2 / v), or of
// bias_{y_i} - ||z_j - m_i||^2 / 2 where v is inf, and their sums by readings j and by items i.
//
// Two passes over 64 x 64 tiles of direct squared distances (tile.cuh): `masses` finds each reading's normaliser, by parts of
// the items that join_masses adds in order; then by_readings, a block per 64 readings, walks the items, and by_items, a block
// per 64 items, walks the readings. Items are taken in the order of their classes, so that a class is a run of columns and its
// sum stays in a register. Sums over a tile are in float32, beyond in float64, all in a fixed order: deterministic, no atomics.
// No value is looked at by the host. O(M N (d + p)) time, O(M (p + parts) + N d) scratch, 64 x 65 numbers in shared memory.
#include <array>
#include <limits>

#include "tile.cuh"

namespace cox::cuda {
namespace {

template <class T>
struct Ordered {  // rows of a matrix in another order
  Rows<T> all;
  const int64_t* order;
  int64_t d;

  __device__ acc_t<T> at(int64_t r, int64_t e) const { return r < all.rows ? all.at(order[r], e) : acc_t<T>(0); }
};

template <class T>
struct Soft {
  using A = acc_t<T>;
  Rows<T> z;
  Ordered<T> means, x;
  const int64_t *classes, *labels;  // classes in their order; labels: or null
  int64_t label_stride;
  const T* bias;
  int64_t bias_stride, M, N, d, p, C;
  bool student;
  A half, freedom, dims;
  const A* most;  // the largest bias

  __device__ int64_t label(int64_t j) const { return labels != nullptr && j < M ? labels[j * label_stride] : -1; }

  // -inf where the item is not to be had. The class plays no part for a reading with a label, nor what all biases share.
  __device__ A logit(A far, int64_t i, int64_t of_reading) const {
    constexpr A inf = std::numeric_limits<A>::infinity();
    const int64_t c = i < N ? classes[i] : -1;
    if (c < 0 || c >= C || (of_reading >= 0 && of_reading != c)) {
      return -inf;
    }
    const A b = of_reading >= 0 ? A(0) : static_cast<A>(bias[c * bias_stride]) - *most;
    if (!student) {
      return b - far / 2;
    }
    const A t = (far - dims) / (freedom + dims);  // log(1 + far / v), less what it is at far = d
    return b - half * (t < A(-0.5) ? log((freedom + far) / (freedom + dims)) : log1p(t));
  }

  __device__ A weight(A share, A far) const { return student ? share * ((freedom + dims) / (freedom + far)) : share; }
};

template <class A>
__device__ A share_of(A logit, A high, A low) {
  const A x = (logit - high) - low;
  return x > A(-40) ? exp(x) : A(0);
}

template <class T>
__global__ void largest_bias(const T* bias, int64_t stride, int64_t C, acc_t<T>* most) {
  using A = acc_t<T>;
  __shared__ A found[kThreads];
  const int tid = threadIdx.x;
  A largest = -std::numeric_limits<A>::infinity();
  for (int64_t c = tid; c < C; c += kThreads) {
    const A b = static_cast<A>(bias[c * stride]);
    largest = b > largest ? b : largest;
  }
  found[tid] = largest;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (tid < half) {
      found[tid] = found[tid] > found[tid + half] ? found[tid] : found[tid + half];
    }
    __syncthreads();
  }
  if (tid == 0) {
    *most = found[0];
  }
}

// Of each reading and part of the items the largest logit and the mass of exp(logit - largest): (parts, M) each.
template <class T>
__global__ void __launch_bounds__(kThreads, std::is_same_v<T, double> ? 1 : 2)
    masses(Soft<T> s, int64_t items_per_part, acc_t<T>* tops, double* sums) {
  using A = acc_t<T>;
  constexpr A inf = std::numeric_limits<A>::infinity();
  __shared__ TileBuffers<A> buffers;
  __shared__ A top_of[kTile][16];
  __shared__ double sum_of[kTile][16];
  const int tid = threadIdx.x, row = tid / 16 * 4, col = tid % 16 * 4;
  const int64_t i0 = static_cast<int64_t>(blockIdx.x) * kTile, begin = blockIdx.y * items_per_part;
  const int64_t end = begin + items_per_part < s.N ? begin + items_per_part : s.N;
  A top[4];
  double sum[4];
  for (int r = 0; r < 4; ++r) {
    top[r] = -inf;
    sum[r] = 0;
  }
  for (int64_t j0 = begin; j0 < end; j0 += kTile) {
    A far[4][4];
    tile_squares(s.z, i0, s.means, j0, buffers, far);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int64_t label = s.label(i0 + row + r);
      A l[4], most = top[r];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        l[c] = s.logit(far[r][c], j0 + col + c, label);
        most = l[c] > most ? l[c] : most;
      }
      if (most > -inf) {
        A here = 0;
#pragma unroll
        for (int c = 0; c < 4; ++c) here += exp(l[c] - most);
        sum[r] = sum[r] * static_cast<double>(exp(top[r] - most)) + static_cast<double>(here);
        top[r] = most;
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    top_of[row + r][tid % 16] = top[r];
    sum_of[row + r][tid % 16] = sum[r];
  }
  __syncthreads();
  if (tid < kTile && i0 + tid < s.M) {
    A most = -inf;
    double mass = 0;
    for (int n = 0; n < 16; ++n) most = top_of[tid][n] > most ? top_of[tid][n] : most;
    for (int n = 0; n < 16 && most > -inf; ++n) mass += sum_of[tid][n] * static_cast<double>(exp(top_of[tid][n] - most));
    tops[blockIdx.y * s.M + i0 + tid] = most;
    sums[blockIdx.y * s.M + i0 + tid] = mass;
  }
}

// The logarithm of each reading's mass, in two parts; the evidence.
template <class T>
__global__ void join_masses(Soft<T> s, int64_t parts, const acc_t<T>* tops, const double* sums, double shifted, acc_t<T>* high,
                            acc_t<T>* low, acc_t<T>* evidence) {
  using A = acc_t<T>;
  constexpr A inf = std::numeric_limits<A>::infinity();
  const int64_t j = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (j >= s.M) {
    return;
  }
  A most = -inf;
  double mass = 0;
  for (int64_t n = 0; n < parts; ++n) most = tops[n * s.M + j] > most ? tops[n * s.M + j] : most;
  for (int64_t n = 0; n < parts && most > -inf; ++n) {
    mass += sums[n * s.M + j] * static_cast<double>(exp(tops[n * s.M + j] - most));
  }
  const bool some = most > -inf;
  const double lse = some ? static_cast<double>(most) + log(mass) : 0;
  high[j] = some ? static_cast<A>(lse) : std::numeric_limits<A>::max();  // no share comes of that
  low[j] = some ? static_cast<A>(lse - static_cast<double>(high[j])) : A(0);
  const int64_t label = s.label(j);
  const double bias = static_cast<double>(label < 0 || label >= s.C ? *s.most : static_cast<A>(s.bias[label * s.bias_stride]));
  evidence[j] = some ? static_cast<A>(lse - shifted + bias) : -inf;
}

template <class A>
union Shared {  // the shares of a tile are formed when its coordinates have been used
  TileBuffers<A> buffers;
  A q[kTile][kTile + 1];
  double sums[kTile][16];
  __device__ Shared() {}
};

// A block's 64 readings: posterior (M, C) and expected (M, p) before they are made to add up to 1, their sum and weight.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    by_readings(Soft<T> s, const acc_t<T>* high, const acc_t<T>* low, acc_t<T>* posterior, double* expected, double* all,
                double* weight) {
  using A = acc_t<T>;
  __shared__ Shared<A> shared;
  const int tid = threadIdx.x, row = tid / 16 * 4, col = tid % 16 * 4;
  const int64_t i0 = static_cast<int64_t>(blockIdx.x) * kTile, rows = s.M - i0 < kTile ? s.M - i0 : kTile;
  double counts[4] = {}, run = 0, sum = 0;
  int64_t now = -1;  // the class of the run; of the first kTile threads
  for (int64_t n = tid; n < rows * s.C; n += kThreads) posterior[i0 * s.C + n] = 0;
  for (int64_t n = tid; n < rows * s.p; n += kThreads) expected[i0 * s.p + n] = 0;
  for (int64_t j0 = 0; j0 < s.N; j0 += kTile) {
    A far[4][4];
    tile_squares(s.z, i0, s.means, j0, shared.buffers, far);
    __syncthreads();  // the coordinates are still being read
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int64_t j = i0 + row + r, label = s.label(j);
      A here = 0;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const A q = j < s.M ? share_of(s.logit(far[r][c], j0 + col + c, label), high[j], low[j]) : A(0);
        here += s.weight(q, far[r][c]);
        shared.q[row + r][col + c] = q;
      }
      counts[r] += static_cast<double>(here);
    }
    __syncthreads();
    const int64_t cols = s.N - j0 < kTile ? s.N - j0 : kTile;
    if (tid < rows) {
      for (int64_t c = 0; c < cols; ++c) {
        const int64_t of_item = s.classes[j0 + c];
        if (of_item != now) {
          if (now >= 0 && now < s.C) {
            posterior[(i0 + tid) * s.C + now] = static_cast<A>(run);
            sum += static_cast<double>(static_cast<A>(run));
          }
          now = of_item;
          run = 0;
        }
        run += static_cast<double>(shared.q[tid][c]);
      }
    }
    for (int64_t n = tid; n < rows * s.p; n += kThreads) {
      const int64_t r = n / s.p, e = n % s.p;
      A part = 0;
      for (int64_t c = 0; c < cols; ++c) part += shared.q[r][c] * s.x.at(j0 + c, e);
      expected[i0 * s.p + n] += static_cast<double>(part);
    }
  }
  if (tid < rows) {
    if (now >= 0 && now < s.C) {
      posterior[(i0 + tid) * s.C + now] = static_cast<A>(run);
      sum += static_cast<double>(static_cast<A>(run));
    }
    all[i0 + tid] = sum;
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < 4; ++r) shared.sums[row + r][tid % 16] = counts[r];
  __syncthreads();
  if (tid < rows) {
    double total = 0;
    for (int n = 0; n < 16; ++n) total += shared.sums[tid][n];
    weight[i0 + tid] = total;
  }
}

// A block's 64 items: use (N,), total (N, d), each at its own place.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    by_items(Soft<T> s, const acc_t<T>* high, const acc_t<T>* low, double* total, acc_t<T>* use_out, acc_t<T>* total_out) {
  using A = acc_t<T>;
  __shared__ Shared<A> shared;
  const int tid = threadIdx.x, row = tid / 16 * 4, col = tid % 16 * 4;
  const int64_t j0 = static_cast<int64_t>(blockIdx.x) * kTile, cols = s.N - j0 < kTile ? s.N - j0 : kTile;
  double counts[4] = {};
  for (int64_t n = tid; n < cols * s.d; n += kThreads) total[j0 * s.d + n] = 0;
  for (int64_t i0 = 0; i0 < s.M; i0 += kTile) {
    A far[4][4], here[4] = {};
    tile_squares(s.z, i0, s.means, j0, shared.buffers, far);
    __syncthreads();  // the coordinates are still being read
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int64_t j = i0 + row + r, label = s.label(j);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const A q = j < s.M ? share_of(s.logit(far[r][c], j0 + col + c, label), high[j], low[j]) : A(0);
        const A w = s.weight(q, far[r][c]);
        here[c] += w;
        shared.q[row + r][col + c] = w;
      }
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) counts[c] += static_cast<double>(here[c]);
    __syncthreads();
    const int64_t rows = s.M - i0 < kTile ? s.M - i0 : kTile;
    for (int64_t n = tid; n < cols * s.d; n += kThreads) {
      const int64_t c = n / s.d, e = n % s.d;
      A part = 0;
      for (int64_t r = 0; r < rows; ++r) part += shared.q[r][c] * s.z.at(i0 + r, e);
      total[j0 * s.d + n] += static_cast<double>(part);
    }
  }
  __syncthreads();
#pragma unroll
  for (int c = 0; c < 4; ++c) shared.sums[col + c][tid / 16] = counts[c];
  __syncthreads();
  if (tid < cols) {
    double sum = 0;
    for (int n = 0; n < 16; ++n) sum += shared.sums[tid][n];
    use_out[s.means.order[j0 + tid]] = static_cast<A>(sum);
  }
  for (int64_t n = tid; n < cols * s.d; n += kThreads) {
    total_out[s.means.order[j0 + n / s.d] * s.d + n % s.d] = static_cast<A>(total[j0 * s.d + n]);
  }
}

// part (parts, d, d): sum over a part's readings of weight z z^T. A block has 16 x 16 entries.
template <class T>
__global__ void scatter_parts(Rows<T> z, const double* weight, int64_t rows_per_part, double* part) {
  const int64_t a = static_cast<int64_t>(blockIdx.x) * 16 + threadIdx.x / 16, e = static_cast<int64_t>(blockIdx.y) * 16 + threadIdx.x % 16;
  const int64_t begin = blockIdx.z * rows_per_part, end = begin + rows_per_part < z.rows ? begin + rows_per_part : z.rows;
  if (a >= z.d || e >= z.d) {
    return;
  }
  double sum = 0;
  for (int64_t j = begin; j < end; ++j) sum += weight[j] * static_cast<double>(z.at(j, a)) * static_cast<double>(z.at(j, e));
  part[(blockIdx.z * z.d + a) * z.d + e] = sum;
}

template <class A>
__global__ void finish_scatter(const double* part, int64_t parts, int64_t n, A* scatter) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) {
    double sum = 0;
    for (int64_t k = 0; k < parts; ++k) sum += part[k * n + i];
    scatter[i] = static_cast<A>(sum);
  }
}

// Posterior and expected vector add up to 1; the margin. One reading a thread.
template <class A>
__global__ void finish_readings(int64_t M, int64_t C, int64_t p, const double* expected, const double* all, A* posterior,
                                A* expected_out, A* margin) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (j >= M) {
    return;
  }
  const double unit = all[j] > 0 ? 1 / all[j] : 0;
  A best = 0, second = 0;
  for (int64_t c = 0; c < C; ++c) {
    const A q = static_cast<A>(unit * static_cast<double>(posterior[j * C + c]));
    posterior[j * C + c] = q;
    second = q > best ? best : q > second ? q : second;
    best = q > best ? q : best;
  }
  margin[j] = best - second;
  for (int64_t e = 0; e < p; ++e) expected_out[j * p + e] = static_cast<A>(unit * expected[j * p + e]);
}

// Through the dispatcher, which knows the device.
Tensor order_of(const Tensor& classes) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(classes), from(true), from(int64_t(-1)), from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::argsort", "stable", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor taken(const Tensor& t, const Tensor& rows) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(t), from(int64_t(0)), from(rows)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::index_select", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Parts of n in tiles, enough for any GPU and from the size alone, so that a result does not depend on the device.
int64_t per_part(int64_t n, int64_t others) {
  const int64_t tiles = ceil_div(n, kTile), parts = ceil_div(512, ceil_div(others, kTile));
  return ceil_div(tiles, parts < tiles ? parts : tiles) * kTile;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> soft_correspondence(Tensor z, Tensor means, Tensor x,
                                                                                      Tensor classes, Tensor bias,
                                                                                      std::optional<Tensor> labels,
                                                                                      double freedom) {
  check_soft_correspondence(z, means, x, classes, bias, labels, freedom);
  const DeviceGuard guard(z.get_device_index());
  const cudaStream_t stream = current_stream(z);
  const int64_t M = z.size(0), N = means.size(0), d = z.size(1), p = x.size(1), C = bias.size(0);
  const ScalarType dtype = acc_dtype(z.scalar_type());
  Tensor posterior = make(z, {M, C}, dtype), expected = make(z, {M, p}, dtype), margin = make(z, {M}, dtype);
  Tensor evidence = make(z, {M}, dtype), use = make(z, {N}, dtype), total = make(z, {N, d}, dtype), scatter = make(z, {d, d}, dtype);
  const Tensor order = order_of(classes), sorted = taken(classes, order);
  const int64_t items_per_part = per_part(N, M > 0 ? M : 1), parts = ceil_div(N, items_per_part);
  int64_t rows_per_part = ceil_div(M, 64);
  rows_per_part = rows_per_part > 0 ? rows_per_part : 1;
  const int64_t row_parts = M > 0 ? ceil_div(M, rows_per_part) : 0;
  Tensor most = make(z, {1}, dtype), high = make(z, {M}, dtype), low = make(z, {M}, dtype), tops = make(z, {parts, M}, dtype);
  const ScalarType f64 = ScalarType::Double;
  Tensor sums = make(z, {parts, M}, f64), rows = make(z, {M, p}, f64), all = make(z, {M}, f64), weight = make(z, {M}, f64);
  Tensor columns = make(z, {N, d}, f64), squares = make(z, {row_parts, d, d}, f64);
  const double dims = static_cast<double>(d);
  const bool student = freedom < std::numeric_limits<double>::infinity();
  const double shifted = student ? (freedom + dims) / 2 * std::log1p(dims / freedom) : 0;  // of the logits, by their unit
  for_dtype(z.scalar_type(), [&](auto t) {
    using T = decltype(t);
    using A = acc_t<T>;
    const Soft<T> s{rows_of<T>(z),
                    {rows_of<T>(means), data<int64_t>(order), d},
                    {rows_of<T>(x), data<int64_t>(order), p},
                    data<int64_t>(sorted),
                    labels ? data<int64_t>(*labels) : nullptr,
                    labels ? labels->stride(0) : 0,
                    data<T>(bias),
                    bias.stride(0),
                    M,
                    N,
                    d,
                    p,
                    C,
                    student,
                    static_cast<A>(student ? (freedom + dims) / 2 : 0),
                    static_cast<A>(student ? freedom : 0),
                    static_cast<A>(dims),
                    data<A>(most)};
    COX_LAUNCH(dim3(1), dim3(kThreads), stream, (data<T>(bias), bias.stride(0), C, out<A>(most)), largest_bias<T>);
    if (M > 0) {
      const unsigned tiles = grid_size(ceil_div(M, kTile)), blocks = grid_size(ceil_div(M, 256));
      COX_LAUNCH(dim3(tiles, static_cast<unsigned>(parts)), dim3(kThreads), stream,
                 (s, items_per_part, out<A>(tops), out<double>(sums)), masses<T>);
      COX_LAUNCH(dim3(blocks), dim3(256), stream,
                 (s, parts, data<A>(tops), data<double>(sums), shifted, out<A>(high), out<A>(low), out<A>(evidence)),
                 join_masses<T>);
      COX_LAUNCH(dim3(tiles), dim3(kThreads), stream,
                 (s, data<A>(high), data<A>(low), out<A>(posterior), out<double>(rows), out<double>(all), out<double>(weight)),
                 by_readings<T>);
      COX_LAUNCH(dim3(blocks), dim3(256), stream,
                 (M, C, p, data<double>(rows), data<double>(all), out<A>(posterior), out<A>(expected), out<A>(margin)),
                 finish_readings<A>);
      if (d > 0) {
        const unsigned side = grid_size(ceil_div(d, 16));
        COX_LAUNCH(dim3(side, side, static_cast<unsigned>(row_parts)), dim3(256), stream,
                   (s.z, data<double>(weight), rows_per_part, out<double>(squares)), scatter_parts<T>);
      }
    }
    COX_LAUNCH(dim3(grid_size(ceil_div(N, kTile))), dim3(kThreads), stream,
               (s, data<A>(high), data<A>(low), out<double>(columns), out<A>(use), out<A>(total)), by_items<T>);
    if (d > 0) {
      COX_LAUNCH(dim3(grid_size(ceil_div(d * d, 256))), dim3(256), stream,
                 (data<double>(squares), row_parts, d * d, out<A>(scatter)), finish_scatter<A>);
    }
  });
  return {posterior, expected, margin, evidence, use, total, scatter};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cox_ops, CUDA, m) {
  m.impl("soft_correspondence", TORCH_BOX(&soft_correspondence));
}

}  // namespace cox::cuda
