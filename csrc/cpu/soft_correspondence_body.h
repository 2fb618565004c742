// Included by simd.h once per instruction set: logits, shares and sums of a block of readings and a tile of items.

typedef int32_t VI __attribute__((vector_size(COX_BYTES)));

// Rows x vectors of columns in registers at a time.
#if COX_BYTES == 64
constexpr int kA = 8, kV = 3;
#elif COX_BYTES == 32
constexpr int kA = 4, kV = 3;
#else
constexpr int kA = 2, kV = 4;
#endif

// out[i][e] += sum_k a[i sa + k sk] b[k sb + e] for kA rows and V vectors of columns, k ascending, n of them in blocks of `step`;
// with `some` only the blocks k for which some[k few] is not 0.
template <int V>
COX_INLINE void product_part(const float* a, int64_t sa, int64_t sk, const float* b, int64_t sb, int64_t n, int64_t step,
                             const uint8_t* some, int64_t few, float* out, int64_t so) {
  VF acc[kA][V];
#pragma GCC unroll 8
  for (int i = 0; i < kA; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) acc[i][v] = load(out + i * so + v * kWidth);
  }
  for (int64_t k0 = 0; k0 < n; k0 += step) {
    if (some && !some[k0 / step * few]) {
      continue;
    }
    const int64_t end = k0 + step < n ? k0 + step : n;
    for (int64_t k = k0; k < end; ++k) {
      VF row[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) row[v] = load(b + k * sb + v * kWidth);
#pragma GCC unroll 8
      for (int i = 0; i < kA; ++i) {
        const VF at = splat(a[i * sa + k * sk]);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) acc[i][v] = fma(at, row[v], acc[i][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kA; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) memcpy(out + i * so + v * kWidth, &acc[i][v], sizeof(VF));
  }
}

COX_INLINE void product_rows(const float* a, int64_t sa, int64_t sk, const float* b, int64_t sb, int64_t n, int64_t step,
                             const uint8_t* some, int64_t few, int64_t columns, float* out, int64_t so) {
  int64_t e = 0;
  for (; e + kV * kWidth <= columns; e += kV * kWidth) {
    product_part<kV>(a, sa, sk, b + e, sb, n, step, some, few, out + e, so);
  }
  if (columns - e == 2 * kWidth) {
    product_part<2>(a, sa, sk, b + e, sb, n, step, some, few, out + e, so);
  } else if (columns - e == kWidth) {
    product_part<1>(a, sa, sk, b + e, sb, n, step, some, few, out + e, so);
  }
}

// Bit l: a < b in lane l.
COX_INLINE unsigned less_bits(VF a, VF b) {
#if COX_BYTES == 64
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ);
#elif COX_BYTES == 32
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LT_OQ)));
#else
  unsigned bits = 0;
  for (int l = 0; l < kWidth; ++l) {
    bits |= static_cast<unsigned>(a[l] < b[l]) << l;
  }
  return bits;
#endif
}

// log2 u for normal u > 0; near_one = u - 1, better than u - 1 itself where u lies in [sqrt 1/2, sqrt 2). Error 6e-8 beside the
// rounding of the result. u = 2^e (1 + f), log2(1 + f) = f P(f), P of degree 8 (error 7e-9).
COX_INLINE VF log2_of(VF u, VF near_one) {
  const VI bits = (VI)u, e = (bits - 0x3f3504f3) >> 23;
  const VF m = (VF)(bits - (e << 23));
  const VF f = e == 0 ? near_one : m - splat(1.0f);
  VF p = splat(0.125412419f);
  p = fma(p, f, splat(-0.210303336f));
  p = fma(p, f, splat(0.217379391f));
  p = fma(p, f, splat(-0.238519445f));
  p = fma(p, f, splat(0.287656665f));
  p = fma(p, f, splat(-0.360721201f));
  p = fma(p, f, splat(0.48092252f));
  p = fma(p, f, splat(-0.721347153f));
  p = fma(p, f, splat(1.4426949f));
  return fma(f, p, __builtin_convertvector(e, VF));
}

// 2^x for x <= 1, 0 below -58 (e^-40): no subnormal number comes of it. Relative error 8e-8.
COX_INLINE VF exp2_of(VF x) {
  const VF magic = splat(12582912.0f);
  const VF y = larger(splat(-58.0f), x);
  const VF t = y + magic, n = t - magic, r = y - n;
  VF p = splat(0.000153458124f);
  p = fma(p, r, splat(0.00133999309f));
  p = fma(p, r, splat(0.00961848907f));
  p = fma(p, r, splat(0.0555032864f));
  p = fma(p, r, splat(0.240226462f));
  p = fma(p, r, splat(0.693147182f));
  p = fma(p, r, splat(1.0f));
  const VF all = (VF)((VU)p + ((VU)t << 23));
  return x > splat(-58.0f) ? all : splat(0.0f);
}

// The squared distances of a reading to as many items as a vector has lanes, directly.
COX_INLINE VF direct(const float* z, const float* items, int64_t d) {
  VF sum = {};
  for (int64_t k = 0; k < d; ++k) {
    const VF diff = splat(z[k]) - load(items + k * kItems);
    sum = fma(diff, diff, sum);
  }
  return sum;
}

// Products become logits, in place; keep: u beside them. Where a distance is small beside the norms, products would lose it.
template <bool student, bool keep>
COX_INLINE void logits_of(const ReadingBlock& b, int64_t row, const ItemTile& t, float* logits, float* keep_u) {
  const VF twice = splat(-2 * b.law.scale), least = splat(b.law.least), shift = splat(b.law.shift);
  for (int64_t r = 0; r < kStep; ++r) {
    float* to = logits + r * kItems;
    const VF own = splat(b.norms[row + r]);
    const float* bias = b.label[row + r] < 0 ? t.bias : b.no_bias;  // within a class it plays no part
    for (int64_t c = 0; c < t.cols; c += kWidth) {
      const VF norms = own + load(t.norms + c);
      VF far = fma(twice, load(to + c), norms);
      if (__builtin_expect(less_bits(splat(4.0f) * far, norms) != 0, 0)) {
        const VF exact = splat(b.law.scale) * direct(b.z + (row + r) * b.dp, t.items + c, b.d);
        far = splat(4.0f) * far < norms ? exact : far;
      }
      VF logit;
      if (student) {
        const VF u = larger(far + least, splat(1e-37f));
        logit = fma(splat(-b.law.half), log2_of(u, far + shift), load(bias + c));
        if (keep) {
          memcpy(keep_u + r * kItems + c, &u, sizeof u);
        }
      } else {
        logit = load(bias + c) - far;
      }
      memcpy(to + c, &logit, sizeof logit);
    }
    if (b.label[row + r] >= 0) {
      for (int64_t c = 0; c < t.cols; ++c) {
        to[c] = t.label[c] == b.label[row + r] ? to[c] : kNone;
      }
    }
  }
}

template <bool keep>
COX_INLINE void logits_of_step(const ReadingBlock& b, int64_t row, const ItemTile& t, float* logits, float* u) {
  if (b.bf16) {
    b.bf16->products(b.pairs + row * b.units, t.pairs, b.units, t.cols, logits);
  } else {
    memset(logits, 0, sizeof(float) * kStep * kItems);
    for (int64_t r = 0; r < kStep; r += kA) {
      product_rows(b.z + (row + r) * b.dp, b.dp, 1, t.items, kItems, b.d, b.d, nullptr, 0, t.cols, logits + r * kItems, kItems);
    }
  }
  if (b.law.student) {
    logits_of<true, keep>(b, row, t, logits, u);
  } else {
    logits_of<false, keep>(b, row, t, logits, u);
  }
}

// First pass: the largest logit of each reading and the mass 2^(logit - largest), over one tile more.
COX_TARGET void soft_first(const ReadingBlock& b, const ItemTile& t, const Sums& to, Scratch& s) {
  float* logits = s.logits.get();
  for (int64_t row = 0; row < b.rows; row += kStep) {
    logits_of_step<false>(b, row, t, logits, nullptr);
    for (int64_t r = 0; r < kStep; ++r) {
      const float* l = logits + r * kItems;
      VF most[kParts], sum[kParts] = {};
      for (int p = 0; p < kParts; ++p) most[p] = splat(kNone);
      for (int64_t c = 0; c < t.cols; c += 16) {
        for (int p = 0; p < kParts; ++p) most[p] = larger(most[p], load(l + c + p * kWidth));
      }
      float& top = to.top[row + r];
      const float here = largest16(most);
      t.top[row + r] = here;
      if (here > top) {
        to.mass[row + r] *= std::exp2(static_cast<double>(top) - static_cast<double>(here));
        top = here;
      }
      if (top <= kNone) {
        continue;
      }
      for (int64_t c = 0; c < t.cols; c += 16) {
        for (int p = 0; p < kParts; ++p) sum[p] += exp2_of(load(l + c + p * kWidth) - splat(top));
      }
      to.mass[row + r] += static_cast<double>(sum16(sum));
    }
  }
}

COX_INLINE float sum_of_span(const float* p, int64_t n) {
  if (n < 8) {
    float sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += p[i];
    return sum;
  }
  VF sum[kParts] = {};
  for (int64_t i = 0; i < n; i += 16) {
    for (int q = 0; q < kParts; ++q) sum[q] += load_first(p + i + q * kWidth, n - i - q * kWidth, 0.0f);
  }
  return sum16(sum);
}

// Shares q and weights w of kStep readings; whether any is above 0.
template <bool student>
COX_INLINE bool shares_of(const ReadingBlock& b, int64_t row, const ItemTile& t, Scratch& s, float* q, float* w, uint8_t* some,
                          double* weight) {
  logits_of_step<true>(b, row, t, s.logits.get(), s.u.get());
  memset(some, 0, kItems / 16);
  bool any = false;
  for (int64_t r = 0; r < kStep; ++r) {
    const VF high = splat(b.high[row + r]), low = splat(b.low[row + r]);
    VF sum[kParts] = {};
    for (int64_t c = 0; c < t.cols; c += 16) {
      unsigned here = 0;
      for (int p = 0; p < kParts; ++p) {
        const int64_t at = r * kItems + c + p * kWidth;
        const VF share = exp2_of((load(s.logits.get() + at) - high) - low);
        const VF counts = student ? share / load(s.u.get() + at) : share;
        here |= less_bits(splat(0.0f), share);
        sum[p] += counts;
        memcpy(q + at, &share, sizeof share);
        memcpy(w + at, &counts, sizeof counts);
      }
      some[c / 16] |= here != 0;
      any |= here != 0;
    }
    weight[row + r] += static_cast<double>(sum16(sum));
  }
  return any;
}

// Whether one of kStep readings has a share above 0 of the tile: that of the largest logit.
COX_INLINE bool any_share(const ReadingBlock& b, int64_t row, const ItemTile& t) {
  bool any = false;
  for (int64_t r = row; r < row + kStep; ++r) any |= (t.top[r] - b.high[r]) - b.low[r] > -58.0f;
  return any;
}

// Second pass: what the shares of one tile add to the readings' sums and to the items'.
COX_TARGET void soft_second(const ReadingBlock& b, const ItemTile& t, const Sums& to, Scratch& s) {
  float *q = s.q.get(), *w = s.w.get(), *use = s.use.get(), *total = s.total.get(), *x = s.x.get();
  memset(use, 0, sizeof(float) * kItems);
  memset(total, 0, sizeof(float) * static_cast<size_t>(t.cols * b.dp));
  constexpr int64_t kGroups = kItems / 16;
  for (int64_t first = 0; first < b.rows; first += kSome) {
    const int64_t rows = b.rows - first < kSome ? b.rows - first : kSome;
    bool any = false;
    for (int64_t r = 0; r < rows; r += kStep) {
      uint8_t* some = s.some.data() + r / kStep * kGroups;
      float *qr = q + r * kItems, *wr = w + r * kItems;
      if (!any_share(b, first + r, t)) {
        memset(some, 0, kGroups);
        continue;
      }
      const bool here = b.law.student ? shares_of<true>(b, first + r, t, s, qr, wr, some, to.weight)
                                      : shares_of<false>(b, first + r, t, s, qr, wr, some, to.weight);
      any |= here;
      if (!here) {
        continue;
      }
      for (int64_t c = 0; c < t.cols; c += kWidth) {
        VF sum = load(use + c);
        for (int64_t i = 0; i < kStep; ++i) sum += load(wr + i * kItems + c);
        memcpy(use + c, &sum, sizeof sum);
      }
      for (const Segment* g = t.segment; g < t.last; ++g) {
        for (int64_t i = 0; i < kStep; ++i) {
          to.posterior[(first + r + i) * to.classes + g->label - to.first_class] +=
              static_cast<double>(sum_of_span(qr + i * kItems + g->from, g->to - g->from));
        }
      }
    }
    if (!any) {
      continue;
    }
    memset(x, 0, sizeof(float) * static_cast<size_t>(rows * b.pp));
    for (int64_t r = 0; r < rows; r += kA) {
      product_rows(q + r * kItems, kItems, 1, t.x, b.pp, t.cols, 16, s.some.data() + r / kStep * kGroups, 1, b.pp, x + r * b.pp,
                   b.pp);
    }
    double* expected = to.expected + first * b.pp;
    for (int64_t n = 0; n < rows * b.pp; ++n) expected[n] += static_cast<double>(x[n]);
    for (int64_t i = 0; i < t.cols; i += kA) {
      product_rows(w + i, 1, kItems, b.z + first * b.dp, b.dp, rows, kStep, s.some.data() + i / 16, kGroups, b.dp,
                   total + i * b.dp, b.dp);
    }
  }
  for (int64_t n = 0; n < t.cols * b.dp; ++n) t.total[n] += static_cast<double>(total[n]);
  for (int64_t n = 0; n < t.cols; ++n) t.use[n] += static_cast<double>(use[n]);
}

// scatter (dp, dp) += sum_r weight_r z_r z_r^T; weighted (rows, dp) and part (dp, dp) are scratch.
COX_TARGET void soft_scatter(const ReadingBlock& b, const double* weight, float* weighted, float* part, double* scatter) {
  for (int64_t r = 0; r < b.rows; ++r) {
    for (int64_t e = 0; e < b.dp; ++e) weighted[r * b.dp + e] = static_cast<float>(weight[r]) * b.z[r * b.dp + e];
  }
  memset(part, 0, sizeof(float) * static_cast<size_t>(b.dp * b.dp));
  for (int64_t i = 0; i < b.dp; i += kA) {
    product_rows(weighted + i, 1, b.dp, b.z, b.dp, b.rows, b.rows, nullptr, 0, b.dp, part + i * b.dp, b.dp);
  }
  for (int64_t n = 0; n < b.dp * b.dp; ++n) scatter[n] += static_cast<double>(part[n]);
}
