// Included by simd.h once per instruction set: the inner loops of pairwise_distances (Kernels in pairwise_distances.cpp).

COX_INLINE VF root(VF x) {
#if COX_BYTES == 64
  return (VF)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);
#elif COX_BYTES == 32
  return (VF)_mm256_sqrt_ps((__m256)x);
#else
  for (int l = 0; l < kWidth; ++l) {
    x[l] = std::sqrt(x[l]);
  }
  return x;
#endif
}

COX_INLINE bool any(VU mask) {
#if COX_BYTES == 64
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif COX_BYTES == 32
  return _mm256_movemask_ps((__m256)mask) != 0;
#else
  return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
#endif
}

COX_INLINE void store_first(float* to, VF v, int64_t n) {
  if (n >= kWidth) {
    memcpy(to, &v, sizeof v);
  } else {
    memcpy(to, &v, sizeof(float) * static_cast<size_t>(n));
  }
}

// All bits: too near for products.
COX_INLINE VU too_near(VF square, VF norms, float least) {
  return ~(VU)(square >= fma(splat(least), norms, splat(kTiny)));
}

template <bool kDirect>
COX_INLINE VF step(VF a, VF b, VF sum) {
  const VF d = a - b;
  return kDirect ? fma(d, d, sum) : fma(a, b, sum);
}

template <int R, bool kDirect>
COX_TARGET static void part_of_tile(const float* a, const float* b, int64_t n, float* c, int64_t stride, bool add) {
  VF sum[R][2] = {};
  for (int64_t k = 0; k < n; ++k) {
    const VF b0 = load(b + k * kPanel), b1 = load(b + k * kPanel + kWidth);
    for (int r = 0; r < R; ++r) {
      const VF x = splat(a[r * kStride + k]);
      sum[r][0] = step<kDirect>(x, b0, sum[r][0]);
      sum[r][1] = step<kDirect>(x, b1, sum[r][1]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int h = 0; h < 2; ++h) {
      float* to = c + r * stride + h * kWidth;
      const VF whole = add ? load(to) + sum[r][h] : sum[r][h];
      memcpy(to, &whole, sizeof whole);
    }
  }
}

template <bool kDirect>
COX_TARGET static void tile_of(const float* a, int64_t rows, const float* b, int64_t n, float* c, int64_t stride, bool add) {
  constexpr int64_t R = COX_BYTES == 64 ? 12 : COX_BYTES == 32 ? 6 : 4;  // as many sums as there are registers for
  for (int64_t h = 0; h < kPanel; h += 2 * kWidth) {
    if (rows <= 4) {
      part_of_tile<4, kDirect>(a, b + h, n, c + h, stride, add);
    } else {
      for (int64_t r = 0; r < rows; r += R) {
        part_of_tile<R, kDirect>(a + r * kStride, b + h, n, c + r * stride + h, stride, add);
      }
    }
  }
}

COX_TARGET void tile(const float* a, int64_t rows, const float* b, int64_t n, float* c, int64_t stride, bool add, bool direct) {
  if (direct) {
    tile_of<true>(a, rows, b, n, c, stride, add);
  } else {
    tile_of<false>(a, rows, b, n, c, stride, add);
  }
}

COX_TARGET float norm(const float* row, int64_t d) {
  VF sum[kParts] = {};
  for (int64_t e = 0; e < d; e += 16) {
    for (int p = 0; p < kParts; ++p) {
      const VF x = load_first(row + e + p * kWidth, d - e - p * kWidth, 0);
      sum[p] = fma(x, x, sum[p]);
    }
  }
  const float n = sum16(sum);
  return n <= kHuge ? n : std::numeric_limits<float>::quiet_NaN();
}

COX_TARGET float sum(const float* row, int64_t n) {
  VF sum[kParts] = {};
  for (int64_t e = 0; e < n; e += 16) {
    for (int p = 0; p < kParts; ++p) {
      sum[p] += load_first(row + e + p * kWidth, n - e - p * kWidth, 0);
    }
  }
  return sum16(sum);
}

// The direct squared distances of one row and kWidth others, added up as in a tile.
COX_INLINE VF directly(const float* a, const float* b, int64_t d) {
  VF whole = {};
  for (int64_t k0 = 0; k0 < d; k0 += kChunk, a += kMany * kStride) {
    VF sum = {};
    for (int64_t k = k0; k < std::min(d, k0 + kChunk); ++k) {
      sum = step<true>(splat(a[k - k0]), load(b + k * kPanel), sum);
    }
    whole = k0 == 0 ? sum : whole + sum;
  }
  return whole;
}

COX_TARGET int64_t squares(float* c, float norm, const float* norms, int64_t n, float least, const float* direct,
                           const float* a, const float* b, int64_t d) {
  int64_t near = 0;
  for (int64_t j = 0; j < n; j += kWidth) {
    const VF both = splat(norm) + load(norms + j);
    VF s = fma(splat(-2.0f), load(c + j), both);
    const VU close = too_near(s, both, least);
    if (any(close)) {
      const VF exact = direct ? load(direct + j) : directly(a, b + j / kPanel * kPanel * d + j % kPanel, d);
      s = close ? exact : s;
      near += kWidth;
    }
    memcpy(c + j, &s, sizeof s);
  }
  return near;
}

COX_TARGET bool all_near(const float* c, float norm, const float* norms, int64_t n, float least) {
  for (int64_t j = 0; j < n; j += kWidth) {
    const VF s = load_first(c + j, n - j, 0), both = splat(norm) + load_first(norms + j, n - j, 0);
    if (any(~too_near(s, both, least))) {
      return false;
    }
  }
  return true;
}

COX_TARGET void roots(const float* c, int64_t n, bool squared, float* to) {
  for (int64_t j = 0; j < n; j += kWidth) {
    const VF s = load(c + j);
    store_first(to + j, squared ? s : root(s), n - j);
  }
}

COX_TARGET int64_t weights(const float* grad, const float* dist, float norm, const float* norms, int64_t n, float least,
                           bool squared, float* w, Pull* near) {
  int64_t held = 0;
  for (int64_t j = 0; j < n; j += kWidth) {
    const VF g = load_first(grad + j, n - j, 0), d = load_first(dist + j, n - j, 0);
    const VF whole = squared ? g + g : d == VF{} ? VF{} : g / d;
    const VF size = whole < VF{} ? -whole : whole;
    const VU close = too_near(squared ? d : d * d, splat(norm) + load_first(norms + j, n - j, 0), least) |
                     ~(VU)(size <= splat(kHuge));
    const VU pulls = close & (VU)(whole != VF{});  // an infinite distance pulls nothing
    if (any(pulls)) {
      for (int l = 0; l < kWidth; ++l) {
        if (pulls[l]) {
          near[held++] = {static_cast<int32_t>(j) + l, whole[l]};
        }
      }
    }
    store_first(w + j, close ? VF{} : whole, n - j);
  }
  return held;
}

COX_TARGET void pull(const float* a, const float* rows, int64_t d, const Pull* near, int64_t n, float* s) {
  int64_t j = 0;
  for (; j + 4 <= n; j += 4) {
    for (int64_t e = 0; e < d; e += kWidth) {
      const VF at = load(a + e);
      VF sum = load(s + e);
      for (int64_t i = j; i < j + 4; ++i) {
        sum = fma(splat(near[i].weight), load(rows + near[i].row * d + e) - at, sum);
      }
      memcpy(s + e, &sum, sizeof sum);
    }
  }
  for (; j < n; ++j) {
    for (int64_t e = 0; e < d; e += kWidth) {
      const VF sum = fma(splat(near[j].weight), load(rows + near[j].row * d + e) - load(a + e), load(s + e));
      memcpy(s + e, &sum, sizeof sum);
    }
  }
}

constexpr Kernels kernels = {&tile, &norm, &sum, &squares, &all_near, &roots, &weights, &pull};
