// Included by screen.cpp once per instruction set. Expects COX_NS, COX_TARGET (function attribute), COX_ROOT(x): x to
// its root in place, and COX_BITS(a, b): the 16 bits of a < b.
namespace COX_NS {

COX_TARGET void bounds(const QueryPanel& q, const float* reach, const BankPanel* b, int64_t maps, float* add,
                       float* weigh, float* slack, float* limit) {
  const auto at = [](const float* p) { return reinterpret_cast<const V16*>(p); };
  const auto to = [](float* p) { return reinterpret_cast<V16*>(p); };
  const V16 n = *at(q.n), h = *at(q.h), e = *at(q.e), d = *at(q.d), u = *at(reach);
  V16 norms = {}, triangle = {};
  for (int64_t k = 0; k < maps; ++k) {
    norms += h * b[k].most.e + e * b[k].most.h;
    triangle += e + b[k].most.e;
  }
  const I16 by_norms = norms * static_cast<float>(maps) < u * triangle;
  for (int64_t k = 0; k < maps; ++k) {
    const V16 loss = by_norms ? 2 * e * b[k].most.h : d;
    *to(add + 16 * k) = n - loss - kGamma * (n + b[k].most.n) - kFloor;
  }
  const V16 s = by_norms ? V16{} : triangle;
  *to(weigh) = by_norms ? 2 * h : V16{};
  *to(weigh + 16) = by_norms ? V16{} : V16{} + 1.0f;
  *to(slack) = s;
  *to(limit) = (u + s) * kMargin + kFloorRoot * static_cast<float>(maps);
}

COX_TARGET void roots(const int32_t* dots, const BankPanel& b, const float* add, const float* weigh, const float* mul,
                      bool first, float* total) {
  for (int64_t c = 0; c < kBank; c += 16) {
    const V16 t = *reinterpret_cast<const V16*>(b.t + c), n = *reinterpret_cast<const V16*>(b.n + c),
              e = *reinterpret_cast<const V16*>(b.e + c), d = *reinterpret_cast<const V16*>(b.d + c);
    for (int64_t r = 0; r < kQuery; ++r) {
      const V16 dot = __builtin_convertvector(*reinterpret_cast<const I16*>(dots + r * kBank + c), V16) * t;
      V16 x = ((n + add[r]) - (e * weigh[r] + d * weigh[16 + r])) + dot * mul[r];
      x = x < kFloor ? V16{} + kFloor : x;
      V16* s = reinterpret_cast<V16*>(total + r * kBank + c);
      COX_ROOT(x);
      *s = first ? x : *s + x;
    }
  }
}

COX_TARGET bool below(const float* total, const float* limit, uint32_t* mask) {
  uint32_t any = 0;
  for (int64_t r = 0; r < kQuery; ++r) {
    const V16 l = V16{} + limit[r], *s = reinterpret_cast<const V16*>(total + r * kBank);
    mask[r] = COX_BITS(s[0], l) | COX_BITS(s[1], l) << 16;
    any |= mask[r];
  }
  return any != 0;
}

COX_TARGET double centred(const float* src, const double* centre, bool add, double* x, int64_t dp, double* n) {
  V8 most = {}, square = {};
  for (int64_t d = 0; d < dp; d += 8) {
    V8* to = reinterpret_cast<V8*>(x + d);
    V8 a = __builtin_convertvector(*reinterpret_cast<const F8*>(src + d), V8);
    a -= *reinterpret_cast<const V8*>(centre + d);
    if (add) a += *to;
    *to = a;
    const V8 size = a < 0 ? -a : a;
    most = size > most ? size : most;
    square += a * a;
  }
  double m = 0;
  *n = 0;
  for (int l = 0; l < 8; ++l) {
    m = most[l] > m ? most[l] : m;
    *n += square[l];
  }
  return m;
}

COX_TARGET Rounded round(const double* x, double scale, int64_t dp, int64_t steps, bool wide, int offset,
                         int64_t stride, int32_t* dst) {
  const double inverse = 1 / scale;
  constexpr double kShift = 0x1.8p52;  // adding it rounds to an integer
  V8 rest2 = {}, q2 = {}, sum = {};
  const int64_t units = wide ? 4 : 2;  // of 8 coordinates
  for (int64_t d = 0; d < dp; d += 8) {
    const V8 a = *reinterpret_cast<const V8*>(x + d);
    const V8 k = (a * inverse + kShift) - kShift, rest = a - scale * k;
    rest2 += rest * rest;
    q2 += k * k;
    sum += k;
    const I8 q = __builtin_convertvector(k, I8) + offset;
    int32_t packed[4];
    if (wide) {
      const S8 q16 = __builtin_convertvector(q, S8);
      memcpy(packed, &q16, 16);
    } else {
      const B8 q8 = __builtin_convertvector(q, B8);
      memcpy(packed, &q8, 8);
    }
    const int64_t first = d / 8 * units;
    for (int64_t s = 0; s < units && first + s < steps; ++s) dst[(first + s) * stride] = packed[s];
  }
  Rounded f{};
  double total = 0;
  for (int l = 0; l < 8; ++l) {
    f.rest2 += rest2[l];
    f.q2 += q2[l];
    total += sum[l];
  }
  f.sum = static_cast<int64_t>(total);
  return f;
}

template <int R>
COX_TARGET static void squares_of(const float* z, const float* const* v, int64_t d, double* out) {
  V8 acc[R][2] = {};
  const auto step = [&](const float* a, const float* const* b, int64_t at) COX_TARGET {
    for (int h = 0; h < 2; ++h) {
      const V8 zz = __builtin_convertvector(*reinterpret_cast<const F8*>(a + at + 8 * h), V8);
      for (int r = 0; r < R; ++r) {
        const V8 e = zz - __builtin_convertvector(*reinterpret_cast<const F8*>(b[r] + at + 8 * h), V8);
        acc[r][h] += e * e;
      }
    }
  };
  const int64_t whole = d / 16 * 16;
  for (int64_t at = 0; at < whole; at += 16) step(z, v, at);
  if (whole < d) {
    float tail[R + 1][16] = {};
    const float* rows[R];
    memcpy(tail[R], z + whole, sizeof(float) * static_cast<size_t>(d - whole));
    for (int r = 0; r < R; ++r) {
      memcpy(tail[r], v[r] + whole, sizeof(float) * static_cast<size_t>(d - whole));
      rows[r] = tail[r];
    }
    step(tail[R], rows, 0);
  }
  for (int r = 0; r < R; ++r) {
    V8 s = acc[r][0] + acc[r][1];
    for (int l = 0; l < 4; ++l) s[l] += s[l + 4];
    for (int l = 0; l < 2; ++l) s[l] += s[l + 2];
    out[r] = s[0] + s[1];
  }
}

COX_TARGET void squares(const float* z, const float* const* v, int64_t rows, int64_t d, double* out) {
  if (rows == 4) {
    squares_of<4>(z, v, d, out);
  } else {
    for (int64_t r = 0; r < rows; ++r) squares_of<1>(z, v + r, d, out + r);
  }
}

}  // namespace COX_NS
